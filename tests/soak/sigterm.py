"""SIGTERM while a thousand messages are in slow handlers: every accepted one is handled, and every sender knows."""

from __future__ import annotations

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.soak.common import Receiver, Report, Sender, lines, loud, settle_accounts


def run(
    report: Report, *, messages: int = 1_000, senders: int = 4, handler_seconds: float = 1.0, late: bool = True
) -> None:
    """Fill the handlers, end the receiver, and look at what both sides know.

    :param late: as much again is sent right behind the signal. What is not handed over any more stays with its
        sender.
    """
    each = messages // senders
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        more = {"target": f"wait:{handler_seconds}", "config": {"limits": {"drain_seconds": 1}}}
        group = [stack.enter_context(Sender(receiver, number, **more)) for number in range(senders)]
        for sender in group:
            sender.wait_for("connected")
        for sender in group:
            sender.tell("send", count=each)
        receiver.handed_over(each * senders)
        running = len(lines(receiver.log, "h")) - len(lines(receiver.log, "d"))
        begin = time.monotonic()
        receiver.child.signal(signal.SIGTERM)
        for sender in group if late else ():
            sender.tell("send", count=each)
        finished = receiver.ended()
        seconds = time.monotonic() - begin
        for sender in group:
            sender.stop()
        report.figure("handlers that ran at the signal", running)
        report.figure("seconds from the signal to the end", f"{seconds:.2f}")
        ledger = settle_accounts(report, group, receiver)
        handled = lines(receiver.log, "d")
        report.holds("handlers ran when the signal came", running >= min(messages // 2, 1), running)
        report.holds("all that was handed over was handled, once", sorted(handled) == sorted(ledger.handed_over))
        report.holds("it ended by the signal", finished.code == -signal.SIGTERM, finished.code)
        report.holds("it logged nothing above info", not loud(finished.output), loud(finished.output) or None)
        unknown = ledger.ended("delivery_unknown")
        report.holds("every sender knows what became of each message", not unknown, f"{len(unknown)} unknown")
