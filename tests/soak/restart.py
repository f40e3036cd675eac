"""A receiver is started again on another port: all of its clients are back soon, and do not come all at once.

Once it is ended in order and started again at once; once it is killed and away for a while, so that every client waits
as long as it ever does between two attempts.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.soak.common import Program, Receiver, Report, loud, percentile, poll

_BACK_SECONDS = 2.0
_BIN_SECONDS = 0.1
_STAMPEDE = 0.5
"""So large a share of the clients within one bin would be one."""


def run(report: Report, *, clients: int = 200, processes: int = 4, away_seconds: float = 5.0) -> None:
    """Restart twice, and look when each client was back.

    :param away_seconds: for which there is no receiver, the second time.
    """
    each = clients // processes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        options = {"where": str(receiver.connection_file), "key_file": str(receiver.key_file), "clients": each}
        group = [
            stack.enter_context(Program(folder, f"c{number}", "tests.soak.clients", options))
            for number in range(processes)
        ]
        poll("all clients are in", lambda: _connected(group) == processes * each)
        at_once = len(loud(receiver.child.log))  # with the default limits, 128 may be pending
        for number, seconds in ((signal.SIGTERM, 0.0), (signal.SIGKILL, away_seconds)):
            port = receiver.child.port
            receiver.end(number)
            poll("all clients are out", lambda: _connected(group) == 0)
            over = time.monotonic() + seconds
            poll("the time without a receiver is over", partial(_is_past, over), seconds + 10)
            receiver.start()
            written = receiver.connection_file.stat().st_mtime_ns / 1e9
            poll("all clients are back", lambda: _connected(group) == processes * each)
            last = {
                (program.name, event["number"]): event["at"]
                for program in group
                for event in program.events("connected")
            }
            back = [at - written for at in last.values()]
            name = number.name
            report.holds(f"{name}: it has another port", receiver.child.port != port)
            latest = max(back)
            what = f"the last after {latest:.2f} s, median {percentile(back, 0.5):.2f} s"
            report.holds(
                f"{name}: all {len(back)} clients are back in {_BACK_SECONDS} s", latest <= _BACK_SECONDS, what
            )
            bins = Counter(int(after / _BIN_SECONDS) for after in back)
            shown = [bins[number] for number in range(max(bins) + 1)]
            report.figure(f"{name}: clients back in each {_BIN_SECONDS} s", shown)
            most = max(bins.values()) / len(back)
            report.holds(f"{name}: they do not come all at once", most <= _STAMPEDE, f"at most {most:.0%} in one")
        report.figure("lines above info while all clients came at once, at first", at_once)
        others = loud(receiver.output + receiver.child.log)[at_once:]
        report.holds("behind that, no receiver logged anything above info", not others, others or None)
        for program in group:
            report.holds(f"{program.name} wrote no error", not program.errors, program.errors or None)


def _connected(group: list[Program]) -> int:
    """Clients that are, by what they have said so far."""
    return sum(len(program.events("connected")) - len(program.events("closed")) for program in group)


def _is_past(moment: float) -> bool:
    return time.monotonic() >= moment
