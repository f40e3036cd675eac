"""This package through its public interface: both services' defaults, receipts for every message."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.task import deferLater

from benchmarks.systems import reactor as work
from benchmarks.work import OnMessage
from ipc_twisted import (
    ExecutionIPCConfig,
    Keyring,
    SecureEnvelope,
    SecureIPCFactory,
    SecureIPCProtocol,
    connect,
    listen,
)
from ipc_twisted.bench import flood as flood_connection

KIND = "job.run"


def config(largest: int = 16 * 2**20, **auth: int) -> ExecutionIPCConfig:
    """The defaults; limits raised as far as a payload of ``largest`` bytes needs."""
    room = max(64 * 2**20, largest + 2**20)
    return ExecutionIPCConfig.from_mapping(
        {
            "allowed_kinds": [KIND],
            "max_payload_bytes": largest,
            "limits": {"max_inflight_bytes": room, "send_buffer_bytes": room},
            "auth": auth,
        }
    )


def receive(
    on_message: OnMessage,
    announce: Callable[[Any], None],
    settings: ExecutionIPCConfig | None = None,
    made: Callable[[SecureIPCFactory], None] = lambda _: None,
) -> None:
    def handler(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        answer = on_message(envelope.payload_bytes)
        if answer is not None:
            connection.send(KIND, answer)

    async def start(reactor: Any) -> None:
        secret = secrets.token_bytes(32)
        factory = SecureIPCFactory(reactor, settings or config(), Keyring([secret]), handler)
        made(factory)
        port: Any = await listen(reactor, factory)
        announce({"port": port.getHost().port, "secret": secret.hex()})

    work.serve(start)


class Link:
    def __init__(self) -> None:
        self._answers = work.Answers()
        self.receive = self._answers.receive

    async def open(self, reactor: Any, where: Any, settings: ExecutionIPCConfig | None) -> Link:
        self._reactor = reactor
        self.connection = await connect(
            reactor,
            where["port"],
            Keyring([bytes.fromhex(where["secret"])]),
            handler=self._came,
            config=settings or config(),
        )
        return self

    def _came(self, envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
        self._answers.came(envelope.payload_bytes)

    def send(self, message: bytes) -> None:
        self.connection.send(KIND, message)

    async def send_many(self, payload: bytes, count: int) -> None:
        await flood_connection(self._reactor, self.connection, payload, count)

    def close(self) -> Awaitable[Any]:
        return self.connection.close()


def _open(reactor: Any, settings: ExecutionIPCConfig | None = None) -> work.Open:
    return lambda where: Link().open(reactor, where, settings)


def flood(where: Any, *numbers: int, settings: ExecutionIPCConfig | None = None) -> Any:
    return work.run(lambda reactor: work.flood(_open(reactor, settings), where, *numbers))


def ping(where: Any, *numbers: int) -> Any:
    return work.run(lambda reactor: work.ping(_open(reactor), where, *numbers))


def dial(where: Any, *numbers: int) -> Any:
    return work.run(lambda reactor: work.dial(_open(reactor), where, *numbers))


def paced(where: Any, *numbers: int) -> Any:
    async def run(reactor: Any) -> Any:
        return await work.paced(_open(reactor), lambda s: deferLater(reactor, s), where, *numbers)

    return work.run(run)
