"""Connections that come and go, and many at once: descriptors, timers and memory return to what they were.

Resets come at every stage: right behind the connect, in the middle of a first message, behind the handshake, and with
an envelope half sent. An idle authenticated connection may cost 16 KiB; where they go is shown by a second receiver
that traces its memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.raw_peer import Peer
from tests.soak.common import KIND, MIB, Control, Receiver, Report, descriptors, loud, poll

_PER_CONNECTION_BYTES = 16 * 1024
_SLACK_BYTES = 2 * MIB
_STAGES = 4
_DEADLINES = 4  # handshake, frame, write stall, receipt; a timer may outlast what it was for


def run(report: Report, *, cycles: int = 10_000, connections: int = 500, rounds: int = 3, lines: int = 20) -> None:
    """Hold many connections at once, in rounds; then connect and reset; then show where the memory of the first goes.

    :param lines: of code to show, those that take the most memory.
    """
    with ExitStack() as stack:
        receiver = _receiver(stack)
        control = stack.enter_context(Control(receiver))
        _warm_up(receiver)
        before = base = _settled(control, receiver)
        report.figure("at first", base)
        for number in range(1, rounds + 1):
            with ExitStack() as held:
                _hold(held, receiver, connections)
                poll("all are in", lambda: control.statistics().connections == connections + 1)
                if number == 1:  # later ones find what Python keeps for itself
                    _weigh(report, control, before, connections)
            after = _settled(control, receiver)
            report.figure(f"behind {connections} at once, round {number}", after)
            if number == 1:
                base = {**before, "memory": after["memory"]}
        _compare(report, f"{connections} connections at once", base, after)
        report.holds("none of them was refused", control.statistics().ended.keys() == {"connection_lost"})
        base = after
        _resets(receiver, cycles)
        after = _settled(control, receiver)
        report.figure(f"behind {cycles} connects and resets", after)
        _compare(report, "connects and resets", base, after)
        others = [line for line in loud(receiver.child.log) if "connection_lost" not in line]
        report.holds("it logged nothing else above info", not others, others or None)
    with ExitStack() as stack:
        receiver = _receiver(stack)
        control = stack.enter_context(Control(receiver))
        _warm_up(receiver)
        _settled(control, receiver)
        control.ask("trace")
        traced = control.report()["traced"]
        _hold(stack, receiver, connections)
        found = control.report()
        report.figure("bytes of Python's allocators each", f"{(found['traced'] - traced) / connections:.0f}")
        for line, size, count in found["by_line"][:lines]:
            report.figure(f"  {line}", f"{size / connections:.0f} bytes in {count / connections:.1f} blocks each")


def _weigh(report: Report, control: Control, before: Mapping[str, int], connections: int) -> None:
    each = (control.resident() - before["memory"]) / connections
    what = f"{each:.0f} bytes of resident memory, {connections} connections"
    report.holds("an idle authenticated connection takes at most 16 KiB", each <= _PER_CONNECTION_BYTES, what)
    timers = control.report()["timers"]
    most = _DEADLINES * connections + before["timers"]
    report.holds("it takes at most a timer for each of its deadlines", timers <= most, timers)


def _receiver(stack: ExitStack) -> Receiver:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
    return stack.enter_context(Receiver(folder))


def _warm_up(receiver: Receiver) -> None:
    """Whatever is made once is there then."""
    _resets(receiver, 10 * _STAGES)
    with ExitStack() as held:
        _hold(held, receiver, 10)


def _resets(receiver: Receiver, cycles: int) -> None:
    port, key = receiver.child.port, receiver.key
    for number in range(cycles):
        stage = number % _STAGES
        peer = Peer.open(port)
        if stage == 1:
            peer.send_raw(b"\0\0\0\x40IPCT")
        elif stage > 1:
            peer.handshake(key)
            if stage == _STAGES - 1:
                peer.send_raw(peer.envelope_frame(KIND, bytes(1_000))[1][:500])
        peer.abort()


def _hold(stack: ExitStack, receiver: Receiver, connections: int) -> None:
    port, key = receiver.child.port, receiver.key
    """So many that have been used and say nothing now."""
    for _ in range(connections):
        peer = stack.enter_context(Peer.connect(port, key))
        peer.receipt_for(peer.send_envelope(KIND, target="alive"))


def _settled(control: Control, receiver: Receiver) -> dict[str, int]:
    """What it holds once no connection is left but the one that asks."""
    poll("all others are gone", lambda: control.report()["transports"] == 1)
    held = control.report()
    return {
        "descriptors": descriptors(receiver.pid),
        "timers": held["timers"],
        "sockets": held["sockets"],
        "objects": held["objects"],
        "memory": control.resident(),
    }


def _compare(report: Report, what: str, base: dict[str, int], after: dict[str, int]) -> None:
    for name in ("descriptors", "sockets"):
        report.holds(f"{what}: {name} return to what they were", after[name] == base[name], after[name])
    # The connection that asks has timers of its own, which come and go.
    report.holds(
        f"{what}: timers return to what they were", abs(after["timers"] - base["timers"]) <= 2, after["timers"]
    )
    grown = after["memory"] - base["memory"]
    report.holds(f"{what}: memory returns to what it was", grown <= _SLACK_BYTES, f"{grown / MIB:+.2f} MiB")
