"""Absolute deadlines on a reactor's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

LATE_SECONDS = 1.0
"""A deadline that fires this much too late was held up by this process, not missed by the peer."""


_T = TypeVar("_T")


def _nothing() -> None:
    """What becomes of a deadline that is closed."""


class Deadline:
    """One deadline that is set and taken back often: ``on_missed`` is called unless it is stopped in time.

    Setting and stopping cost an assignment; the reactor's timer is moved only when it fires. When this process itself
    was held up (stopped, a blocked reactor), every timer fires before what the peers have long sent is read: a
    deadline that fires late begins anew, once, instead of being held against the peer.

    :ivar due: when, on the clock; None: it was not started, or it was stopped or missed.
    """

    __slots__ = ("_call", "_clock", "_excused", "_late", "_on_missed", "_seconds", "due")

    def __init__(
        self, clock: IReactorTime, seconds: float, on_missed: Callable[[], None], *, late: float = LATE_SECONDS
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._on_missed = on_missed
        self._late = late
        self._call: IDelayedCall | None = None
        self.due: float | None = None
        self._excused = False  # it has begun anew; twice would be for ever where every turn takes long

    def start(self, seconds: float | None = None) -> None:
        """From now.

        :param seconds: only for a deadline that is not running: as long as this, this time.
        """
        seconds = self._seconds if seconds is None else seconds
        self.due = self._clock.seconds() + seconds
        self._excused = False
        if self._call is None:
            self._call = self._clock.callLater(seconds, self._fired)
        elif self._call.getTime() > self.due:  # the clock was set back
            self._call.reset(seconds)

    def stop(self) -> None:
        """What was waited for has come."""
        self.due = None

    def close(self) -> None:
        """For good: leave no timer behind, and hold nobody any more."""
        self.due = None
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._on_missed = _nothing

    def _fired(self) -> None:
        self._call = None
        if self.due is None:
            return
        late = self._clock.seconds() - self.due
        if late < 0:
            self._call = self._clock.callLater(-late, self._fired)
        elif late > self._late and not self._excused:
            self.start()
            self._excused = True
        else:
            self.due = None
            self._on_missed()


class Deadlines(Generic[_T]):
    """The same time for each of many, and one timer for all of them: the reactor's are dear where many come and go.

    As with :class:`Deadline`, who is found overdue by a timer that fired late has the time anew, once. Where the clock
    was set back, all have it anew: the reactor's is wall-clock time.

    :param on_missed: called with each that was not stopped in time.
    """

    def __init__(self, clock: IReactorTime, seconds: float, on_missed: Callable[[_T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._on_missed = on_missed
        self._due: dict[_T, tuple[float, bool]] = {}  # and whether it is the second time; the first is due first
        self._call: IDelayedCall | None = None
        self._looks_at = 0.0  # when it fires

    def start(self, who: _T) -> None:
        """From now."""
        due = self._clock.seconds() + self._seconds
        if self._call is not None and self._looks_at > due:  # else nobody who comes from now on would be timed
            self._due = {other: (due, again) for other, (_, again) in self._due.items()}
            self._cancel()
        self._due[who] = due, False
        if self._call is None:
            self._wait()

    def stop(self, who: _T) -> None:
        """What was waited for has come, or will not any more."""
        self._due.pop(who, None)

    def rest(self) -> None:
        """Leave no timer behind where nobody is waited for. Else the next time that it fires nothing happens."""
        if not self._due:
            self._cancel()

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._call = None
        now = self._clock.seconds()
        late = now - self._looks_at > LATE_SECONDS
        while self._due:
            who, (due, again) = next(iter(self._due.items()))
            if due > now:
                break
            del self._due[who]
            if late and not again:
                self._due[who] = now + self._seconds, True
            else:
                self._on_missed(who)
        self._cancel()  # a newcomer, at which who was told has had it start: the first that is left is due before
        self._wait()

    def _wait(self) -> None:
        """Until the first is due."""
        if self._due:
            self._looks_at, _ = next(iter(self._due.values()))
            self._call = self._clock.callLater(max(0.0, self._looks_at - self._clock.seconds()), self._look)
