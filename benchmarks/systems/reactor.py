"""The work of a sender under Twisted, or under asyncio."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from benchmarks.work import Meter, percentiles, stamped


class Link(Protocol):
    """A connection that is authenticated, if the system does that."""

    async def send_many(self, payload: bytes, count: int) -> None:
        """Send as fast as the system lets one."""

    def send(self, message: bytes) -> None: ...

    def receive(self) -> Awaitable[bytes]: ...

    def close(self) -> Awaitable[Any]: ...


Open = Callable[[Any], Awaitable[Link]]


async def flood(connect: Open, where: Any, size: int, warm: int, count: int) -> dict[str, Any]:
    link, payload = await connect(where), bytes(size)
    for phase in (warm, count):
        meter = Meter()
        answer = link.receive()
        await link.send_many(payload, phase)
        receiver = json.loads(await answer)
        sender = meter.read()
    await link.close()
    return {"sender": sender, "receiver": receiver}


async def ping(connect: Open, where: Any, size: int, count: int) -> dict[str, float]:
    link, payload, times = await connect(where), bytes(size), []
    for _ in range(count):
        sent = time.monotonic_ns()
        answer = link.receive()
        link.send(payload)
        await answer
        times.append(time.monotonic_ns() - sent)
    await link.close()
    return percentiles(times)


async def dial(connect: Open, where: Any, count: int) -> dict[str, Any]:
    meter = Meter()
    for _ in range(count):
        link = await connect(where)
        answer = link.receive()
        link.send(b"hello")
        await answer
        await link.close()
    return {"sender": meter.read()}


async def paced(
    connect: Open, sleep: Callable[[float], Awaitable[Any]], where: Any, size: int, count: int, rate: int
) -> dict[str, Any]:
    link, sent, began = await connect(where), 0, time.perf_counter()
    answer = link.receive()
    link.send(stamped(size))  # as the blocking ones do
    while sent < count:
        due = min(count, int((time.perf_counter() - began) * rate))
        while sent < due:
            link.send(stamped(size))
            sent += 1
        await sleep(0.001)
    ways: dict[str, Any] = json.loads(await answer)
    await link.close()
    return ways


class Answers:
    """What came back, for who waits for it."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[bytes]] = []

    def receive(self) -> Deferred[bytes]:
        waiting: Deferred[bytes] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def came(self, answer: bytes) -> None:
        self._waiting.pop(0).callback(answer)


def run(work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Run ``work(reactor)`` to its end in a reactor, and return what it does."""
    results: list[Any] = []

    async def main(reactor: Any) -> None:
        results.append(await work(reactor))

    try:
        react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    except SystemExit as end:
        if end.code:
            raise
    return results[0]


def under_a_reactor(
    work: Callable[..., Coroutine[Any, Any, Any]], connect: Callable[[Any], Open]
) -> Callable[..., Any]:
    """One of the functions above, run to its end; ``connect(reactor)`` makes its first argument."""
    return lambda *arguments: run(lambda reactor: work(connect(reactor), *arguments))


def serve(start: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
    """Run ``start(reactor)``, and the reactor until the process is ended."""

    async def forever(reactor: Any) -> None:
        await start(reactor)
        await Deferred()

    react(lambda reactor: Deferred.fromCoroutine(forever(reactor)))
