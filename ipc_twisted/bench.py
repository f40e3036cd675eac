"""``ipc-twisted bench``: how fast the link is on this machine, to a real ``twistd ipc``, with every check on."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.demo import child
from ipc_twisted.endpoints import connect
from ipc_twisted.errors import SendBufferFull
from ipc_twisted.protocol import SecureIPCProtocol
from ipc_twisted.tap import DEFAULT_KIND

TURN_BYTES = 128 * 1024
"""Sent in one turn of the reactor, as by a program that makes its messages while it runs."""

_TAKE = f"{__name__}:take"
_PREFIX = "ipc-twisted-bench-"
_ROUND_TRIPS = 2_000
_ROUND_TRIP_BYTES = 256
_KIB, _MIB = 2**10, 2**20


class _Row(NamedTuple):
    """One size, in words and in bytes, and the messages of it that are sent."""

    title: str
    size: int
    messages: int


_ROWS = (
    _Row("256 B", 256, 200_000),
    _Row("4 KiB", 4 * _KIB, 100_000),
    _Row("64 KiB", 64 * _KIB, 10_000),
    _Row("16 MiB", 16 * _MIB, 40),
)


def take(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    """A handler that does nothing."""


async def run(reactor: Any, out: TextIO, scale: float = 1.0) -> None:
    """Measure, and print a line for each size.

    :param scale: send so many times as many messages.
    :raises NotStartedError: ``twistd ipc`` ended instead of listening.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, child(Path(folder), "--handler", _TAKE) as server:
        connection = await connect(reactor, server.file)
        print(f"{'one way':>10}{'messages/s':>13}{'MiB/s':>9}{'µs of our processor time':>27}", file=out)
        for row in _ROWS:
            count = max(2, round(row.messages * scale))
            began, spent = time.perf_counter(), time.process_time()
            await flood(reactor, connection, bytes(row.size), count)
            seconds, spent = time.perf_counter() - began, time.process_time() - spent
            rate, cost = count / seconds, spent / count * 1e6
            print(f"{row.title:>10}{rate:>13,.0f}{rate * row.size / _MIB:>9,.0f}{cost:>27,.1f}", file=out, flush=True)
        await connection.close()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, child(Path(folder)) as server:
        times = await _round_trips(reactor, server.file, max(10, round(_ROUND_TRIPS * scale)))
    print(
        f"round trip of {_ROUND_TRIP_BYTES} B: {times[len(times) // 2] * 1e6:,.0f} µs in the middle, "
        f"99 % within {times[len(times) * 99 // 100] * 1e6:,.0f} µs",
        file=out,
    )


async def flood(reactor: Any, connection: SecureIPCProtocol, payload: bytes, count: int) -> None:
    """Send as fast as it goes, and wait for the receipt of the last: it says what became of all before, too.

    :param count: messages, at least 1.
    """
    a_turn = max(1, TURN_BYTES // len(payload))
    while count:
        for _ in range(min(count, a_turn)):
            try:
                delivery = connection.send(DEFAULT_KIND, payload)
            except SendBufferFull:
                await connection.drained()
                break
            count -= 1
        await deferLater(reactor, 0)
    await delivery


async def _round_trips(reactor: Any, file: Path, count: int) -> list[float]:
    """Seconds of each, ascending."""
    answers: list[Deferred[None]] = []
    connection = await connect(
        reactor, file, allowed_kinds=[DEFAULT_KIND], handler=lambda _envelope, _connection: answers.pop().callback(None)
    )
    payload, times = bytes(_ROUND_TRIP_BYTES), []
    for _ in range(count):
        answers.append(Deferred())
        answer, began = answers[0], time.perf_counter()
        connection.send(DEFAULT_KIND, payload)
        await answer
        times.append(time.perf_counter() - began)
    await connection.close()
    return sorted(times)
