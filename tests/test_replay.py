"""The replay guard: each outcome, what forgetting costs, and that it lets honest messages in.

That it admits nothing twice is in ``test_replay_safety.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_twisted.core.replay import MemoryReplayGuard, ReplayGuard
from ipc_twisted.errors import Category

NOW = 1_763_900_000
TTL = 30
INSTANCE = b"instance"

Second = tuple[int, list[int]]
"""How far the clock goes on, and the age of each message that comes then."""


@given(
    st.integers(1, 12), st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(-4, 4), max_size=16)), max_size=20)
)
@settings(deadline=None, max_examples=250)
def test_a_fresh_message_gets_in_while_fewer_than_half_the_capacity_came_in_each_of_two_seconds(
    capacity: int, seconds: Sequence[Second]
) -> None:
    """Safety alone would be met by a guard that admits nothing. Messages dated ahead count for their own second: they
    cannot be forgotten before it."""
    guard, now = MemoryReplayGuard(capacity, 4, INSTANCE), NOW
    admitted: list[int] = []
    for step, ages in seconds:
        now += step
        for age in ages:
            last, this = (sum(1 for ts in admitted if ts >= at) for at in (now - 1, now))
            fresh = guard.admit(f"fresh {len(admitted)} {now} {age}", now, now)
            if this < capacity / 2 and last - this < capacity / 2:
                assert fresh is None
            if fresh is None:
                admitted.append(now)
            if guard.admit(f"{len(admitted)} {now} {age}", now - age, now) is None:
                admitted.append(now - age)


# One by one


def guard_with(*messages: tuple[str, int], capacity: int = 3, now: int = NOW) -> MemoryReplayGuard:
    guard = MemoryReplayGuard(capacity, TTL, INSTANCE)
    for nonce, ts in messages:
        assert guard.admit(nonce, ts, now) is None
    return guard


A, B, C = ("a", NOW - 20), ("b", NOW - 1), ("c", NOW)

CASES: list[tuple[str, list[tuple[str, int]], tuple[str, int, int], Category | None, int]] = [
    # what it shows, what came before at NOW, what comes (nonce, ts, now), the outcome, the floor after it
    ("new", [], ("n", NOW, NOW), None, 0),
    ("oldest in time", [], ("n", NOW - TTL, NOW), None, 0),
    ("newest in time", [], ("n", NOW + TTL, NOW), None, 0),
    ("same again", [C], ("c", NOW, NOW), Category.REPLAYED, 0),
    ("other ts", [C], ("c", NOW - 9, NOW), Category.REPLAYED, 0),
    ("other case", [C], ("C", NOW, NOW), None, 0),
    ("full, oldest second goes", [A, B, C], ("n", NOW, NOW), None, NOW - 19),
    ("full, own second would go", [A, B, C], ("n", NOW - 20, NOW), Category.OUTSIDE_REPLAY_WINDOW, NOW - 19),
    ("full, older than what goes", [A, B, C], ("n", NOW - 25, NOW), Category.OUTSIDE_REPLAY_WINDOW, NOW - 19),
    ("full, known: look-up before space", [A, B, C], ("c", NOW, NOW), Category.REPLAYED, 0),
    ("full of the last two seconds", [B, C, ("d", NOW)], ("n", NOW, NOW), Category.REPLAY_CACHE_FULL, 0),
    ("full of two seconds, known", [B, C, ("d", NOW)], ("d", NOW, NOW), Category.REPLAYED, 0),
    ("full, a second later", [B, C, ("d", NOW)], ("n", NOW + 1, NOW + 1), None, NOW),
    ("full of the future", [(n, NOW + 9) for n in "abc"], ("n", NOW, NOW), Category.REPLAY_CACHE_FULL, 0),
    ("aged out", [A, C], ("n", NOW + 11, NOW + 11), None, NOW - 19),
    ("not yet aged out", [A, C], ("n", NOW + 10, NOW + 10), None, 0),
    ("clock back: below the floor, out of time", [A], ("n", NOW - 25, NOW + 11), Category.EXPIRED, NOW - 19),
]


@pytest.mark.parametrize(
    ("before", "comes", "outcome", "floor"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_each_outcome(
    before: list[tuple[str, int]], comes: tuple[str, int, int], outcome: Category | None, floor: int
) -> None:
    guard = guard_with(*before)
    assert (guard.admit(*comes), guard.floor) == (outcome, floor)
    assert len(guard) <= 3


@pytest.mark.parametrize("comes", [("n", NOW - 20, NOW), ("c", NOW, NOW), ("b", NOW - 1, NOW)])
def test_what_is_rejected_is_not_remembered(comes: tuple[str, int, int]) -> None:
    guard = guard_with(A, B, C)
    assert guard.admit(*comes) is not None
    assert guard.admit("n", NOW, NOW) is None
    assert guard.admit("n", NOW, NOW) is Category.REPLAYED


def test_what_was_forgotten_for_age_stays_out_when_the_clock_goes_back() -> None:
    """Nobody can tell any more whether it was seen."""
    guard = guard_with(A)
    assert guard.admit("later", NOW + 60, NOW + 60) is None
    assert guard.admit(*A, NOW) is Category.OUTSIDE_REPLAY_WINDOW
    assert guard.admit("unseen", NOW - 20, NOW) is Category.OUTSIDE_REPLAY_WINDOW
    assert guard.admit("unseen", NOW - 19, NOW) is None


def test_a_nonce_is_free_again_once_its_second_is_forgotten() -> None:
    """A nonce is unique among all that is remembered; under its old ``ts`` it never comes back."""
    guard = guard_with(("n", NOW))
    later = NOW + TTL + 1
    assert guard.admit("other", later, later) is None
    assert guard.admit("n", later, later) is None
    assert guard.admit("n", NOW, NOW) is Category.OUTSIDE_REPLAY_WINDOW


def test_forgetting_a_second_costs_each_message_a_little_and_none_of_them_much() -> None:
    """Dropping a million entries at once would stall the reactor."""
    guard = MemoryReplayGuard(1_000, TTL, INSTANCE)
    for at in range(900):
        guard.admit(f"a{at}", NOW, NOW)
    later, sizes = NOW + TTL + 1, [len(guard)]
    for at in range(300):
        assert guard.admit(f"b{at}", later, later) is None
        sizes.append(len(guard))
    drops = [before + 1 - after for before, after in pairwise(sizes)]
    assert max(drops) == 8
    assert sizes[-1] == 300, "what is due to go does go"


def test_under_full_load_each_message_still_costs_a_little() -> None:
    """Space comes from the same few entries; the floor, not the dropping, keeps the rest out at once."""
    guard = MemoryReplayGuard(1_000, TTL, INSTANCE)
    for at in range(1_000):
        guard.admit(f"a{at}", NOW, NOW)
    later, sizes = NOW + 5, [len(guard)]
    for at in range(300):
        assert guard.admit(f"b{at}", later, later) is None
        assert guard.admit(f"a{at}", NOW, later) is Category.OUTSIDE_REPLAY_WINDOW
        sizes.append(len(guard))
    assert max(before + 1 - after for before, after in pairwise(sizes)) <= 16


def test_what_grows_at_a_time_is_a_small_part() -> None:
    """While a set grows, the reactor stands still: for a million entries far too long."""
    guard = MemoryReplayGuard(40_000, TTL, INSTANCE)
    for at in range(40_000):
        assert guard.admit(f"a{at}", NOW, NOW) is None
    assert len(guard) == 40_000
    assert max(map(len, guard._seen)) < 40_000 / 100


def test_many_old_seconds_are_forgotten_a_few_at_a_time() -> None:
    guard = MemoryReplayGuard(1_000, TTL, INSTANCE)
    for at in range(TTL + 1):
        guard.admit(f"a{at}", NOW - TTL + at, NOW)
    later = NOW + 10 * TTL
    floors = []
    for at in range(5):
        guard.admit(f"b{at}", later + at, later + at)
        floors.append(guard.floor)
    assert floors == [NOW - TTL + 8, NOW - TTL + 16, NOW - TTL + 24, NOW + 1, NOW + 1]


@pytest.mark.parametrize(("floor", "window"), [(0, TTL), (NOW - 31, TTL), (NOW - 9, 9), (NOW, 0), (NOW + 5, 0)])
def test_the_window_says_how_far_back_messages_are_taken(floor: int, window: int) -> None:
    guard = MemoryReplayGuard(3, TTL, INSTANCE)
    guard.floor = floor
    assert guard.window(NOW) == window


def test_it_is_the_interface_of_the_receiver() -> None:
    guard: ReplayGuard = MemoryReplayGuard(3, TTL, INSTANCE)
    assert (guard.instance, guard.floor) == (INSTANCE, 0)
