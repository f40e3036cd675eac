"""asyncio's streams, each message behind its length in four bytes; `drain()` for each, as its documentation has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.systems import reactor as work
from benchmarks.work import OnMessage


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                answer = on_message(await _read(reader))
                if answer is not None:
                    writer.write(len(answer).to_bytes(4, "big") + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def start() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(start())


class Link:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: bytes) -> None:
        self._writer.write(len(message).to_bytes(4, "big") + message)

    async def send_many(self, payload: bytes, count: int) -> None:
        writer = self._writer
        for _ in range(count):
            writer.write(len(payload).to_bytes(4, "big") + payload)
            await writer.drain()

    def receive(self) -> Awaitable[bytes]:
        return _read(self._reader)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def _open(where: Any) -> Link:
    return Link(*await asyncio.open_connection("127.0.0.1", where))


def flood(*arguments: Any) -> Any:
    return asyncio.run(work.flood(_open, *arguments))


def ping(*arguments: Any) -> Any:
    return asyncio.run(work.ping(_open, *arguments))


def dial(*arguments: Any) -> Any:
    return asyncio.run(work.dial(_open, *arguments))
