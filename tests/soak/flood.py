"""A flood of silent connects: honest clients still get in, and work on an open connection goes on.

At 200 connects a second at least 99 % of the clients get in with one attempt of ten seconds, at full speed at least
90 %. Once the flooder completes each connect; once it does not wait for them, and the kernel drops most of what comes,
honest or not: then the promise is for the clients whose connect came through, and how many did not is a figure.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.raw_peer import Peer
from tests.soak.common import KIND, Control, Program, Receiver, Report, loud, percentile, poll
from tests.wire_peer import WireError

_PAUSE = 0.02  # between an honest client and the next: they need a processor too


class Flood(NamedTuple):
    """How fast, and what share of the honest clients must get in.

    :ivar rate: connects a second; 0: as many as go.
    :ivar spray: the flooder does not wait until a connect has succeeded.
    """

    name: str
    rate: float
    spray: bool
    share: float


FLOODS = (
    Flood("200 a second", 200.0, False, 0.99),
    Flood("full speed", 0.0, False, 0.90),
    Flood("full speed without waiting", 0.0, True, 0.90),
)


def run(report: Report, *, seconds: float = 30.0, clients: int = 4, threads: int = 4) -> None:
    """Flood in each way, for so many seconds each.

    :param clients: honest ones at a time, one after the other in as many threads.
    :param threads: of the flooder.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        receiver = stack.enter_context(Receiver(folder))
        control = stack.enter_context(Control(receiver))
        control.report()
        for flood in FLOODS:
            _flood(report, receiver, control, flood, seconds, clients, threads)
            poll("the strangers are gone", lambda: control.statistics().pending == 0)
        report.figure("handshakes", control.statistics().handshakes)
        marks = ("evicted", "connection_lost", "handshake_timeout")
        others = [line for line in loud(receiver.child.log) if not any(mark in line for mark in marks)]
        report.holds("it logged nothing else above info", not others, others or None)


def _flood(
    report: Report, receiver: Receiver, control: Control, flood: Flood, seconds: float, clients: int, threads: int
) -> None:
    options = {
        "port": receiver.child.port,
        "rate": flood.rate,
        "spray": flood.spray,
        "seconds": seconds,
        "threads": threads,
    }
    name = flood.name
    with Program(receiver.folder, f"flooder at {name}", "tests.soak.flooder", options) as flooder:
        flooder.wait_for("begun")
        honest = [_Honest(receiver) for _ in range(clients)]
        try:
            waited = _work(control, flooder, seconds + 30)
            end = flooder.wait_for("ended")
        finally:
            for client in honest:
                client.over.set()
            for client in honest:
                client.join()
        report.holds(f"{name}: the flooder wrote no error", not flooder.errors, flooder.errors or None)
    entered = [took for client in honest for took in client.entered]
    refused = Counter(why for client in honest for why in client.refused)
    unheard = sum(client.unheard for client in honest)
    report.figure(f"{name}: connects of the flooder", f"{end['count']}, {end['count'] / seconds:.0f} a second")
    report.figure(f"{name}: threads of the flooder that hung in the kernel", end["hung"])
    tried = len(entered) + refused.total() + (0 if flood.spray else unheard)
    what = f"{len(entered)} of {tried}, {dict(refused)}"
    enough = len(entered) >= flood.share * tried - 1  # one is no share: a short flood that waits for nothing hears few
    report.holds(f"{name}: {flood.share:.0%} of honest clients get in", enough and (flood.spray or entered), what)
    report.figure(f"{name}: honest clients whose connect did not come through in ten seconds", unheard)
    report.figure(f"{name}: seconds to get in and be served", _spread(entered))
    report.figure(f"{name}: seconds for a message on an open connection", _spread(waited))
    report.holds(f"{name}: work on an open connection goes on", len(waited) >= seconds, len(waited))


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
    :ivar refused: what each other ended in whose connect came through.
    :ivar unheard: how many there were whose connect did not.
    """

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._port, self._key = receiver.child.port, receiver.key
        self.over = threading.Event()
        self.entered: list[float] = []
        self.refused: list[str] = []
        self.unheard = 0
        self.start()

    def run(self) -> None:
        while not self.over.wait(_PAUSE):
            begin = time.monotonic()
            try:
                peer = Peer.open(self._port)
            except OSError:
                self.unheard += 1
                continue
            try:
                with peer:
                    peer.handshake(self._key)
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
