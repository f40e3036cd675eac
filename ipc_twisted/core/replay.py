"""The replay guard: nothing that could still be accepted is ever forgotten.

Rules, in the order they are applied to a message whose signature has been verified:

1. A message older than ``floor`` is rejected: its second has been forgotten, so nobody can tell whether it was seen.
2. A nonce that is remembered is rejected, whatever its ``ts``.
3. When ``capacity`` nonces are remembered, the oldest whole second is forgotten and ``floor`` rises past it; never the
   current second nor the one before. If nothing may be forgotten, the message is rejected.

``floor`` never falls. Under load, or when the clock goes back, the window shrinks; it is never open. The sustained
rate is ``capacity / 2`` messages a second.

Cost: one set look-up and one list append a message. Nothing is done for a million entries at once, which would stall
the reactor: what is forgotten leaves the set a few entries a message (until then it is rejected as ``replayed`` or by
the floor, both of which are safe), and the set is many small ones, of which one grows at a time. Memory: one set slot,
one list slot and the nonce itself for each entry.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Protocol

from ipc_twisted.errors import Category

_SETS = 256
_FORGET_PER_MESSAGE = 8  # more than the one that is added, so that what is due to go does go


class ReplayGuard(Protocol):
    """What a receiver needs of a replay guard. One guard serves all connections of one receiver."""

    @property
    def instance(self) -> bytes:
        """8 random bytes, made with the guard and living exactly as long: a sender knows by them that memory was
        lost."""

    @property
    def floor(self) -> int:
        """Unix seconds; every ``ts`` below it is rejected. Never falls."""

    def admit(self, nonce: str, ts: int, now: int) -> Category | None:
        """Remember ``nonce``, or say why not. ``ts`` is within the TTL of ``now`` (both unix seconds)."""

    def __len__(self) -> int:
        """Nonces that are remembered."""

    def window(self, now: int) -> int:
        """Seconds back from ``now`` for which messages are still taken; at most the TTL."""


class MemoryReplayGuard:
    """The baseline guard: in memory, for one process.

    :param capacity: nonces remembered at the most.
    :param ttl_seconds: how far ``ts`` may lie from now.
    :param instance: 8 random bytes.
    """

    def __init__(self, capacity: int, ttl_seconds: int, instance: bytes) -> None:
        self.instance = instance
        self.floor = 0
        self._capacity = capacity
        self._ttl = ttl_seconds
        self._seen: list[set[str]] = [set() for _ in range(_SETS)]  # a nonce is in the one that its hash says
        self._count = 0
        self._seconds: dict[int, list[str]] = {}
        self._oldest: list[int] = []  # heap of the keys of _seconds
        self._forgotten: deque[list[str]] = deque()

    def __len__(self) -> int:
        """Nonces that take up memory, at most ``capacity``."""
        return self._count

    def admit(self, nonce: str, ts: int, now: int) -> Category | None:
        """See :meth:`ReplayGuard.admit`.

        :returns: None if the nonce is new and now remembered; else ``replayed``, ``expired``,
            ``outside_replay_window`` or ``replay_cache_full``, and nothing was remembered.
        """
        second = self._seconds.get(ts)
        if second is None:  # as often as seconds begin: the path of most messages never looks for what has expired
            self._forget_before(now - self._ttl)
        if ts < self.floor:
            return Category.OUTSIDE_REPLAY_WINDOW if ts >= now - self._ttl else Category.EXPIRED
        seen = self._seen[hash(nonce) % _SETS]
        if nonce in seen:
            return Category.REPLAYED
        if self._forgotten:
            self._release()
        if self._count >= self._capacity:
            self._forget_for_space(now)
            if self._count >= self._capacity:
                return Category.REPLAY_CACHE_FULL
            if ts < self.floor:  # its own second had to go
                return Category.OUTSIDE_REPLAY_WINDOW
        seen.add(nonce)
        self._count += 1
        if second is None:
            self._seconds[ts] = [nonce]
            heappush(self._oldest, ts)
        else:
            second.append(nonce)
        return None

    def window(self, now: int) -> int:
        """Seconds back from ``now`` for which messages are still taken; at most the TTL, less under load."""
        return max(0, min(self._ttl, now - self.floor))

    def _forget_before(self, oldest: int) -> None:
        for _ in range(_FORGET_PER_MESSAGE):
            if not self._oldest or self._oldest[0] >= oldest:
                return
            self._forget_oldest()

    def _forget_for_space(self, now: int) -> None:
        if self._oldest and self._oldest[0] < now - 1:
            self._forget_oldest()
            self._release()

    def _forget_oldest(self) -> None:
        ts = heappop(self._oldest)
        self._forgotten.append(self._seconds.pop(ts))
        self.floor = max(self.floor, ts + 1)

    def _release(self) -> None:
        """Let go of a few entries below the floor."""
        for _ in range(_FORGET_PER_MESSAGE):
            if not self._forgotten:
                return
            nonce = self._forgotten[0].pop()
            self._seen[hash(nonce) % _SETS].discard(nonce)
            self._count -= 1
            if not self._forgotten[0]:
                self._forgotten.popleft()
