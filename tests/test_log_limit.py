"""Lines that strangers cause: so many and no more, and none is left out without being counted."""

from __future__ import annotations

from twisted.internet.task import Clock

from ipc_twisted.log_limit import LINES, SECONDS, LogLimit


def test_so_many_lines_are_written_and_the_rest_is_left_out() -> None:
    limit = LogLimit(Clock())
    assert [limit.admit("a") for _ in range(LINES + 3)] == [0] * LINES + [None] * 3


def test_the_next_line_says_how_many_were_left_out_once() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    for _ in range(LINES + 3):
        limit.admit("a")
    clock.advance(SECONDS)
    assert [limit.admit("a") for _ in range(LINES + 1)] == [3] + [0] * (LINES - 1) + [None]
    clock.advance(SECONDS)
    assert limit.admit("a") == 1


def test_a_window_ends_after_its_seconds_and_not_before() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    for _ in range(LINES):
        limit.admit("a")
    clock.advance(SECONDS - 0.001)
    assert limit.admit("a") is None
    clock.advance(0.001)
    assert limit.admit("a") == 1


def test_a_window_that_is_quiet_does_not_save_lines_up() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    limit.admit("a")
    clock.advance(100 * SECONDS)
    assert [limit.admit("a") for _ in range(LINES + 1)] == [0] * LINES + [None]


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    """The reactor's clock is wall-clock time."""
    clock = Clock()
    clock.advance(3_600)
    limit = LogLimit(clock)
    for _ in range(LINES + 3):
        limit.admit("a")
    clock.rightNow = 0.0
    assert limit.admit("a") == 3


def test_one_label_does_not_silence_another() -> None:
    """A flood of one kind must not hide the one line that matters."""
    limit = LogLimit(Clock())
    for _ in range(100):
        limit.admit("flood")
    assert limit.admit("other") == 0
