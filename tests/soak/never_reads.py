"""Peers that never read, and peers that read and never send a receipt, while the server's handler sends to them.

The ones end with ``write_stalled``, the others with ``receipt_timeout``, and the memory they took is free again. A
server that is told to end while they are connected ends in its time.
"""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.raw_peer import Peer
from tests.soak.common import KIND, MIB, Control, Receiver, Report, loud, peak_rss, poll, rss

_PAYLOAD_BYTES = 32_768
_BUFFER_BYTES = 8 * MIB
_MAX_PAYLOAD_BYTES = MIB
_SLACK_BYTES = 8 * MIB
_LIMITS = (MIB, 30, 100_000, 1 << 30)
"""Of the peers: so much credit that it is never what holds the server back."""


def run(
    report: Report,
    *,
    peers: int = 8,
    rounds: int = 3,
    write_stall_seconds: float = 2.0,
    receipt_timeout_seconds: float = 8.0,
    drain_seconds: float = 3.0,
) -> None:
    """Let them come in rounds; then end a server that has them.

    :param peers: of each sort, at a time.
    """
    limits = {"send_buffer_bytes": _BUFFER_BYTES, "drain_seconds": drain_seconds}
    low = {"write_stall_seconds": write_stall_seconds, "receipt_timeout_seconds": receipt_timeout_seconds}
    with ExitStack() as stack:
        receiver = _receiver(stack, {**limits, **low})
        control = stack.enter_context(Control(receiver))
        _round(receiver, control, 1)  # whatever is made once is there now
        base = control.resident()
        for number in range(1, rounds + 1):
            seconds = _round(receiver, control, peers)
            kept = rss(receiver.pid) - base
            grown = control.resident() - base
            what = f"{grown / MIB:+.1f} MiB in use behind it, {kept / MIB:+.1f} with what the allocator keeps"
            report.figure(f"round {number}", f"all were ended within {seconds:.1f} s; {what}")
        most, bound = peak_rss(receiver.pid) - base, 2 * peers * _BUFFER_BYTES + 4 * _SLACK_BYTES
        what = f"{most / MIB:.1f} MiB on top of {base / MIB:.1f}, {bound / MIB:.0f} are allowed"
        report.holds("the server keeps to its send buffers", most <= bound, what)
        grown = control.resident() - base
        report.holds("the memory is free again", grown <= _SLACK_BYTES, f"{grown / MIB:+.1f} MiB")
        held = control.report()
        each = rounds * peers + 1
        ended = held["statistics"]["ended"]
        as_promised = ended == {"write_stalled": each, "receipt_timeout": each}
        report.holds("each ended as it deserves", as_promised, ended)
        report.holds("no connection is left but the one that asks", held["transports"] == 1, held["transports"])
        marks = ("write_stalled", "receipt_timeout")
        others = [line for line in loud(receiver.child.log) if not any(mark in line for mark in marks)]
        report.holds("it logged nothing else above info", not others, others or None)
    with ExitStack() as stack:
        receiver = _receiver(stack, limits)
        _connect(stack, receiver, peers)
        with Control(receiver) as control:
            full = 2 * peers * (_BUFFER_BYTES - 2 * _PAYLOAD_BYTES)
            poll("all send buffers are full", lambda: control.statistics().buffered >= full, every=0.05)
        begin = time.monotonic()
        finished = receiver.end(signal.SIGTERM)
        seconds = time.monotonic() - begin
        what = f"{seconds:.2f} s with drain_seconds {drain_seconds}"
        report.holds("a server with such peers ends in its time", seconds <= drain_seconds + 2, what)
        report.holds("it ends by the signal", finished.code == -signal.SIGTERM, finished.code)


def _receiver(stack: ExitStack, limits: Mapping[str, float]) -> Receiver:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
    return stack.enter_context(Receiver(folder, {"max_payload_bytes": _MAX_PAYLOAD_BYTES, "limits": limits}))


def _round(receiver: Receiver, control: Control, peers: int) -> float:
    """Have them connected, and wait until the server has ended all of them; how long that took."""
    begin = time.monotonic()
    with ExitStack() as stack:
        _connect(stack, receiver, peers)
        poll("the server ends all of them", lambda: control.report()["transports"] == 1, every=0.05)
        return time.monotonic() - begin


def _connect(stack: ExitStack, receiver: Receiver, peers: int) -> None:
    """So many of each sort; at the end of ``stack`` none is left."""
    for number in range(2 * peers):
        reads = number % 2 == 1
        peer = stack.enter_context(
            Peer.connect(receiver.child.port, receiver.key, limits=_LIMITS, receive_buffer=None if reads else 4_096)
        )
        peer.send_envelope(KIND, trace_id=f"silent-{number}", target=f"send:{_PAYLOAD_BYTES}")
        if reads:
            peer.sock.settimeout(None)
            thread = threading.Thread(target=_read, args=[peer.sock])
            thread.start()
            stack.callback(thread.join)
            stack.callback(_end, peer.sock)


def _read(sock: socket.socket) -> None:
    """All that comes, and nobody looks at it."""
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass


def _end(sock: socket.socket) -> None:
    with suppress(OSError):  # the server has ended it
        sock.shutdown(socket.SHUT_RDWR)
