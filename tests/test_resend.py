"""The outbox of a client that connects again: every row of its table, for a message that nobody can have handed over
and for one that somebody may.

What comes of all rows together, in any order, is in ``test_delivery_model.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ipc_twisted.core.codec import Malformed
from ipc_twisted.core.connection import State
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.outbox import Delivery
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.resend import ResendingOutbox
from ipc_twisted.errors import Category, DeliveryUnknown, Rejected
from tests.core_pair import INSTANCE, LIMITS, Pair, client, server
from tests.test_outbox import COST, HEADER, NOW, SIZE, Box, outcome

ANOTHER = b"\xb2" * 8
TTL = 30


def takes_all(_payload: int, _size: int) -> str | None:
    return None


def takes_none(_payload: int, _size: int) -> str | None:
    return "too much for it"


class Resending(Box):
    """A :class:`tests.test_outbox.Box` around an outbox that re-sends."""

    outbox: ResendingOutbox

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__(limit)
        self.outbox = ResendingOutbox(limit, self.tally, self._unclaimed)

    def connect(self, instance: bytes = INSTANCE, refusal: Callable[[int, int], str | None] = takes_all) -> None:
        self.outbox.attach(instance, refusal)

    def say(self, category: Category | None, seq: int = 0) -> None:
        """A receipt for one record; None: it was accepted."""
        self.outbox.take_receipt(seq, [] if category is None else [(seq, category)], seq + 1)

    def where(self, at: int = 0) -> str:
        """Where the message is, or what it ended in."""
        sent = self.added[at]
        places = {"queued": self.outbox.queue, "in flight": self.outbox.in_flight, "put off": self.outbox.later}
        found = [name for name, place in places.items() if sent in place]
        assert found == [] if sent.done() else len(found) == 1
        return outcome(sent) if sent.done() else found[0]

    def order(self) -> list[int]:
        """What is queued, by its place in :attr:`added`."""
        return [self.added.index(sent) for sent in self.outbox.queue]


def written(count: int = 1, *, awaited: bool = True, ts: int = NOW) -> Resending:
    """To its first connection."""
    box = Resending()
    box.add(count, awaited=awaited, ts=ts)
    box.connect()
    box.write()
    return box


def lost(count: int = 1, *, awaited: bool = True, ts: int = NOW) -> Resending:
    """Somebody may have handed it over."""
    box = written(count, awaited=awaited, ts=ts)
    box.outbox.lose()
    return box


def sent_again(count: int = 1, *, awaited: bool = True) -> Resending:
    box = lost(count, awaited=awaited)
    box.connect()
    box.write()
    return box


# What the receiver says of one message

SAID: list[tuple[Category | None, str, str]] = [
    # what, then where the message is: the first time, when it was sent again
    (None, "accepted", "accepted"),
    (Category.REPLAYED, "replayed", "accepted"),
    (Category.SHUTTING_DOWN, "put off", "put off"),
    (Category.REPLAY_CACHE_FULL, "replay_cache_full", "put off"),
    (Category.NOT_YET_VALID, "not_yet_valid", "put off"),
    (Category.EXPIRED, "expired", "delivery_unknown"),
    (Category.OUTSIDE_REPLAY_WINDOW, "outside_replay_window", "delivery_unknown"),
    (Category.KIND_NOT_ALLOWED, "kind_not_allowed", "delivery_unknown"),
]


@pytest.mark.parametrize(("said", "first", "again"), SAID)
def test_what_a_receipt_means_depends_on_whether_the_message_was_sent_before(
    said: Category | None, first: str, again: str
) -> None:
    for box, expected in ((written(), first), (sent_again(), again)):
        box.say(said)
        assert box.where() == expected
        assert (box.outbox.unsettled, box.outbox.buffered) == ((1, COST) if expected == "put off" else (0, 0))


@pytest.mark.parametrize(
    ("say", "error"), [(Category.REPLAYED, None), (Category.EXPIRED, DeliveryUnknown), (Category.SHUTTING_DOWN, None)]
)
def test_an_outcome_that_nobody_can_know_is_no_rejection(say: Category, error: type[Exception] | None) -> None:
    box = sent_again()
    box.say(say)
    assert type(box.added[0].exception()) is (type(None) if error is None else error)


def test_a_rejection_the_first_time_says_what_to_do() -> None:
    box = written()
    box.say(Category.REPLAY_CACHE_FULL)
    assert isinstance(box.added[0].exception(), Rejected)
    assert "auth.nonce_cache_size" in str(box.added[0].exception())


def test_outcomes_are_counted_by_what_they_ended_in_and_not_by_what_was_said() -> None:
    box = sent_again(5)
    said = [(0, Category.REPLAYED), (1, Category.EXPIRED), (2, Category.NOT_YET_VALID), (3, Category.SHUTTING_DOWN)]
    box.outbox.take_receipt(4, said, 5)
    assert box.tally == {"accepted": 2, "delivery_unknown": 1}
    assert (box.outbox.unsettled, box.outbox.buffered) == (2, 2 * COST)
    assert box.ends == [(0, "accepted"), (1, "delivery_unknown"), (4, "accepted")]


# What becomes of a message that waits for a connection


def _said(box: Resending, category: Category) -> Resending:
    box.say(category)
    box.outbox.lose()
    return box


def _beyond_a_close(box: Resending) -> Resending:
    box.outbox.take_receipt(-1, [], 1)
    box.outbox.closed_by_peer(Category.CLOSED, None)
    return box


def _never_written() -> Resending:
    box = Resending()
    box.add()
    return box


WAITING: dict[str, Callable[[], Resending]] = {
    "never written": _never_written,
    "shutting down": lambda: _said(written(), Category.SHUTTING_DOWN),
    "beyond a close": lambda: _beyond_a_close(written()),
}
"""Nobody has handed it over."""

UNCERTAIN: dict[str, Callable[[], Resending]] = {
    "lost": lost,
    "lost twice": lambda: _said(sent_again(2), Category.NOT_YET_VALID),
    "lost, then shutting down": lambda: _said(sent_again(), Category.SHUTTING_DOWN),
    "lost, then beyond a close": lambda: _beyond_a_close(sent_again()),
    "lost, then no room": lambda: _said(sent_again(), Category.REPLAY_CACHE_FULL),
    "lost, then too early": lambda: _said(sent_again(), Category.NOT_YET_VALID),
}
"""Somebody may have."""

WHAT_COMES: dict[str, tuple[Callable[[Resending], None], str, str]] = {
    # what happens then, and where a message is of which nobody can have handed it over, and of which somebody may
    "the same instance": (lambda box: box.connect(), "queued", "queued"),
    "another instance": (lambda box: box.connect(ANOTHER), "queued", "delivery_unknown"),
    "one that takes less": (
        lambda box: box.connect(ANOTHER, takes_none),
        "payload_too_large",
        "delivery_unknown",
    ),
    "the same, and takes less": (
        lambda box: box.connect(INSTANCE, takes_none),
        "payload_too_large",
        "delivery_unknown",
    ),
    "its last second": (lambda box: box.outbox.expire(NOW), "queued", "queued"),
    "the second after that": (lambda box: box.outbox.expire(NOW + 1), "expired", "delivery_unknown"),
    "the end of the service": (
        lambda box: box.outbox.give_up(Category.SHUTTING_DOWN),
        "shutting_down",
        "delivery_unknown",
    ),
}

CASES = [
    pytest.param(make, act, expected, id=f"{name}: {what}")
    for ways, column in ((WAITING, 1), (UNCERTAIN, 2))
    for name, make in ways.items()
    for what, (act, *_) in WHAT_COMES.items()
    for expected in [WHAT_COMES[what][column]]
]


@pytest.mark.parametrize(("make", "act", "expected"), CASES)
def test_what_waits_goes_on_or_ends_as_far_as_is_known_of_it(
    make: Callable[[], Resending], act: Callable[[Resending], None], expected: str
) -> None:
    box = make()
    act(box)
    for at, sent in enumerate(box.added):
        assert box.where(at) in ((expected,) if sent.done() else (expected, "put off"))
        assert sent.done() == (expected != "queued")
    left = 0 if box.added[0].done() else len(box.added)
    assert (box.outbox.unsettled, box.outbox.buffered) == (left, left * COST)
    assert box.tally.total() == len(box.added) - left


@pytest.mark.parametrize("make", WAITING.values(), ids=WAITING.keys())
def test_what_nobody_can_have_handed_over_is_written_to_any_instance_as_if_for_the_first_time(
    make: Callable[[], Resending],
) -> None:
    box = make()
    box.connect(ANOTHER)
    box.write()
    assert box.where() == "in flight"
    box.say(Category.REPLAYED)
    assert box.where() == "replayed"


@pytest.mark.parametrize("make", UNCERTAIN.values(), ids=UNCERTAIN.keys())
def test_what_somebody_may_have_handed_over_is_accepted_once_its_guard_knows_it(make: Callable[[], Resending]) -> None:
    box = make()
    box.connect()
    box.write()
    box.say(Category.REPLAYED)
    assert box.where() == "accepted"


def test_what_is_lost_at_the_next_instance_is_uncertain_there() -> None:
    """It was beyond a CLOSE of the first, which says that the first did not hand it over."""
    box = _beyond_a_close(written())
    box.connect(ANOTHER)
    box.write()
    box.outbox.lose()
    box.connect(ANOTHER)
    assert box.where() == "queued"
    box.connect(INSTANCE)
    assert box.where() == "delivery_unknown"


# The record that caused a CLOSE


@pytest.mark.parametrize(("make", "expected"), [(written, "signature_invalid"), (sent_again, "delivery_unknown")])
def test_what_caused_a_close_ends_and_what_lies_around_it_is_kept(
    make: Callable[[int], Resending], expected: str
) -> None:
    box = make(4)
    box.add()
    box.outbox.take_receipt(0, [], 4)
    box.outbox.closed_by_peer(Category.SIGNATURE_INVALID, 2)
    assert [box.where(at) for at in range(5)] == ["accepted", "queued", expected, "queued", "queued"]
    assert box.order() == [1, 3, 4]
    assert (box.outbox.unsettled, box.outbox.buffered) == (3, 3 * COST)
    assert box.tally == {"accepted": 1, expected: 1}


@pytest.mark.parametrize("seq", [None, 7])
def test_a_close_that_no_message_caused_ends_none(seq: int | None) -> None:
    box = written(2)
    box.outbox.closed_by_peer(Category.MALFORMED, seq)
    assert box.order() == [0, 1]
    assert box.ends == []


def test_an_old_place_in_another_connection_does_not_make_a_message_the_cause() -> None:
    """Sequence numbers begin again with each connection: one that waits had one before."""
    box = lost()
    box.connect()
    box.outbox.closed_by_peer(Category.MALFORMED, 0)
    assert box.where() == "queued"


# Order


def test_what_was_in_flight_goes_before_what_was_queued_and_what_was_put_off_before_both() -> None:
    box = written(3)
    box.say(Category.SHUTTING_DOWN)
    box.add(2)
    box.outbox.lose()
    assert box.order() == [1, 2, 3, 4]
    box.connect()
    assert box.order() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", [ResendingOutbox.lose, lambda outbox: outbox.closed_by_peer(Category.CLOSED, None)])
def test_the_order_is_kept_however_often_a_connection_ends(end: Callable[[ResendingOutbox], None]) -> None:
    box = Resending()
    box.add(5)
    for messages in (3, 5, 1, 0, 4):
        box.connect()
        box.write(messages=messages)
        end(box.outbox)
        assert box.order() == [0, 1, 2, 3, 4]


def test_what_was_put_off_goes_again_in_its_order_and_before_what_is_queued() -> None:
    box = sent_again(3)
    box.outbox.take_receipt(2, [(at, Category.NOT_YET_VALID) for at in range(3)], 3)
    box.add()
    assert (box.order(), box.outbox.unsettled) == ([3], 4)
    box.outbox.requeue()
    assert (box.order(), box.outbox.unsettled) == ([0, 1, 2, 3], 4)
    box.outbox.requeue()
    assert box.order() == [0, 1, 2, 3]


def test_what_was_put_off_is_not_written_until_it_is_put_back() -> None:
    """Else a full guard would be asked again as fast as the two sides can talk."""
    box = sent_again()
    box.say(Category.REPLAY_CACHE_FULL)
    assert box.write(seq=1) == ([], 1)
    box.outbox.requeue()
    assert box.write(seq=1)[1] == 2


# Time


def test_nothing_in_flight_expires() -> None:
    """Its receipt is on the way, and knows more."""
    box = written()
    box.outbox.expire(NOW + 1)
    assert box.where() == "in flight"


def test_what_expires_does_so_wherever_it_waits_and_up_to_the_first_that_does_not() -> None:
    box = lost(2, ts=NOW - 1)
    box.connect()
    box.write()
    box.outbox.take_receipt(1, [(0, Category.SHUTTING_DOWN), (1, Category.NOT_YET_VALID)], 2)
    box.add(ts=NOW - 1)
    box.add(ts=NOW)
    box.outbox.expire(NOW)
    assert box.ends == [(2, "expired"), (0, "delivery_unknown"), (1, "delivery_unknown")]
    assert box.where(3) == "queued"
    assert (box.outbox.unsettled, box.outbox.buffered) == (1, COST)


def test_what_was_put_off_is_tried_again_until_it_expires() -> None:
    box = lost()
    for now in range(NOW, NOW + TTL + 1):
        box.connect()
        box.outbox.expire(now - TTL)
        box.write()
        box.say(Category.REPLAY_CACHE_FULL)
        assert box.where() == "put off"
    box.outbox.expire(NOW + 1)
    assert box.where() == "delivery_unknown"


# Connections that come and go


def test_a_close_of_ours_ends_nothing() -> None:
    """What is in flight gets its receipt yet, what is queued another connection."""
    box = written()
    box.add()
    box.outbox.closed_here(Category.CLOSED)
    assert [box.where(0), box.where(1)] == ["in flight", "queued"]
    box.say(None)
    assert (box.ends, box.order()) == ([(0, "accepted")], [1])


def test_the_receipts_of_a_new_connection_begin_anew() -> None:
    box = written(4)
    box.outbox.take_receipt(2, [], 4)
    box.outbox.lose()
    box.connect()
    box.write()
    box.say(None)
    assert box.ends == [(at, "accepted") for at in range(4)]


def test_a_receipt_that_lies_is_found_out_on_a_later_connection_too() -> None:
    box = sent_again()
    with pytest.raises(Malformed):
        box.outbox.take_receipt(1, [], 1)
    assert box.where() == "in flight"


def test_what_a_receiver_takes_is_asked_with_the_size_of_payload_and_frame() -> None:
    box, asked = Resending(), []
    box.add(1, b"12345")

    def refusal(payload: int, size: int) -> str | None:
        asked.append((payload, size))
        return "a reason" if payload > 4 else None

    box.connect(refusal=refusal)
    assert asked == [(5, SIZE + 5)]
    assert str(box.added[0].exception()) == "payload_too_large: a reason"


def test_one_that_does_not_fit_keeps_no_other_from_going() -> None:
    box = Resending()
    for payload in (b"", b"12345", b"1"):
        box.add(1, payload)
    box.connect(refusal=lambda payload, _size: "too large" if payload > 4 else None)
    assert (box.order(), box.ends) == ([0, 2], [(1, "payload_too_large")])


def test_giving_up_ends_everything_and_leaves_nothing() -> None:
    box = sent_again(3)
    box.outbox.take_receipt(1, [(0, Category.NOT_YET_VALID), (1, Category.SHUTTING_DOWN)], 3)
    box.add(2)
    box.outbox.give_up(Category.CLOSED)
    assert [box.where(at) for at in range(5)] == ["delivery_unknown"] * 3 + ["closed"] * 2
    assert +box.tally == {"delivery_unknown": 3, "closed": 2}
    assert (box.outbox.unsettled, box.outbox.buffered) == (0, 0)


def test_what_waits_for_a_connection_counts_against_the_bound_until_it_ends() -> None:
    box, went = Resending(limit=2 * COST), []
    box.add(2)
    box.connect()
    box.write()
    box.outbox.lose()
    box.outbox.when_drained(lambda: went.append(box.outbox.buffered))
    assert (box.outbox.buffered, went) == (2 * COST, [])
    box.connect(ANOTHER)
    assert (box.outbox.buffered, went) == (0, [COST]), "as soon as half of it is free"


# Who is told

ENDS: dict[str, tuple[Callable[[int], Resending], Callable[[Resending], None]]] = {
    # how three messages come to wait, and what then ends all of them, or the first
    "attach": (lost, lambda box: box.connect(ANOTHER)),
    "attach, too large": (lambda count: _beyond_a_close(written(count)), lambda box: box.connect(INSTANCE, takes_none)),
    "expire": (lost, lambda box: box.outbox.expire(NOW + 1)),
    "receipt": (sent_again, lambda box: box.outbox.take_receipt(2, [(0, Category.EXPIRED), (2, Category.REPLAYED)], 3)),
    "close": (written, lambda box: box.outbox.closed_by_peer(Category.MALFORMED, 0)),
    "give_up": (written, lambda box: box.outbox.give_up(Category.CLOSED)),
}


def _send_what_has_expired(box: Resending) -> None:
    box.add(ts=NOW - 1)
    box.outbox.expire(NOW)


ACTS: dict[str, Callable[[Resending], None]] = {
    "send": lambda box: box.add(),
    "send and expire": _send_what_has_expired,
    "put back": lambda box: box.outbox.requeue(),
    "lose": lambda box: box.outbox.lose(),
    "close": lambda box: box.outbox.closed_here(Category.CLOSED),
    "expire": lambda box: box.outbox.expire(NOW + 1),
    "give up": lambda box: box.outbox.give_up(Category.SHUTTING_DOWN),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
@pytest.mark.parametrize(("make", "end"), ENDS.values(), ids=ENDS.keys())
def test_whoever_is_told_may_send_and_end_what_he_likes_and_nothing_ends_twice_or_never(
    make: Callable[[int], Resending], end: Callable[[Resending], None], act: Callable[[Resending], None]
) -> None:
    box = make(3)
    box.added[0].add_done_callback(lambda _: act(box))
    end(box)
    assert box.added[0].done()
    assert box.outbox.buffered == box.outbox.unsettled * COST
    box.outbox.give_up(Category.CLOSED)
    assert sorted(at for at, _ in box.ends) == list(range(len(box.added)))
    assert box.tally.total() == len(box.added)
    assert (box.outbox.unsettled, box.outbox.buffered, box.unclaimed) == (0, 0, [])


def test_what_is_sent_by_who_is_told_of_an_end_waits_behind_what_is_kept() -> None:
    box = written(3)
    box.added[0].add_done_callback(lambda _: box.add())
    box.outbox.closed_by_peer(Category.MALFORMED, 0)
    assert box.order() == [1, 2, 3]


UNCLAIMED: dict[str, tuple[Callable[[Resending], None], list[int]]] = {
    "another instance": (lambda box: box.connect(ANOTHER), [0, 1]),
    "expired": (lambda box: box.outbox.expire(NOW + 1), [0, 1]),
    "given up": (lambda box: box.outbox.give_up(Category.CLOSED), [0, 1]),
    "a receipt": (lambda box: box.outbox.take_receipt(1, [(0, Category.EXPIRED), (1, Category.REPLAYED)], 2), [0]),
    "a receipt, later": (lambda box: box.outbox.take_receipt(0, [(0, Category.SHUTTING_DOWN)], 2), []),
    "the cause of a close": (lambda box: box.outbox.closed_by_peer(Category.MALFORMED, 1), [1]),
    "a loss": (lambda box: box.outbox.lose(), []),
}


@pytest.mark.parametrize(("end", "reported"), UNCLAIMED.values(), ids=UNCLAIMED.keys())
def test_what_nobody_awaits_is_reported_once_it_has_ended_otherwise_than_accepted(
    end: Callable[[Resending], None], reported: list[int]
) -> None:
    box = sent_again(2, awaited=False)
    if end in (UNCLAIMED["another instance"][0], UNCLAIMED["expired"][0]):
        box.outbox.lose()
    end(box)
    assert [box.added.index(sent) for sent in box.unclaimed] == reported
    assert box.ends == []


# With connections


def _open(box: Resending, guard: MemoryReplayGuard) -> Pair:
    linked = Pair(client(outbox=box.outbox), server(guard=guard))
    for _ in range(3):
        linked.turn()
    return linked


def _guard() -> MemoryReplayGuard:
    return MemoryReplayGuard(100, LIMITS.ttl_seconds, INSTANCE)


def _lose_the_receipt(linked: Pair) -> list[SecureEnvelope]:
    """What the server was handed meanwhile."""
    linked.server.connection.receive_data(linked.client.output(), NOW)
    linked.client.connection.connection_lost()
    return linked.server.handed


def test_what_is_sent_again_is_the_same_message_to_the_second() -> None:
    """``ts``, ``nonce``, all other fields and the payload; only the signature is of the new keys."""
    box = Resending()
    first = _open(box, _guard())
    first.client.send(b"payload", trace_id="trace", target=["a", "b"], headers={"k": "v"})
    handed = _lose_the_receipt(first)
    again = _open(box, _guard()).server.handed  # a guard that has forgotten it
    assert [msgspec.structs.replace(envelope, sig="") for envelope in handed] == [
        msgspec.structs.replace(envelope, sig="") for envelope in again
    ]
    assert len(again) == 1


def test_what_was_handed_over_and_is_sent_again_ends_accepted_and_is_not_handed_over_again() -> None:
    box, guard = Resending(), _guard()
    first = _open(box, guard)
    sent = first.client.send(b"payload")
    assert len(_lose_the_receipt(first)) == 1
    assert not sent.done()
    second = _open(box, guard)
    assert (outcome(sent), second.server.handed) == ("accepted", [])
    assert [rejection.category for rejection in second.server.rejected] == [Category.REPLAYED]


def test_what_lay_beyond_the_close_of_a_receiver_is_handed_over_on_the_next_connection() -> None:
    box, guard = Resending(), _guard()
    first = _open(box, guard)
    sent = [first.client.send(), first.client.send()]

    def ends_itself(_envelope: SecureEnvelope, _size: int) -> bool:
        first.server.connection.close(Category.SHUTTING_DOWN)
        return True

    first.server.handler = ends_itself
    first.settle()
    assert (outcome(sent[0]), sent[1].done(), first.client.state) == ("accepted", False, State.DONE)
    second = _open(box, guard)
    assert (outcome(sent[1]), len(second.server.handed)) == ("accepted", 1)


def test_what_a_drained_receiver_rejects_goes_to_the_next_connection() -> None:
    box, guard = Resending(), _guard()
    first = _open(box, guard)
    sent = first.client.send()
    first.server.connection.drain(Category.SHUTTING_DOWN)
    first.server.connection.receive_data(first.client.output(), NOW)
    first.settle()
    assert (sent.done(), first.client.state, list(box.outbox.later)) == (False, State.DONE, [sent])
    second = _open(box, guard)
    assert (outcome(sent), len(second.server.handed)) == ("accepted", 1)


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_connection_that_ends_while_it_is_attached_is_never_said_to_be_authenticated(end: str) -> None:
    """Who is told what the new receiver does not take may stop everything. The owner would hold a dead connection."""
    box = Resending()
    box.outbox.add(Delivery(NOW, "job.run", None, HEADER, bytes(LIMITS.max_payload_bytes + 1), 0))
    side = client(outbox=box.outbox)
    act = {
        "close": lambda _: side.connection.close(Category.CLOSED),
        "abandon": lambda _: side.connection.abandon(Category.CLOSED),
    }[end]
    box.outbox.queue[0].add_done_callback(act)
    Pair(side, server()).settle()
    assert (side.state is not State.OPEN, side.authenticated) == (True, 0)
