"""Messages without an outcome: what may be written, and what a receipt may say of it.

How they end and what they may take up is in ``test_outbox_ends.py``.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_twisted import delivery as awaitable
from ipc_twisted.core.codec import Malformed
from ipc_twisted.core.flow import SendCredit
from ipc_twisted.core.outbox import FLAT_COST_BYTES, JOIN_BYTES, Delivery, Outbox
from ipc_twisted.core.signing import MacKey
from ipc_twisted.errors import Category
from tests import wire_peer as wire

NOW = 1_763_900_000
KEY = bytes(range(32))
MAC_KEY = MacKey(KEY)
HEADER = wire.pack([NOW, "n", "job.run", None, None, None, {}])
SIZE = 47 + len(HEADER)
COST = len(HEADER) + FLAT_COST_BYTES


def delivery(payload: bytes = b"", ts: int = NOW) -> Delivery:
    return Delivery(ts, "job.run", "trace", HEADER, payload, COST + len(payload))


def test_the_garbage_collector_does_not_look_at_what_is_in_flight_and_nobody_waits_for() -> None:
    assert not gc.is_tracked(delivery())
    assert not gc.is_tracked(awaitable.Delivery(NOW, "job.run", None, HEADER, b"", COST))


class Box:
    """An outbox, what nobody claimed of it, and the end of each delivery in the order in which they came."""

    def __init__(self, limit: int = 10**9) -> None:
        self.unclaimed: list[Delivery] = []
        self.tally: Counter[str] = Counter()
        self.outbox = Outbox(limit, self.tally, self._unclaimed)
        self.ends: list[tuple[int, str]] = []
        self.added: list[Delivery] = []

    def _unclaimed(self, sent: Delivery) -> None:
        assert sent.done(), "its outcome is there when it is reported"
        self.unclaimed.append(sent)

    def add(self, count: int = 1, payload: bytes = b"", ts: int = NOW, awaited: bool = True) -> None:
        for _ in range(count):
            sent, at = delivery(payload, ts), len(self.added)
            self.added.append(sent)
            if awaited:
                sent.add_done_callback(lambda done, at=at: self.ends.append((at, outcome(done))))  # type: ignore[misc]
            self.outbox.add(sent)

    def write(
        self, messages: int = 10**6, octets: int = 10**12, room: int = 10**9, *, seq: int = 0, oldest: int = 0
    ) -> tuple[list[bytes], int]:
        return self.outbox.write(MAC_KEY, seq, SendCredit(messages, octets), room, oldest, 0.0)


def outcome(done: Delivery) -> str:
    error = done.exception()
    return "accepted" if error is None else str(error.category)


def written(count: int, **more: Any) -> Box:
    box = Box()
    box.add(count, **more)
    box.write()
    return box


# Writing


@pytest.mark.parametrize("size", [0, 1, JOIN_BYTES, JOIN_BYTES + 1, 100_000])
def test_what_is_written_is_what_a_second_implementation_would_write(size: int) -> None:
    box = Box()
    box.add(3, bytes(range(256)) * (size // 256) + bytes(size % 256))
    out, seq = box.write(seq=5)
    bodies = [wire.record_body(wire.ENVELOPE, at, HEADER, box.added[0].payload) for at in (5, 6, 7)]
    assert b"".join(out) == b"".join(wire.frame(KEY, body) for body in bodies)
    assert seq == 8
    assert [sent.seq for sent in box.outbox.in_flight] == [5, 6, 7]
    assert len(out) == (3 if size <= JOIN_BYTES else 6), "a large payload is a buffer of its own"


def test_a_large_payload_is_not_copied() -> None:
    box = Box()
    box.add(1, bytes(JOIN_BYTES + 1))
    out, _ = box.write()
    assert out[1] is box.added[0].payload


ROOM = [  # messages, bytes, room, how many of four are written
    (4, 4 * SIZE, 4 * SIZE, 4),
    (3, 10**6, 10**6, 3),
    (0, 10**6, 10**6, 0),
    (9, 4 * SIZE - 1, 10**6, 3),
    (9, SIZE - 1, 10**6, 0),
    (9, 10**6, 1, 1),  # one record may exceed the room
    (9, 10**6, SIZE, 1),
    (9, 10**6, SIZE + 1, 2),
    (9, 10**6, 0, 0),
]


@pytest.mark.parametrize(("messages", "octets", "room", "count"), ROOM)
def test_no_more_is_written_than_credit_and_room_allow(messages: int, octets: int, room: int, count: int) -> None:
    box = Box()
    box.add(4)
    out, seq = box.write(messages, octets, room)
    assert (len(out), seq, len(box.outbox.queue), len(box.outbox.in_flight)) == (count, count, 4 - count, count)


def test_credit_is_used_up_across_writes() -> None:
    box, credit = Box(), SendCredit(3, 10**6)
    box.add(5)
    first, seq = box.outbox.write(MAC_KEY, 0, credit, SIZE, 0, 0.0)
    second, seq = box.outbox.write(MAC_KEY, seq, credit, 10**6, 0, 0.0)
    assert (len(first), len(second), seq) == (1, 2, 3)
    assert (credit.used_messages, credit.used_bytes) == (3, 3 * SIZE)


def test_what_has_expired_is_not_written_nor_what_waits_behind_it() -> None:
    """The order is kept; ``expire()`` takes it out first, where nothing is half written."""
    box = Box()
    box.add(ts=NOW)
    box.add(ts=NOW - 40)  # the clock went back in between
    box.add(ts=NOW)
    out, seq = box.write(oldest=NOW - 30)
    assert (len(out), seq, box.ends) == (1, 1, [])
    box.outbox.expire(NOW - 30)
    assert box.ends == [(1, "expired")]
    out, seq = box.write(oldest=NOW - 30, seq=seq)
    assert (len(out), seq) == (1, 2)


@pytest.mark.parametrize(("ts", "expired"), [(NOW - 31, True), (NOW - 30, False), (NOW, False)])
def test_a_message_expires_unsent_one_second_after_its_time_to_live(ts: int, expired: bool) -> None:
    box = Box()
    box.add(ts=ts)
    box.outbox.expire(NOW - 30)
    assert box.ends == ([(0, "expired")] if expired else [])
    assert box.added[0].done() is expired


def test_all_that_has_expired_expires_at_once() -> None:
    box = Box()
    for ts in (NOW - 40, NOW - 40, NOW - 31, NOW):
        box.add(ts=ts)
    box.outbox.expire(NOW - 30)
    assert [at for at, _ in box.ends] == [0, 1, 2]


# Receipts


def test_a_receipt_settles_all_up_to_through_in_order() -> None:
    box = written(5)
    box.outbox.take_receipt(1, [], 5)
    assert box.ends == [(0, "accepted"), (1, "accepted")]
    box.outbox.take_receipt(4, [(2, Category.EXPIRED), (4, Category.REPLAYED)], 5)
    assert box.ends[2:] == [(2, "expired"), (3, "accepted"), (4, "replayed")]
    assert box.outbox.buffered == 0


@pytest.mark.parametrize("through", [-1, 2])
def test_a_receipt_may_say_nothing_new(through: int) -> None:
    """Credit only."""
    box = written(5)
    if through >= 0:
        box.outbox.take_receipt(through, [], 5)
    ends = list(box.ends)
    box.outbox.take_receipt(through, [], 5)
    assert box.ends == ends


def test_a_receipt_may_cover_records_that_are_no_envelopes() -> None:
    box = Box()
    box.add(4)
    _, seq = box.write(messages=2)
    box.write(seq=seq + 3)  # three receipts of ours in between
    box.outbox.take_receipt(3, [(1, Category.EXPIRED)], 7)
    assert box.ends == [(0, "accepted"), (1, "expired")]
    box.outbox.take_receipt(6, [(5, Category.EXPIRED)], 7)
    assert box.ends[2:] == [(2, "expired"), (3, "accepted")]


E = Category.EXPIRED
LIES: list[tuple[str, int, int, list[tuple[int, Category]]]] = [
    # what it is, the through before, through, rejected; seq 2 is no envelope, 0, 1, 3, 4 are, 5 was written by nobody
    ("through falls", 1, 0, []),
    ("through falls to none", 1, -1, []),
    ("through below none", -1, -2, []),
    ("through unsent", -1, 5, []),
    ("through far beyond", -1, 2**64 - 1, []),
    ("rejects beyond through", -1, 1, [(3, E)]),
    ("rejects what was decided", 1, 4, [(1, E)]),
    ("rejects below what was decided", 1, 4, [(0, E)]),
    ("rejects in falling order", -1, 4, [(3, E), (1, E)]),
    ("rejects one twice", -1, 4, [(1, E), (1, E)]),
    ("rejects no envelope", -1, 4, [(2, E)]),
    ("rejects an envelope and no envelope", -1, 4, [(1, E), (2, E)]),
    ("rejects at an equal through", 1, 1, [(1, E)]),
]


@pytest.mark.parametrize(("before", "through", "rejected"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_receipt_that_lies_settles_nothing(
    before: int, through: int, rejected: Sequence[tuple[int, Category]]
) -> None:
    box = Box()
    box.add(4)
    _, seq = box.write(messages=2)
    box.write(seq=seq + 1)
    box.outbox.take_receipt(before, [], 5)
    ends = list(box.ends)
    with pytest.raises(Malformed):
        box.outbox.take_receipt(through, rejected, 5)
    assert box.ends == ends
    box.outbox.take_receipt(4, [], 5)
    assert len(box.ends) == 4


def test_a_receipt_for_messages_that_have_left_is_a_lie() -> None:
    box = written(2)
    box.outbox.take_receipt(1, [], 3)
    with pytest.raises(Malformed):
        box.outbox.take_receipt(2, [(2, Category.EXPIRED)], 3)


@given(st.integers(0, 30), st.data())
@settings(deadline=None, max_examples=100)
def test_every_delivery_is_settled_exactly_once(count: int, data: st.DataObject) -> None:
    """Whatever comes in whatever order: receipts, lies, expiry, and one of the ends."""
    box = Box()
    box.add(count)
    _, seq = box.write(messages=data.draw(st.integers(0, count)))
    through = -1
    for _ in range(data.draw(st.integers(0, 4))):
        claimed = data.draw(st.integers(-2, seq + 1))
        rejected = [(at, Category.EXPIRED) for at in sorted(data.draw(st.sets(st.integers(0, 30), max_size=4)))]
        try:
            box.outbox.take_receipt(claimed, rejected, seq)
        except Malformed:
            continue
        assert through <= claimed < max(seq, 0)
        through = claimed
    end = data.draw(st.sampled_from(["rejected", "lost", "closed, lost", "expired, lost"]))
    if end == "closed, lost":
        box.outbox.closed_here(Category.CLOSED)
    if end == "expired, lost":
        box.outbox.expire(NOW + 1)
    if end == "rejected":
        box.outbox.closed_by_peer(Category.CLOSED, None)
    else:
        box.outbox.lose()
    assert sorted(at for at, _ in box.ends) == list(range(count))
    assert box.outbox.buffered == 0
