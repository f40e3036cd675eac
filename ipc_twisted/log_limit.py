"""Lines about strangers, bounded: whoever can open a connection must not be able to fill the disk."""

from __future__ import annotations

from collections.abc import Hashable

from twisted.internet.interfaces import IReactorTime

LINES = 5
SECONDS = 10.0


class LogLimit:
    """At most ``LINES`` lines of one label in ``SECONDS``; the next line that is written says how many were left
    out."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._windows: dict[Hashable, tuple[float, int, int]] = {}  # when it began, lines written, lines left out

    def admit(self, label: Hashable) -> int | None:
        """None: leave this line out. Else write it, and say that this many were left out before it."""
        now = self._clock.seconds()
        began, written, left_out = self._windows.get(label, (now, 0, 0))
        if not 0 <= now - began < SECONDS:  # below 0: the clock was set back
            began, written = now, 0
        if written >= LINES:
            self._windows[label] = began, written, left_out + 1
            return None
        self._windows[label] = began, written + 1, 0
        return left_out
