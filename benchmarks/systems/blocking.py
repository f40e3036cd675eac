"""The work of a sender whose calls block."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.work import Meter, percentiles, stamped


class Link(Protocol):
    """A connection that is authenticated, or will be before a message moves."""

    def send(self, message: bytes) -> None: ...

    def receive(self) -> bytes: ...

    def close(self) -> None: ...


Open = Callable[[Any], Link]


def flood(connect: Open, where: Any, size: int, warm: int, count: int) -> dict[str, Any]:
    link, payload = connect(where), bytes(size)
    send = link.send
    for phase in (warm, count):
        meter = Meter()
        for _ in range(phase):
            send(payload)
        receiver = json.loads(link.receive())
        sender = meter.read()
    link.close()
    return {"sender": sender, "receiver": receiver}


def ping(connect: Open, where: Any, size: int, count: int) -> dict[str, float]:
    link, payload, times = connect(where), bytes(size), []
    for _ in range(count):
        sent = time.monotonic_ns()
        link.send(payload)
        link.receive()
        times.append(time.monotonic_ns() - sent)
    link.close()
    return percentiles(times)


def dial(connect: Open, where: Any, count: int) -> dict[str, Any]:
    meter = Meter()
    for _ in range(count):
        link = connect(where)
        link.send(b"hello")
        link.receive()
        link.close()
    return {"sender": meter.read()}


def paced(connect: Open, where: Any, size: int, count: int, rate: int) -> dict[str, Any]:
    link, sent, began = connect(where), 0, time.perf_counter()
    link.send(stamped(size))  # so that the connection is there
    while sent < count:
        due = min(count, int((time.perf_counter() - began) * rate))
        while sent < due:
            link.send(stamped(size))
            sent += 1
        time.sleep(0.001)
    ways: dict[str, Any] = json.loads(link.receive())
    link.close()
    return ways
