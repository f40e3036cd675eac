"""Messages without an outcome: how each one ends, that it ends once, and what all of them may take up."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.errors import Category, DeliveryUnknown, EnvelopeError, Rejected, SendBufferFull
from tests.test_outbox import COST, HEADER, NOW, Box, delivery

ENDS: list[tuple[str, Callable[[Outbox], None], str, str]] = [
    ("closed_by_peer", lambda box: box.closed_by_peer(Category.SHUTTING_DOWN, None), "shutting_down", "shutting_down"),
    ("closed_here", lambda box: box.closed_here(Category.CLOSED), "pending", "closed"),
    ("lose", lambda box: box.lose(), "delivery_unknown", "delivery_unknown"),
    ("expire", lambda box: box.expire(NOW + 1), "pending", "expired"),
]


@pytest.mark.parametrize(("end", "in_flight", "queued"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
def test_each_end_settles_what_it_knows_of(end: Callable[[Outbox], None], in_flight: str, queued: str) -> None:
    box = Box()
    box.add(2)
    box.write(messages=1)
    end(box.outbox)
    assert [repr(sent).split()[-1] for sent in box.added] == [f"{in_flight}>", f"{queued}>"]


def test_the_exceptions_are_those_of_the_contract() -> None:
    box = Box()
    box.add(2)
    box.outbox.closed_here(Category.CLOSED)
    assert isinstance(box.added[0].exception(), Rejected)
    box.add()
    box.outbox.lose()
    assert isinstance(box.added[2].exception(), DeliveryUnknown)


def test_what_raises_the_outcome_and_holds_the_delivery_is_collected() -> None:
    """The traceback of a raised outcome holds the frames, and those the delivery."""

    class Held: ...

    def wait(end: Callable[[Outbox], None]) -> weakref.ref[Held]:
        held, box = Held(), Box()
        box.add()
        end(box.outbox)
        sent = box.added[0]
        try:
            raise sent.exception() or AssertionError
        except (Rejected, DeliveryUnknown):
            return weakref.ref(held)

    refs = [wait(end) for end in (lambda box: box.closed_here(Category.CLOSED), lambda box: box.lose())]
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_what_nobody_awaits_is_reported_once_unless_it_was_accepted() -> None:
    box = Box()
    box.add(3, awaited=False)
    box.add(awaited=True)
    box.write()
    box.outbox.take_receipt(1, [(1, Category.EXPIRED)], 4)
    assert box.unclaimed == [box.added[1]]
    box.outbox.lose()
    assert box.unclaimed == [box.added[1], box.added[2]]


def test_who_asks_after_the_end_is_told_at_once() -> None:
    told: list[str] = []
    sent = delivery()
    assert (sent.done(), sent.exception(), sent.awaited) == (False, None, False)
    sent.add_done_callback(lambda done: told.append("first"))
    sent.add_done_callback(lambda done: told.append("second"))
    assert sent.awaited
    sent.settle(None)
    sent.add_done_callback(lambda done: told.append("late"))
    assert told == ["first", "second", "late"]
    assert (sent.done(), sent.exception(), sent.awaited) == (True, None, False)


def test_a_callback_that_ends_the_connection_settles_nothing_twice() -> None:
    """It runs in the middle of a receipt, whose word counts for the rest all the same."""
    box = Box()
    box.add(1, awaited=False)
    box.added[0].add_done_callback(lambda _: box.outbox.lose())
    box.add(2)
    box.write()
    box.outbox.take_receipt(2, [(2, Category.EXPIRED)], 3)
    assert box.ends == [(1, "accepted"), (2, "expired")]
    assert (box.outbox.buffered, box.unclaimed) == (0, [])


# Bounds


def test_the_bound_counts_header_payload_and_a_flat_cost() -> None:
    box = Box(limit=2 * COST + 10)
    box.add(1, b"12345")
    box.add(1, b"12345")
    assert box.outbox.buffered == 2 * COST + 10
    with pytest.raises(SendBufferFull, match=r"await drained\(\)") as caught:
        box.add()
    assert caught.value.category is Category.SEND_BUFFER_FULL
    assert len(box.outbox.queue) == 2, "nothing was queued"


def test_what_can_never_fit_is_refused_for_good() -> None:
    """To wait for room would be to wait for ever."""
    box = Box(limit=COST + 4)
    with pytest.raises(EnvelopeError, match=r"limits\.send_buffer_bytes of this side is") as caught:
        box.add(1, b"12345")
    assert caught.value.category is Category.PAYLOAD_TOO_LARGE
    box.add(1, b"1234")


def test_what_is_in_flight_counts_until_it_is_decided() -> None:
    """Else who does not answer could make a sender grow."""
    box = Box(limit=COST)
    box.add()
    box.write()
    with pytest.raises(SendBufferFull):
        box.add()
    box.outbox.take_receipt(0, [], 1)
    box.add()


def test_the_message_is_let_go_with_its_outcome() -> None:
    """Who keeps a delivery to ask later does not keep its payload."""
    box = Box()
    gc.collect()
    tracemalloc.start()
    try:
        box.add(1, bytes(8 << 20))
        box.write()
        box.outbox.take_receipt(0, [], 1)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert (box.added[0].header, box.added[0].payload) == (b"", b"")


def test_who_waits_for_room_goes_on_at_half_of_the_bound() -> None:
    box, went = Box(limit=4 * COST), []
    box.add(4)
    box.write()
    box.outbox.when_drained(lambda: went.append("waited"))
    box.outbox.take_receipt(0, [], 4)
    assert went == []
    box.outbox.take_receipt(1, [], 4)
    assert went == ["waited"]
    box.outbox.when_drained(lambda: went.append("at once"))
    assert went == ["waited", "at once"]


def test_who_was_refused_goes_on_when_the_message_fits_and_not_before() -> None:
    """At half of the bound a large one would be refused again, and its sender would turn in circles."""
    box, went = Box(limit=4 * COST), []
    box.add(3)
    box.write()
    with pytest.raises(SendBufferFull):
        box.add(1, bytes(2 * COST + 1))
    box.outbox.when_drained(lambda: went.append("waited"))
    box.outbox.take_receipt(1, [], 3)
    assert went == []
    box.outbox.take_receipt(2, [], 3)
    assert went == ["waited"]
    box.add(1, bytes(2 * COST + 1))
    box.outbox.when_drained(lambda: went.append("again"))
    assert went == ["waited"]


def test_what_was_refused_counts_no_more_once_something_was_queued() -> None:
    box, went = Box(limit=4 * COST), []
    box.add(2)
    with pytest.raises(SendBufferFull):
        box.add(1, bytes(2 * COST))
    box.add()
    box.outbox.closed_here(Category.CLOSED)
    box.add(2)
    box.outbox.when_drained(lambda: went.append("at once"))
    assert went == ["at once"]


def test_waiters_go_on_one_at_a_time_and_in_order() -> None:
    """Each sends, and may fill it again: then the next one waits on."""
    box, went = Box(limit=4 * COST), []

    def send(name: str) -> None:
        went.append(name)
        box.add()
        box.outbox.when_drained(lambda: send(name.upper()))

    box.add(4)
    box.write()
    for name in "abc":
        box.outbox.when_drained(lambda name=name: send(name))  # type: ignore[misc]
    for through, gone in enumerate(["", "a", "ab", "abc"]):
        box.outbox.take_receipt(through, [], 4)
        assert "".join(went) == gone
    box.write(seq=4)
    box.outbox.take_receipt(4, [], 7)
    box.outbox.take_receipt(5, [], 7)
    assert "".join(went) == "abcAB", "nobody goes twice before another goes once"


def test_nobody_who_still_has_room_goes_twice_before_another_goes_once() -> None:
    """One that sends little and asks again at once would else go on for as long as there is room."""
    box, went = Box(limit=8 * COST), []

    def send(name: str) -> None:
        went.append(name)
        box.add()
        if name.islower():
            box.outbox.when_drained(lambda: send(name.upper()))

    box.add(8)
    box.write()
    for name in "ab":
        box.outbox.when_drained(lambda name=name: send(name))  # type: ignore[misc]
    box.outbox.take_receipt(7, [], 8)
    assert "".join(went) == "abAB"


def test_who_waits_for_room_goes_on_when_the_connection_ends() -> None:
    """Its ``send()`` then says so; else it would wait for ever."""
    box, went = Box(limit=4 * COST), []
    box.add(4)
    box.outbox.when_drained(lambda: went.append(1))
    box.outbox.lose()
    assert went == [1]


@pytest.mark.parametrize(
    ("error", "shown"), [(None, "accepted"), (Rejected(Category.EXPIRED, "why"), "expired"), ("pending", "pending")]
)
def test_a_delivery_shows_its_state_and_none_of_its_payload(error: Any, shown: str) -> None:
    sent = Delivery(NOW, "job.run", "t\n", HEADER, b"swordfish", 0)
    if error != "pending":
        sent.settle(error)
    assert repr(sent) == f"<Delivery kind='job.run' trace_id='t\\n' {shown}>"


def test_who_waits_no_longer_is_not_called_and_the_outcome_is_then_nobodys() -> None:
    box = Box()
    box.add(2, awaited=False)
    waiting, gone = box.added
    told: list[Delivery] = []
    for sent in (waiting, gone):
        sent.add_done_callback(told.append)
    gone.remove_done_callback(told.append)
    gone.remove_done_callback(told.append)
    box.outbox.lose()
    assert (told, box.unclaimed) == ([waiting], [gone])
    waiting.remove_done_callback(told.append)


def test_who_waits_for_room_no_longer_keeps_nobody_behind_waiting() -> None:
    box = Box(limit=COST)
    box.add(1)
    went: list[str] = []

    def first() -> None:
        went.append("first")

    box.outbox.when_drained(first)
    box.outbox.when_drained(lambda: went.append("second"))
    box.outbox.not_when_drained(first)
    box.outbox.not_when_drained(first)
    box.outbox.lose()
    assert went == ["second"]
