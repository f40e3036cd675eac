"""Credit: totals that never fall, and what is judged by them."""

from __future__ import annotations

import pytest

from ipc_twisted.core.flow import ReceiveCredit, SendCredit


@pytest.mark.parametrize(
    ("messages", "octets", "taken"),
    [(10, 100, True), (11, 100, True), (10, 101, True), (2**64, 2**64, True), (9, 200, False), (20, 99, False)],
)
def test_credit_that_falls_is_a_lie_and_changes_nothing(messages: int, octets: int, taken: bool) -> None:
    credit = SendCredit(10, 100)
    assert credit.raise_to(messages, octets) is taken
    assert (credit.messages, credit.bytes) == ((messages, octets) if taken else (10, 100))


@pytest.mark.parametrize(
    ("used", "granted", "size", "fits"),
    [
        (0, 100, 100, True),
        (0, 100, 101, False),
        (90, 100, 100, True),  # once the handlers have ended
        (90, 1_000, 101, True),  # the other side grants more than it said at first
        (900, 1_000, 101, False),
    ],
)
def test_what_can_never_fit_is_known_at_once(used: int, granted: int, size: int, fits: bool) -> None:
    """Else it would wait for credit that never comes, and all behind it."""
    credit = SendCredit(10, 100)
    credit.used_bytes = used
    credit.raise_to(10, granted)
    assert credit.can_ever_fit(size) is fits


def test_what_is_finished_is_granted_again() -> None:
    credit = ReceiveCredit(2, 100)
    assert (credit.due, credit.in_flight) == (False, 0)
    credit.used_messages, credit.used_bytes = 2, 90
    assert (credit.due, credit.in_flight) == (False, 2)
    credit.finish(50)
    assert (credit.due, credit.in_flight) == (True, 1)
    assert credit.tell() == (3, 150)
    assert not credit.due, "told once is enough"
    credit.finish(40)
    assert credit.tell() == (4, 190)
    assert credit.in_flight == 0


def test_a_side_is_held_to_what_it_was_told_and_not_to_what_it_may_be_told_next() -> None:
    credit = ReceiveCredit(1, 100)
    credit.used_messages, credit.used_bytes = 1, 60
    credit.finish(60)
    assert (credit.told_messages, credit.told_bytes) == (1, 100)
    credit.tell()
    assert (credit.told_messages, credit.told_bytes) == (2, 160)
