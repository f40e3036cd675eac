"""What the tests of this folder do to a server, and how they see that it did not mind."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tests.child_handlers import ALIVE
from tests.raw_channel import PeerClosed
from tests.raw_peer import Peer
from tests.twistd_child import TwistdChild, assert_serves

KIND = "job.run"
PATIENCE = 20.0
LARGEST = 2 * 1024 * 1024

LIMITS = {
    "handshake_timeout_seconds": 5,
    "max_inflight": 256,
    "max_inflight_bytes": 8 * 1024 * 1024,
    "drain_seconds": 0.2,  # some handlers never end
}


def descriptors(pid: int) -> int | None:
    """How many a process has open; None where the system does not tell."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def resident_kib(pid: int) -> int | None:
    """Memory of a process; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.partition("VmRSS:")[2].split()[0])


class Victim(TwistdChild):
    """A server that knows how it was before anything was done to it."""

    def __init__(self, *options: str, limits: dict[str, Any] | None = None, **more: Any) -> None:
        settings = {"max_payload_bytes": LARGEST, "limits": {**LIMITS, **(limits or {})}, **more.pop("config", {})}
        super().__init__(*options, config=settings, **more)
        self._base: int | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        assert_serves(self)  # what is opened once, such as by the first turn, is
        with self.peer() as asking:
            for _ in range(20):
                self._ask(asking)
            found = descriptors(self.process.pid)
        self._base = None if found is None else found - 1
        return self

    def assert_unharmed(self, *before: Peer) -> None:
        """It serves who was there before and who comes now, has no descriptor too many, and no traceback.

        :param before: honest peers; none of them is closed.
        """
        self.assert_serves(*before)
        if self._base is not None:
            self._wait_for_descriptors(self._base + len(before))
        if "Traceback" in self.log:
            raise AssertionError(self.log[self.log.index("Traceback") - 500 :][:5_000])

    def assert_serves(self, *before: Peer) -> None:
        """In the middle of something: it serves who was there before and who comes now."""
        assert_serves(self, *before)

    def _wait_for_descriptors(self, wanted: int) -> None:
        """Each question is answered in a turn of its reactor, and sockets are closed in the turns between."""
        deadline = time.monotonic() + PATIENCE
        with self.peer() as asking:
            while (found := descriptors(self.process.pid)) != wanted + 1:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{found} descriptors are open where {wanted + 1} belong")
                self._ask(asking)

    @staticmethod
    def _ask(peer: Peer) -> None:
        if peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) != "accepted":
            raise AssertionError("it does not answer")


@contextmanager
def unharmed(victim: Victim) -> Iterator[Peer]:
    """A block in which something is done to the server; the honest peer that it gets is served before and behind it."""
    with victim.peer() as honest:
        assert_serves(victim, honest)
        yield honest
        gc.collect()  # sockets of this process that nobody holds any more
        victim.assert_unharmed(honest)


def ended_as(peer: Peer) -> str:
    """The category of the CLOSE of a connection that ended with one, else ``"reset"``."""
    try:
        category: str = peer.read_until_close()["category"]
    except PeerClosed:
        return "reset"
    with suppress(OSError):
        peer.end_writing()
    peer.wait_eof()
    return category


def until(second: int) -> None:
    """Wait for the wall clock: where a test is about time itself."""
    while (left := second - time.time()) > 0:
        threading.Event().wait(left)


def vectors(name: str) -> list[dict[str, Any]]:
    """The cases of a file of ``tests/vectors``."""
    path = Path(__file__).parent.parent / "vectors" / f"{name}.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return cases


class Crowd:
    """Somebody who does one thing again and again, from a thread, until the block ends.

    :ivar times: how often it was done; ``failed``: how often the system or the server cut it short.
    """

    def __init__(self, act: Callable[[], None], *, most: int, per_second: float | None = None) -> None:
        self.times = self.failed = 0
        self._act = act
        self._most = most
        self._pause = 0.0 if per_second is None else 1 / per_second
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due = time.monotonic()
        while self.times < self._most and not self._ending.wait(max(0.0, due - time.monotonic())):
            due += self._pause
            try:
                self._act()
            except OSError:
                self.failed += 1
            self.times += 1

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
