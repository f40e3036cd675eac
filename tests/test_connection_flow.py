"""One connection: what it sends and when, and its receipts. Credit is in ``test_connection_credit.py``."""

from __future__ import annotations

from typing import Any

import pytest

from ipc_twisted.core.connection import State
from ipc_twisted.core.handshake import Limits
from ipc_twisted.core.outbox import FLAT_COST_BYTES
from ipc_twisted.errors import Category, EnvelopeError, SendBufferFull
from tests import wire_peer as wire
from tests.core_pair import LIMITS, NOW, ROOM, Forger, Pair, client, pair, server

SMALL = Limits(1_000, 30, 16, 70_000)

# Sending


@pytest.mark.contract("SEC-IPC-01")
@pytest.mark.parametrize("payload", [b"", b"x", bytes(4_096), bytes(4_097), bytes(300_000)])
@pytest.mark.parametrize("segment", [1_000_000, 4_096, 47])
def test_a_message_arrives_as_it_was_sent_and_its_sender_learns_it(payload: bytes, segment: int) -> None:
    both = pair()
    sent = both.client.send(payload, trace_id="t", target=["a", "b"], headers={"x": "y"})
    stream = both.client.output()
    for at in range(0, len(stream), segment):
        both.server.connection.receive_data(stream[at : at + segment], NOW)
    (envelope,) = both.server.handed
    assert (envelope.payload_bytes, envelope.trace_id, envelope.target) == (payload, "t", ["a", "b"])
    assert not sent.done()
    both.settle()
    assert (sent.done(), sent.exception()) == (True, None)


@pytest.mark.contract("SEC-IPC-01b")
def test_both_directions_carry_messages_in_order() -> None:
    both = pair()
    for at in range(50):
        both.client.send(b"c%d" % at)
        both.server.send(b"s%d" % at)
    both.settle()
    assert [envelope.payload_bytes for envelope in both.server.handed] == [b"c%d" % at for at in range(50)]
    assert [envelope.payload_bytes for envelope in both.client.handed] == [b"s%d" % at for at in range(50)]


REFUSED: list[tuple[str, Any, dict[str, Any], Category, str]] = [
    ("kind empty", b"", {"kind": ""}, Category.MALFORMED, "kind must be"),
    ("target a tuple", b"", {"target": ("a",)}, Category.MALFORMED, "target must be"),
    ("one byte too many", bytes(1_001), {}, Category.PAYLOAD_TOO_LARGE, "max_payload_bytes is 1000"),
]


@pytest.mark.attack(31)
@pytest.mark.contract("SEC-IPC-05")
@pytest.mark.parametrize(
    ("payload", "fields", "category", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_the_peer_would_refuse_is_refused_before_anything_is_queued(
    payload: Any, fields: dict[str, Any], category: Category, text: str
) -> None:
    both = pair(LIMITS, SMALL)
    with pytest.raises(EnvelopeError, match=text) as caught:
        both.client.send(payload, **fields)
    assert caught.value.category is category
    assert (both.client.connection.outbox.buffered, both.client.output()) == (0, b"")


@pytest.mark.contract("SEC-IPC-05")
@pytest.mark.parametrize(("size", "taken"), [(1_000, True), (1_001, False)])
def test_a_receiver_holds_its_peer_to_its_own_limit_and_not_to_the_peers(size: int, taken: bool) -> None:
    side = server(SMALL)
    forger = Forger(side, LIMITS)
    forger.say(forger.envelope(bytes(size)))
    assert len(side.handed) == taken
    assert forger.hear()[0][1][0] == (0 if taken else "payload_too_large")


@pytest.mark.parametrize(("age", "taken"), [(-31, False), (-30, True), (30, True), (31, False)])
def test_a_receiver_holds_its_peer_to_its_own_time_to_live_and_not_to_the_peers(age: int, taken: bool) -> None:
    side = server()
    forger = Forger(side, LIMITS._replace(ttl_seconds=86_400))
    forger.say(forger.envelope(ts=NOW + age))
    assert len(side.handed) == taken


def test_the_largest_payload_the_peer_takes_is_sent() -> None:
    both = pair(LIMITS, SMALL)
    sent = both.client.send(bytes(1_000))
    both.settle()
    assert (sent.done(), sent.exception()) == (True, None)


def test_what_can_never_fit_the_peers_byte_credit_is_refused_at_once() -> None:
    """It would wait until it expired, and everything behind it too. Any limits are legal in a handshake."""
    both = pair(LIMITS, Limits(10_000, 30, 16, 500))
    with pytest.raises(
        EnvelopeError, match=r"more than the receiver ever grants .*max_inflight_bytes is 500"
    ) as caught:
        both.client.send(bytes(500))
    assert caught.value.category is Category.PAYLOAD_TOO_LARGE
    both.client.send(bytes(400))
    both.settle()
    assert len(both.server.handed) == 1


def test_one_that_fits_what_was_granted_since_is_not_refused() -> None:
    """The first grant is the least that a receiver ever gives; it may give more."""
    side = server()
    forger = Forger(side, LIMITS._replace(bytes=500))
    forger.say(forger.receipt(octets=2_000))
    side.send(bytes(1_000))
    assert [type_ for type_, _ in forger.hear()] == [wire.ENVELOPE]


def test_a_full_buffer_refuses_and_takes_again_once_something_was_decided() -> None:
    both = pair(send_buffer=2 * FLAT_COST_BYTES + 200)
    both.client.send()
    both.client.send()
    with pytest.raises(SendBufferFull):
        both.client.send(bytes(200))
    both.settle()
    both.client.send(bytes(200))


def test_what_was_queued_does_not_change_with_the_callers_objects() -> None:
    both = pair()
    target, headers = ["a"], {"x": "y"}
    both.client.send(target=target, headers=headers)
    target.append("b")
    headers["z"] = "z"
    both.settle()
    assert (both.server.handed[0].target, both.server.handed[0].headers) == (["a"], {"x": "y"})


# Receipts


def test_a_turn_has_one_receipt_and_only_when_something_was_decided() -> None:
    """They never pile up."""
    side = server()
    forger = Forger(side)
    assert (forger.hear(), side.connection.wants_to_write) == ([], False)
    frames = [forger.envelope() for _ in range(5)]
    forger.say(*frames)
    assert side.connection.wants_to_write
    credit = [LIMITS.messages + 5, LIMITS.bytes + sum(map(len, frames))]
    assert forger.hear() == [(wire.RECEIPT, [4, [], *credit])]
    assert (forger.hear(), side.connection.wants_to_write) == ([], False)


def test_a_receipt_says_accepted_before_the_handler_has_ended_and_credit_after() -> None:
    side = server()
    side.handler = lambda _envelope, _size: False
    forger = Forger(side)
    frame = forger.envelope()
    forger.say(frame)
    assert forger.hear() == [(wire.RECEIPT, [0, [], LIMITS.messages, LIMITS.bytes])]
    side.connection.finish(len(frame))
    assert forger.hear() == [(wire.RECEIPT, [0, [], LIMITS.messages + 1, LIMITS.bytes + len(frame)])]
    assert forger.hear() == []


@pytest.mark.contract("SEC-IPC-06")
def test_a_rejection_is_told_with_its_category_and_the_connection_goes_on() -> None:
    side = server()
    forger = Forger(side)
    forger.say(forger.envelope(), forger.envelope(kind="job.drop"), forger.envelope(ts=NOW - 31), forger.envelope())
    ((_, receipt),) = forger.hear()
    assert receipt[:2] == [3, [[1, "kind_not_allowed"], [2, "expired"]]]
    assert [rejection.category for rejection in side.rejected] == [Category.KIND_NOT_ALLOWED, Category.EXPIRED]
    assert (side.state, len(side.handed)) == (State.OPEN, 2)


def test_more_rejections_than_a_receipt_holds_go_out_in_the_next() -> None:
    side = server(LIMITS._replace(messages=10_000))
    forger = Forger(side)
    forger.say(*(forger.envelope(kind="x") for _ in range(1_500)), forger.envelope())
    ((_, first),) = forger.hear()
    assert side.connection.wants_to_write
    ((_, second),) = forger.hear()
    assert (first[0], len(first[1]), second[0], len(second[1])) == (999, 1_000, 1_500, 500)
    assert (first[2], second[2]) == (10_000, 11_501), "credit comes back when all is told, or they could pile up"
    assert forger.hear() == []


def test_a_receipt_goes_ahead_of_queued_envelopes_and_needs_no_credit() -> None:
    side = server()
    forger = Forger(side, LIMITS._replace(messages=0))
    side.send()
    forger.say(forger.envelope())
    assert [type_ for type_, _ in forger.hear()] == [wire.RECEIPT]
    forger.say(forger.receipt(messages=1), forger.envelope())
    assert [type_ for type_, _ in forger.hear()] == [wire.RECEIPT, wire.ENVELOPE]


def test_without_room_only_a_handshake_or_a_close_is_written() -> None:
    """A peer that does not read must not make receipts pile up."""
    side = server()
    forger = Forger(side)
    side.send()
    forger.say(forger.envelope())
    assert forger.hear(room=0) == []
    assert side.connection.wants_to_write
    side.connection.close()
    assert forger.hear(room=0) == [(wire.CLOSE, ["closed", 0, [], None])]


def test_little_more_than_the_room_is_written() -> None:
    both = pair()
    for _ in range(10):
        both.client.send(bytes(100_000))
    assert ROOM <= len(both.client.output()) < ROOM + 100_200
    assert len(both.client.output(room=1)) < 100_200


def test_a_message_waits_for_credit_and_expires_when_none_comes() -> None:
    side = server()
    forger = Forger(side, LIMITS._replace(messages=0, ttl_seconds=10))
    assert side.connection.expires_at is None
    sent, later = side.send(ts=NOW), side.send(ts=NOW + 5)
    assert side.connection.expires_at == NOW + 11
    assert forger.hear(NOW + 10) == []
    assert not sent.done()
    side.connection.expire(NOW + 11)
    assert str(sent.exception()) == "expired: unsent: no connection or no credit came within its time to live"
    assert side.connection.expires_at == NOW + 16
    assert forger.hear(NOW + 16) == []
    assert later.done()
    assert (side.connection.expires_at, side.connection.wants_to_write) == (None, False)


def test_nothing_expires_before_the_handshake() -> None:
    stranger = client()
    stranger.connection.expire(NOW)
    assert (stranger.connection.expires_at, stranger.connection.receipt_due) == (None, False)
    assert (stranger.connection.peer, stranger.connection.receiving, stranger.connection.in_flight) == (None, 0, 0)


def test_what_the_handshake_brought_can_be_asked_for() -> None:
    both = pair(SMALL, LIMITS)
    assert both.server.connection.peer is not None
    assert both.server.connection.peer.limits == SMALL
    assert (both.client.authenticated, both.server.authenticated) == (1, 1)


def test_the_first_record_may_come_with_m3() -> None:
    both = Pair(client(), server())
    both.server.connection.receive_data(both.client.output(), NOW)
    both.client.connection.receive_data(both.server.output(), NOW)
    both.client.send(b"first")
    both.server.connection.receive_data(both.client.output(), NOW)
    assert [envelope.payload_bytes for envelope in both.server.handed] == [b"first"]
