"""Messages through forced cuts and receiver restarts: each ends in exactly one outcome, and none is handed over twice.

Cuts and restarts never overlap: a restart waits until whatever a cut has left undecided is settled, and all is settled
again behind each restart. So every outcome belongs to one stretch of time, and *unknown* may only occur where the
receiver was killed.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.soak.common import MIB, Receiver, Report, Sender, all_settled, lines, poll, settle_accounts

_RESTART_WEIGHT = 4
"""A stretch with a restart has so many times the messages of a round of cuts: it takes longer."""

_REFUSED_EVERY = 500


class Window(NamedTuple):
    """From before a signal until all that was sent before its end is settled."""

    name: str
    begin: float
    end: float


def run(
    report: Report,
    *,
    messages: int = 1_000_000,
    senders: int = 4,
    cuts: int = 50,
    restarts: int = 5,
    payload_bytes: int = 100,
) -> None:
    """Send through cuts and restarts, and prove from the logs of both sides what became of every message."""
    begin = time.monotonic()
    rounds = _rounds(cuts, senders, restarts)
    unit = messages // senders // sum(_RESTART_WEIGHT if r is None else 1 for r in rounds)
    windows: list[Window] = []
    signals = [(signal.SIGTERM, signal.SIGKILL)[number % 2] for number in range(restarts)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        config = {"max_payload_bytes": 65_536, "limits": {"send_buffer_bytes": MIB}}
        more = {"payload_bytes": payload_bytes, "config": config, "refused_every": _REFUSED_EVERY}
        group = [stack.enter_context(Sender(receiver, number, **more)) for number in range(senders)]
        for sender in group:
            sender.wait_for("connected")
        told = 0
        for cut in rounds:
            if cut is None:
                windows.append(_restart(receiver, group, unit * _RESTART_WEIGHT, signals.pop(0)))
                told += unit * _RESTART_WEIGHT
            else:
                _cut(group[:cut], group[cut:], unit, told)
                told += unit
        rest = messages // senders - told
        for sender in group:
            sender.tell("send", count=rest)
            sender.wait_for("sent", 600, count=told + rest)
        all_settled(group)
        sending = time.monotonic() - begin
        ends = [sender.stop() for sender in group]
        finished = receiver.end(signal.SIGTERM)
        ledger = settle_accounts(report, group, receiver)
        report.figure("seconds", f"{sending:.1f}, {messages / sending:.0f} messages a second")
        report.figure("times that a sender found its buffer full and waited", sum(end["full"] for end in ends))
        report.holds("the last receiver ended by the signal", finished.code == -signal.SIGTERM, finished.code)
        report.holds("all messages were sent", len(ledger.outcomes) == messages // senders * senders)
        closed = Counter(event["category"] for sender in group for event in sender.events("closed"))
        report.figure("connections ended", dict(closed))
        report.holds("so many connections were cut", closed["connection_lost"] >= cuts, closed["connection_lost"])
        refused = {name for name in ledger.outcomes if int(name.split("-")[1]) % _REFUSED_EVERY == _REFUSED_EVERY - 1}
        refused -= ledger.handed_over  # a cut has no kind that is refused
        ends_of_refused = Counter(ledger.outcomes[name].category for name in refused)
        report.figure("messages of a kind that is refused", dict(ends_of_refused))
        report.holds(
            "messages of a kind that is refused ended so, or unknown where a cut left them undecided",
            not ends_of_refused.keys() - {"kind_not_allowed", "delivery_unknown"},
        )
        unknown = {name: o for name, o in ledger.ended("delivery_unknown").items() if name not in refused}
        elsewhere = dict(unknown)
        for window in windows:
            inside = {name for name, o in unknown.items() if window.begin <= o.at <= window.end}
            for name in inside:
                elsewhere.pop(name, None)
            accepted = sum(window.begin <= o.at <= window.end for o in ledger.ended("accepted").values())
            seconds = window.end - window.begin
            what = f"{len(inside)} unknown, {len(inside & ledger.handed_over)} of them handed over; "
            what += f"{accepted} accepted in {seconds:.1f} s from the signal on"
            report.figure(f"restart by {window.name}", what)
            if window.name == "SIGTERM":
                report.holds("no message is unknown because of a SIGTERM", not inside, len(inside))
        report.holds("no message is unknown because of a cut", not elsewhere, len(elsewhere))


def _rounds(cuts: int, senders: int, restarts: int) -> list[int | None]:
    """Rounds of so many cuts at once, and restarts (None) spread over them."""
    rounds: list[int | None] = [min(senders, cuts - done) for done in range(0, cuts, senders)]
    for number in range(restarts, 0, -1):
        rounds.insert(number * len(rounds) // (restarts + 1) if number < restarts else len(rounds), None)
    return rounds


def _cut(victims: list[Sender], others: list[Sender], count: int, told: int) -> None:
    """Let all of them send, and have the connections of some cut in the middle of it.

    The message that asks for the cut may have its outcome well before the connection ends.
    """
    ended = [len(sender.events("closed")) for sender in victims]
    for sender in victims:
        sender.tell("send", count=count, specials=[[count // 2, "cut"]])
    for sender in others:
        sender.tell("send", count=count)
    for sender, before in zip(victims, ended, strict=True):
        sender.wait_for("special", number=told + count // 2)
        sender.wait_for("closed", times=before + 1)


def _restart(receiver: Receiver, senders: list[Sender], count: int, number: signal.Signals) -> Window:
    """End the receiver in the middle of traffic, start it again, and wait until all is settled."""
    all_settled(senders)
    before = receiver.log.stat().st_size
    line = len(f"h {lines(receiver.log, 'h')[-1]}\n")
    for sender in senders:
        sender.tell("send", count=count)
    enough = before + line * count * len(senders) // 5
    poll("a part of the messages is handed over", lambda: receiver.log.stat().st_size > enough)
    begin = time.monotonic()
    receiver.end(number)
    receiver.start()
    all_settled(senders)
    return Window(number.name, begin, time.monotonic())
