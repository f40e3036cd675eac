"""Deadlines: absolute, cheap to set and take back, and never held against a peer when it was us who were late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from ipc_twisted.deadline import LATE_SECONDS, Deadline, Deadlines


class Timed:
    def __init__(self, seconds: float = 10) -> None:
        self.clock = Clock()
        self.missed: list[float] = []
        self.deadline = Deadline(self.clock, seconds, lambda: self.missed.append(self.clock.seconds()))


def test_it_is_missed_on_time_and_once() -> None:
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(9.999)
    assert timed.missed == []
    timed.clock.advance(0.001)
    timed.clock.pump([10] * 5)
    assert timed.missed == [10]
    assert timed.clock.getDelayedCalls() == []


def test_what_was_stopped_is_not_missed() -> None:
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(5)
    timed.deadline.stop()
    timed.clock.pump([5] * 5)
    assert (timed.missed, timed.clock.getDelayedCalls()) == ([], [])


def test_a_new_start_counts_from_then() -> None:
    """Every record has a deadline of its own; the one before must not end it early."""
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(6)
    timed.deadline.stop()
    timed.deadline.start()
    timed.clock.pump([1] * 9)
    assert timed.missed == []
    timed.clock.advance(1)
    assert timed.missed == [16]


def test_started_behind_a_clock_that_was_set_back_it_is_missed_on_time() -> None:
    """The reactor's clock is wall-clock time, and a timer of before lies far ahead."""
    timed = Timed()
    timed.clock.advance(3_600)
    timed.deadline.start()
    timed.deadline.stop()
    timed.clock.rightNow = 0.0
    timed.deadline.start()
    timed.clock.pump([1] * 11)
    assert timed.missed == [10]
    assert timed.clock.getDelayedCalls() == []


def test_starting_and_stopping_a_thousand_times_needs_one_timer() -> None:
    """It is done for every record that arrives in parts."""
    timed = Timed()
    for _ in range(1_000):
        timed.deadline.start()
        timed.deadline.stop()
    timed.deadline.start()
    assert len(timed.clock.getDelayedCalls()) == 1


def test_it_can_be_used_again_after_it_was_missed() -> None:
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(10)
    timed.deadline.start()
    timed.clock.advance(10)
    assert timed.missed == [10, 20]


@pytest.mark.parametrize("use", [lambda _: None, Deadline.start, Deadline.stop])
def test_close_leaves_no_timer_behind(use: Callable[[Deadline], None]) -> None:
    timed = Timed()
    timed.deadline.start()
    use(timed.deadline)
    timed.deadline.close()
    timed.deadline.close()
    assert timed.clock.getDelayedCalls() == []
    timed.clock.advance(20)
    assert timed.missed == []


@pytest.mark.attack(40)
@pytest.mark.parametrize(
    ("late", "missed"), [(0, True), (LATE_SECONDS, True), (LATE_SECONDS + 0.001, False), (60, False)]
)
def test_a_deadline_that_fires_too_late_begins_anew(late: float, missed: bool) -> None:
    """After SIGSTOP, or when the reactor was blocked, timers fire before what the peers have long sent is read."""
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(10 + late)
    assert bool(timed.missed) is missed
    timed.clock.advance(9.9)
    assert bool(timed.missed) is missed
    timed.clock.advance(0.1)
    assert len(timed.missed) == 1


@pytest.mark.parametrize(("late", "missed"), [(5, True), (5.001, False)])
def test_how_late_is_too_late_can_be_chosen(late: float, missed: bool) -> None:
    timed = Timed()
    deadline = Deadline(timed.clock, 10, lambda: timed.missed.append(0), late=5)
    deadline.start()
    timed.clock.advance(10 + late)
    assert bool(timed.missed) is missed
    deadline.close()


def test_it_begins_anew_only_once_where_every_turn_takes_long() -> None:
    """Else a peer that says nothing is never found, for want of a turn that is short enough."""
    timed = Timed()
    timed.deadline.start()
    timed.clock.pump([7, 7, 7, 7, 7])
    assert len(timed.missed) == 1
    timed.deadline.start()
    timed.clock.advance(100)
    assert len(timed.missed) == 1, "started again, it has its second chance again"
    timed.deadline.close()


def test_whether_it_runs_can_be_asked_and_once_it_may_take_another_time() -> None:
    timed = Timed()
    assert timed.deadline.due is None
    timed.deadline.start(3)
    assert timed.deadline.due is not None
    timed.clock.advance(3)
    assert (timed.deadline.due, len(timed.missed)) == (None, 1)


def test_what_comes_in_the_second_chance_is_in_time() -> None:
    timed = Timed()
    timed.deadline.start()
    timed.clock.advance(100)
    timed.deadline.stop()
    timed.clock.advance(100)
    assert (timed.missed, timed.clock.getDelayedCalls()) == ([], [])


def test_who_missed_it_may_start_it_again_from_within() -> None:
    timed = Timed()

    def missed() -> None:
        timed.missed.append(timed.clock.seconds())
        again.start()

    again = Deadline(timed.clock, 5, missed)
    again.start()
    timed.clock.pump([5, 5, 5])
    again.close()
    assert timed.missed == [5, 10, 15]


class TimedMany:
    """Ten seconds for each, on a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.missed: list[tuple[float, str]] = []
        self.deadlines: Deadlines[str] = Deadlines(self.clock, 10, self._missed)

    def _missed(self, who: str) -> None:
        self.missed.append((self.clock.seconds(), who))


def test_of_many_each_is_missed_at_its_own_time_and_once() -> None:
    timed = TimedMany()
    for who in "abc":
        timed.deadlines.start(who)
        timed.clock.advance(3)
    timed.clock.pump([0.5] * 100)
    assert timed.missed == [(10, "a"), (13, "b"), (16, "c")]
    assert timed.clock.getDelayedCalls() == []


def test_of_many_those_that_were_stopped_are_not_missed_and_keep_nobody_elses_time_away() -> None:
    timed = TimedMany()
    for who in "abcd":
        timed.deadlines.start(who)
        timed.clock.advance(2)
    for who in "acx":
        timed.deadlines.stop(who)
    timed.clock.pump([0.5] * 100)
    assert timed.missed == [(12, "b"), (16, "d")]


def test_many_that_come_and_go_need_one_timer() -> None:
    """Whoever connects makes us start one."""
    timed = TimedMany()
    for number in range(1_000):
        timed.deadlines.start(str(number))
        timed.deadlines.stop(str(number))
        assert len(timed.clock.getDelayedCalls()) == 1
    timed.clock.advance(10)
    assert (timed.missed, timed.clock.getDelayedCalls()) == ([], [])


def test_many_leave_no_timer_behind_when_told_but_where_one_still_waits() -> None:
    timed = TimedMany()
    timed.deadlines.start("a")
    timed.deadlines.rest()
    assert len(timed.clock.getDelayedCalls()) == 1
    timed.deadlines.stop("a")
    timed.deadlines.rest()
    assert timed.clock.getDelayedCalls() == []
    timed.clock.advance(1)
    timed.deadlines.start("b")
    timed.clock.pump([0.5] * 30)
    assert timed.missed == [(11, "b")]


def test_many_have_their_time_anew_once_where_the_timer_fires_late() -> None:
    timed = TimedMany()
    timed.deadlines.start("a")
    timed.clock.advance(5)
    timed.deadlines.start("b")
    timed.clock.advance(100)
    assert timed.missed == []
    timed.clock.pump([0.5] * 30)
    assert timed.missed == [(115, "a"), (115, "b")]


def test_many_are_all_found_where_every_turn_takes_long() -> None:
    timed = TimedMany()
    for who in "abc":
        timed.deadlines.start(who)
        timed.clock.advance(7)
    timed.clock.pump([7] * 10)
    assert [who for _, who in timed.missed] == ["a", "b", "c"]
    assert max(at for at, _ in timed.missed) <= 14 + 2 * 10 + 3 * 7


def test_one_of_many_that_is_missed_may_have_others_begin_and_end() -> None:
    """As who is told that its handshake failed may do at once."""
    clock, missed = Clock(), []

    def on_missed(who: str) -> None:
        missed.append((clock.seconds(), who))
        if who == "a":
            deadlines.stop("b")
            deadlines.start("d")

    deadlines: Deadlines[str] = Deadlines(clock, 10, on_missed)
    for who in "ab":
        deadlines.start(who)
    clock.advance(2)
    deadlines.start("c")
    clock.pump([0.5] * 60)
    assert missed == [(10, "a"), (12, "c"), (20, "d")]
    assert clock.getDelayedCalls() == []


@pytest.mark.attack(40)
def test_each_of_many_has_a_second_chance_of_its_own() -> None:
    """What one of them was spared must not be held against another that came later."""
    timed = TimedMany()
    timed.deadlines.start("a")
    timed.clock.advance(12)
    timed.deadlines.start("b")
    timed.clock.advance(90)
    assert timed.missed == [(102, "a")]
    timed.clock.advance(10)
    assert timed.missed == [(102, "a"), (112, "b")]


@pytest.mark.attack(27)
@pytest.mark.parametrize("waiting", [True, False])
def test_of_many_those_that_come_after_the_clock_was_set_back_are_missed_in_time(waiting: bool) -> None:
    """The reactor's clock is the wall's: by the timer of one that came before, all others would have an hour."""
    timed = TimedMany()
    timed.clock.advance(10_000)
    timed.deadlines.start("a")
    if not waiting:
        timed.deadlines.stop("a")
    timed.clock.rightNow -= 3_600
    timed.deadlines.start("b")
    timed.clock.pump([0.5] * 30)
    assert timed.missed == [(6_410, who) for who in ("ab" if waiting else "b")]
    assert timed.clock.getDelayedCalls() == []
