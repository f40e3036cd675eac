"""Handlers that take 10 ms a message against senders at full speed: memory stays within its bounds, nothing is lost.

One sender waits for ``drained()`` whenever its buffer is full, the other does not and is told *send buffer full*.
"""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.soak.common import MIB, Receiver, Report, Sender, lines, peak_rss, poll, rss, settle_accounts

_INFLIGHT_BYTES = 4 * MIB
_BUFFER_BYTES = 8 * MIB
_SLACK_BYTES = 32 * MIB


def run(
    report: Report,
    *,
    seconds: float = 30.0,
    handler_seconds: float = 0.01,
    ttl_seconds: int = 30,
    max_inflight: int = 1_000,
    payload_bytes: int = 1_000,
    blocking: bool = False,
) -> None:
    """Send for some time, wait for all outcomes, and look at the memory of all three processes.

    :param blocking: the handlers block their process, instead of returning a Deferred each.
    """
    target = f"{'block' if blocking else 'queue'}:{handler_seconds}"
    limits = {"max_inflight": max_inflight, "max_inflight_bytes": _INFLIGHT_BYTES, "send_buffer_bytes": _BUFFER_BYTES}
    config = {"max_payload_bytes": 65_536, "limits": limits}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder, config, {"ttl_seconds": ttl_seconds}))
        more = {"payload_bytes": payload_bytes, "config": config, "target": target}
        waiting = stack.enter_context(Sender(receiver, 0, **more))
        pushing = stack.enter_context(Sender(receiver, 1, **more, waits=False))
        group = [waiting, pushing]
        for sender in group:
            sender.wait_for("connected")
        pids = {"receiver": receiver.pid} | {sender.name: sender.process.pid for sender in group}
        base = {name: rss(pid) for name, pid in pids.items()}
        for sender in group:
            sender.tell("send", seconds=seconds)
        for sender in group:
            sender.wait_for("sent", seconds + 2 * ttl_seconds + 60, times=2)
        for sender in group:
            sender.wait_settled(sender.ask_settled(), 2 * ttl_seconds + 60)
        bounds = {"receiver": 2 * _INFLIGHT_BYTES, "s0": _BUFFER_BYTES, "s1": _BUFFER_BYTES}
        for name, pid in pids.items():
            grown, most = peak_rss(pid) - base[name], bounds[name] + _SLACK_BYTES
            figures = f"{grown / MIB:.1f} MiB on top of {base[name] / MIB:.1f}, {most / MIB:.0f} are allowed"
            report.holds(f"{name} does not grow beyond its bounds", grown <= most, figures)
        ends = {sender.name: sender.stop() for sender in group}
        handed = receiver.handed_over(1)
        longest = 2 * max_inflight * handler_seconds + 30
        poll("all handlers are done", lambda: len(lines(receiver.log, "d")) == handed, longest, every=0.1)
        receiver.end(signal.SIGTERM)
        ledger = settle_accounts(report, group, receiver)
        for sender in group:
            own = {o.category for name, o in ledger.outcomes.items() if name.startswith(f"{sender.name}-")}
            report.holds(f"{sender.name}: accepted, or expired unsent", own <= {"accepted", "expired"}, sorted(own))
            end = ends[sender.name]
            report.holds(f"{sender.name} was told that its buffer is full", end["full"], end["full"])
            most_buffered = end["most_buffered"]
            report.holds(f"{sender.name} kept to its buffer", most_buffered <= _BUFFER_BYTES, f"{most_buffered} bytes")
        report.figure("handlers that ended", len(lines(receiver.log, "d")))
