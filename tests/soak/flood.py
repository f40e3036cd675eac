"""A flood of silent connects: honest clients still get in, and work on an open connection goes on.

At 200 connects a second at least 99 % of the clients get in, at full speed at least 90 %, each with one attempt of ten
seconds; a client service would try again.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.raw_peer import Peer
from tests.soak.common import KIND, Control, Program, Receiver, Report, loud, percentile, poll
from tests.wire_peer import WireError

_SLOW = 200.0
_PAUSE = 0.02  # between an honest client and the next: they need a processor too


def run(report: Report, *, seconds: float = 30.0, clients: int = 4, threads: int = 16, spray: bool = True) -> None:
    """Flood at both speeds, for so many seconds each.

    :param threads: of the flooder.
    :param spray: at full speed, it does not even wait until a connect has succeeded.
    :param clients: honest ones at a time, one after the other in as many threads.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        control = stack.enter_context(Control(receiver))
        control.report()
        for name, rate, share in (("200/s", _SLOW, 0.99), ("full speed", 0.0, 0.90)):
            options = {"port": receiver.child.port, "rate": rate, "seconds": seconds, "threads": threads}
            options["spray"] = spray and not rate
            with Program(folder, f"flooder at {name.replace('/', ' a ')}", "tests.soak.flooder", options) as flooder:
                flooder.wait_for("begun")
                honest = [_Honest(receiver) for _ in range(clients)]
                waited = _work(control, flooder, seconds + 30)
                ended = flooder.wait_for("ended")
                for client in honest:
                    client.over.set()
                for client in honest:
                    client.join()
                report.holds(f"the flooder at {name} wrote no error", not flooder.errors, flooder.errors or None)
            entered = [took for client in honest for took in client.entered]
            refused = [why for client in honest for why in client.refused]
            report.figure(f"{name}: connects", f"{ended['count']}, {ended['count'] / seconds:.0f} a second")
            tried = len(entered) + len(refused)
            what = f"{len(entered)} of {tried}, {dict(Counter(refused))}"
            report.holds(f"{name}: {share:.0%} of honest clients get in", len(entered) >= share * tried > 0, what)
            report.figure(f"{name}: seconds to get in and be served", _spread(entered))
            report.figure(f"{name}: seconds for a message on an open connection", _spread(waited))
            report.holds(f"{name}: work on an open connection goes on", len(waited) >= seconds, len(waited))
            poll("the strangers are gone", lambda: control.statistics().pending == 0)
        report.figure("handshakes", control.statistics().handshakes)
        marks = ("evicted", "connection_lost", "handshake_timeout")
        others = [line for line in loud(receiver.child.log) if not any(mark in line for mark in marks)]
        report.holds("it logged nothing else above info", not others, others or None)


def _work(control: Control, flooder: Program, seconds: float) -> list[float]:
    """Send on an open connection while the flood lasts; how long each message took."""
    waited = []
    deadline = time.monotonic() + seconds
    while not flooder.events("ended") and time.monotonic() < deadline:
        begin = time.monotonic()
        control.ask("alive")
        waited.append(time.monotonic() - begin)
        time.sleep(_PAUSE)
    return waited


class _Honest(threading.Thread):
    """Clients that connect, send a message, and go, one after the other.

    :ivar over: set it to end them.
    :ivar entered: how long each took that was served.
    :ivar refused: what each other ended in.
    """

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._port, self._key = receiver.child.port, receiver.key
        self.over = threading.Event()
        self.entered: list[float] = []
        self.refused: list[str] = []
        self.start()

    def run(self) -> None:
        while not self.over.wait(_PAUSE):
            begin = time.monotonic()
            try:
                with Peer.connect(self._port, self._key) as peer:
                    outcome = peer.receipt_for(peer.send_envelope(KIND, target="alive"))
            except (OSError, WireError) as problem:
                outcome = type(problem).__name__
            if outcome == "accepted":
                self.entered.append(time.monotonic() - begin)
            else:
                self.refused.append(outcome)


def _spread(values: list[float]) -> str:
    figures = ", ".join(f"{name} {percentile(values, share):.3f}" for name, share in (("median", 0.5), ("99 %", 0.99)))
    return f"{figures}, longest {max(values, default=0):.3f}"
