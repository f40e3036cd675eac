"""Section 6 as a property: no message is ever admitted twice, whatever the clock, the load and the order do."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.errors import Category

NOW = 1_763_900_000
TTL = 30
INSTANCE = b"instance"


class Guard(Protocol):
    """What the property needs; the wrong guards below have no more."""

    floor: int

    def __len__(self) -> int: ...

    def admit(self, nonce: str, ts: int, now: int) -> object: ...


QUICK = settings(deadline=None, max_examples=20_000, database=None, derandomize=True, phases=[Phase.generate])
"""To find an example; a small one would take long."""

MakeGuard = Callable[[int, int], Guard]


def right(capacity: int, ttl: int) -> Guard:
    return MemoryReplayGuard(capacity, ttl, INSTANCE)


# The wrong ones: each has been a real replay cache somewhere


class _Wrong:
    def __init__(self, capacity: int, ttl: int) -> None:
        self.floor = 0
        self.capacity = capacity
        self.ttl = ttl
        self.seen: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.seen)

    def admit(self, nonce: str, ts: int, now: int) -> object:
        if nonce in self.seen:
            self.seen.move_to_end(nonce)
            return Category.REPLAYED
        self.make_room(now)
        if len(self.seen) >= self.capacity:
            return Category.REPLAY_CACHE_FULL
        self.seen[nonce] = self.remembered_as(ts, now)
        return None

    def make_room(self, now: int) -> None:
        raise NotImplementedError

    def remembered_as(self, ts: int, now: int) -> int:
        return ts


class LeastRecentlyUsed(_Wrong):
    def make_room(self, now: int) -> None:
        if len(self.seen) >= self.capacity:
            self.seen.popitem(last=False)


class RandomCull(_Wrong):
    def make_room(self, now: int) -> None:
        if len(self.seen) >= self.capacity:
            del self.seen[random.Random(now).choice(list(self.seen))]


class ExpiryByArrival(_Wrong):
    """A message dated ahead is good for longer than the memory of its arrival."""

    def make_room(self, now: int) -> None:
        for nonce in [nonce for nonce, arrived in self.seen.items() if arrived < now - self.ttl]:
            del self.seen[nonce]

    def remembered_as(self, ts: int, now: int) -> int:
        return now


class WithoutFloor(_Wrong):
    """Forgets rightly by ``ts``, and then does not know that it did when the clock goes back."""

    def make_room(self, now: int) -> None:
        for nonce in [nonce for nonce, ts in self.seen.items() if ts < now - self.ttl]:
            del self.seen[nonce]


class EvictionWithoutFloor(_Wrong):
    """The oldest second goes for space, and its messages are still in time."""

    def make_room(self, now: int) -> None:
        oldest = min(self.seen.values(), default=now)
        if len(self.seen) >= self.capacity and oldest < now - 1:
            self.seen = OrderedDict((nonce, ts) for nonce, ts in self.seen.items() if ts != oldest)


class FloorThatFalls(MemoryReplayGuard):
    """Takes the floor from the clock, which goes back."""

    def admit(self, nonce: str, ts: int, now: int) -> Category | None:
        self.floor = min(self.floor, now - self._ttl)
        return super().admit(nonce, ts, now)


# The property


class Step(NamedTuple):
    """The clock moves, then messages come, then everything seen so far comes again if ``again``."""

    seconds: int
    offsets: list[int]
    reused: int | None
    again: bool


class History(NamedTuple):
    capacity: int
    ttl: int
    steps: list[Step]


def histories(max_steps: int = 12) -> st.SearchStrategy[History]:
    """Small guards and short lives, so that every edge is near: steps of the clock back and forward, floods, all
    of the past in any order."""
    step = st.builds(
        Step,
        st.integers(-8, 8) | st.sampled_from([-3600, 3600]),
        st.lists(st.integers(-4, 4), max_size=6),
        st.none() | st.integers(0, 30),
        st.booleans(),
    )
    return st.builds(History, st.integers(1, 8), st.integers(1, 4), st.lists(step, max_size=max_steps))


def twice_admitted(make: MakeGuard, history: History) -> tuple[str, int] | None:
    """Play it; return what was admitted twice, None if nothing was. Bounds are asserted on the way."""
    guard = make(history.capacity, history.ttl)
    admitted: set[tuple[str, int]] = set()
    seen: list[tuple[str, int]] = []
    now = NOW

    def arrive(nonce: str, ts: int) -> bool:
        """False: it was admitted a second time. What is out of time never gets as far as the guard."""
        if abs(now - ts) > history.ttl:
            return True
        floor = guard.floor
        if guard.admit(nonce, ts, now) is None:
            if (nonce, ts) in admitted:
                return False
            admitted.add((nonce, ts))
        assert guard.floor >= floor
        assert len(guard) <= history.capacity
        return True

    for step in history.steps:
        now += step.seconds
        fresh = [(f"n{len(seen) + at}", now + offset) for at, offset in enumerate(step.offsets)]
        if step.reused is not None and seen:  # a used nonce under another ts
            fresh.append((seen[step.reused % len(seen)][0], now))
        seen += fresh
        for nonce, ts in (*fresh, *seen) if step.again else fresh:
            if not arrive(nonce, ts):
                return nonce, ts
    return None


@pytest.mark.attack(27)
@given(histories())
@settings(deadline=None, max_examples=400)
def test_no_message_is_ever_admitted_twice(history: History) -> None:
    """And the floor never falls, and no more is remembered than was allowed."""
    assert twice_admitted(right, history) is None


@pytest.mark.attack(27)
@pytest.mark.parametrize("wrong", [LeastRecentlyUsed, RandomCull, ExpiryByArrival, WithoutFloor, EvictionWithoutFloor])
def test_the_property_finds_every_wrong_guard_out(wrong: MakeGuard) -> None:
    """Else it would be too weak to say anything about the right one."""
    find(histories(), lambda history: twice_admitted(wrong, history) is not None, settings=QUICK)


def test_a_floor_that_falls_is_found_out_by_its_bound() -> None:
    def falls(history: History) -> bool:
        try:
            return twice_admitted(lambda capacity, ttl: FloorThatFalls(capacity, ttl, INSTANCE), history) is not None
        except AssertionError:
            return True

    find(histories(), falls, settings=QUICK)


@pytest.mark.attack(27)
@pytest.mark.slow
def test_a_million_random_steps_with_clock_steps_admit_nothing_twice() -> None:
    """A long life of one guard; after each step of the clock all that could pass the TTL again comes again."""
    chance = random.Random(27)
    guard, now, made = MemoryReplayGuard(5_000, TTL, INSTANCE), NOW, 0
    admit = guard.admit
    by_second: dict[int, list[str]] = {}
    admitted: set[tuple[str, int]] = set()
    floor = 0
    steps = (-1, -TTL, -3600, 3600, 1, 0, TTL, TTL + 1, 2 * TTL)
    for _ in range(400):
        now += chance.choice(steps)
        if guard.floor > now + 1:
            now = guard.floor + chance.randrange(-2, 3)
        for _ in range(chance.randrange(2_000)):
            ts = now + chance.randrange(-TTL, TTL + 1) if made % 3 else now
            nonce = f"{made:x}"
            made += 1
            by_second.setdefault(ts, []).append(nonce)
            if admit(nonce, ts, now) is None:
                admitted.add((nonce, ts))
        for ts in range(now - TTL, now + TTL + 1):
            for nonce in by_second.get(ts, ()):
                made += 1
                if admit(nonce, ts, now) is None:
                    assert (nonce, ts) not in admitted
                    admitted.add((nonce, ts))
        assert len(guard) <= 5_000
        assert guard.floor >= floor
        floor = guard.floor
    assert made > 1_000_000
    assert len(admitted) > 50_000
