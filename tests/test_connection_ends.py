"""One connection: what each end says, settles and leaves alone, also when it comes from within."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ipc_twisted.core.codec import NO_SEQ
from ipc_twisted.core.connection import Connection, State
from ipc_twisted.core.resend import ResendingOutbox
from ipc_twisted.errors import Category
from tests import wire_peer as wire
from tests.core_pair import LIMITS, NOW, Forger, Side, client, pair, server
from tests.test_connection import EVENTS, FORGED, in_state, outcome


def test_an_orderly_close_still_learns_what_the_peer_decides() -> None:
    both = pair()
    sent = [both.client.send(bytes([at])) for at in range(3)]
    both.server.connection.receive_data(both.client.output(), NOW)
    both.client.connection.close()
    both.settle()
    assert [outcome(one) for one in sent] == ["accepted"] * 3
    assert (both.client.state, both.server.state) == (State.DONE, State.DONE)


def test_after_our_close_envelopes_are_dropped_and_receipts_are_read() -> None:
    """They lie beyond the ``through`` that our CLOSE named, so their sender sends them elsewhere."""
    side = server()
    forger = Forger(side)
    sent = side.send()
    assert len(forger.hear()) == 1
    side.connection.close(Category.SHUTTING_DOWN)
    assert forger.hear() == [(wire.CLOSE, ["shutting_down", NO_SEQ, [], None])]
    forger.say(forger.envelope(), forger.envelope(kind="x"), forger.receipt(0), forger.envelope())
    assert (side.handed, side.rejected, len(side.guard), outcome(sent)) == ([], [], 0, "accepted")
    assert forger.hear() == []


def test_our_close_is_the_last_record_also_where_the_outbox_keeps_what_is_queued() -> None:
    outbox = ResendingOutbox(10**9, Counter(), lambda _delivery: None)
    side = client(outbox=outbox)
    forger = Forger(side)
    sent = side.send()
    side.connection.close()
    assert [type_ for type_, _ in forger.hear()] == [wire.CLOSE]
    assert forger.hear() == []
    assert [*outbox.queue] == [sent]


def test_a_record_at_fault_after_our_close_ends_it_without_a_word() -> None:
    both = pair()
    sent = both.client.send()
    both.client.output()
    both.client.connection.close()
    both.client.output()
    both.client.connection.receive_data(b"\0\0\0\0", NOW)
    assert (both.client.state, both.client.output(), outcome(sent)) == (State.FAILED, b"", "delivery_unknown")


FAULTS: dict[str, tuple[Callable[[Forger], bytes], str]] = {
    "forged": (lambda f: f.envelope(sig=FORGED), "signature_invalid"),
    "unsigned": (lambda f: f.envelope(sig=bytes(32)), "signature_missing"),
    "repeated": (lambda f: f.envelope(seq=0), "replayed"),
    "gap": (lambda f: f.envelope(seq=7), "sequence_gap"),
    "malformed": (lambda f: f.envelope(header=b"\x90"), "malformed"),
    "beyond the credit": (lambda f: f.envelope() + f.envelope(), "credit_exceeded"),
    "too long": (lambda f: b"\xff\xff\xff\xff", "payload_too_large"),
    "too short": (lambda f: b"\0\0\0\0", "malformed"),
    "a receipt that lies": (lambda f: f.receipt(5), "malformed"),
    "credit that falls": (lambda f: f.receipt(messages=1), "malformed"),
    "byte credit that falls": (lambda f: f.receipt(octets=1), "malformed"),
    "a close that lies": (lambda f: f.close(through=5), "malformed"),
}


@pytest.mark.parametrize(("make", "category"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_with_the_sequence_number_that_was_expected(
    make: Callable[[Forger], bytes], category: str
) -> None:
    """And what came before it in the same segment counts, and what comes behind it does not."""
    side = server(LIMITS._replace(messages=2))
    side.handler = lambda _envelope, _size: False
    forger = Forger(side)
    good = forger.envelope()
    bad = make(forger)
    expected = 2 if category == "credit_exceeded" else 1
    side.connection.receive_data(good + bad + forger.envelope(seq=1) + forger.envelope(seq=2), NOW)
    assert forger.hear() == [(wire.CLOSE, [category, expected - 1, [], expected])]
    assert (side.state, len(side.handed), len(side.guard)) == (State.FAILED, expected, expected)


def test_a_frame_that_does_not_end_is_told_too() -> None:
    side = server()
    forger = Forger(side)
    forger.say(forger.envelope(), forger.envelope()[:60])
    assert side.connection.receiving
    side.connection.fail(Category.FRAME_TIMEOUT)
    assert forger.hear() == [(wire.CLOSE, ["frame_timeout", 0, [], 1])]


@pytest.mark.parametrize("count", [999, 1_000, 1_001, 2_000, 2_500])
@pytest.mark.parametrize("end", ["close", "fail", "peer's close"])
def test_more_rejections_than_a_close_can_hold_go_out_before_it(count: int, end: str) -> None:
    """In RECEIPTs, so that none of them reads as accepted."""
    side = server(LIMITS._replace(messages=10_000))
    forger = Forger(side)
    forger.say(*(forger.envelope(kind="x") for _ in range(count)), forger.envelope())
    EVENTS[end](side, forger)
    *receipts, (type_, (_, through, rejected, _)) = forger.hear()
    told: list[Any] = []
    before = -1
    for kind, (receipt_through, listed, *_) in receipts:
        assert (kind, len(listed)) == (wire.RECEIPT, 1_000)
        assert before < listed[0][0]
        assert listed[-1][0] <= receipt_through < count
        before, told = receipt_through, told + listed
    assert (type_, through, len(receipts)) == (wire.CLOSE, count, (count - 1) // 1_000)
    assert told + rejected == [[at, "kind_not_allowed"] for at in range(count)]


@pytest.mark.parametrize("records", [True, False])
def test_a_close_is_answered_once_and_what_follows_it_is_not_read(records: bool) -> None:
    side = server()
    forger = Forger(side)
    sent = side.send()
    forger.say(
        forger.envelope(),
        forger.close("too_many_connections"),
        *([forger.envelope(), forger.close()] if records else []),
        b"\0" * 99,
    )
    assert forger.hear() == [(wire.CLOSE, ["closed", 0, [], None])]
    assert (side.state, len(side.handed), side.connection.category) == (State.DONE, 1, Category.TOO_MANY_CONNECTIONS)
    assert outcome(sent) == "too_many_connections"


def test_a_dead_connection_drops_every_later_byte() -> None:
    """Also a length that is out of bounds: nobody is told anything."""
    side, forger = in_state("dead")
    assert forger is not None
    forger.say(forger.envelope(), b"\xff" * 60)
    assert (side.handed, len(side.guard), forger.hear()) == ([], 0, [])


@pytest.mark.parametrize("end", [Connection.abandon, Connection.fail])
def test_of_a_payload_that_is_arriving_nothing_is_taken_behind_the_end(
    end: Callable[[Connection, Category], None],
) -> None:
    """A part of it goes to the framer without a look at the state."""
    side = server()
    forger = Forger(side)
    frame = forger.envelope(bytes(9_000))
    forger.say(frame[:4_000])
    assert side.connection.receive_part(frame[4_000:5_000])
    end(side.connection, Category.FRAME_TIMEOUT)
    assert not side.connection.receive_part(frame[5_000:6_000])


# Ends from within


def ending(side: Side, end: str) -> bool:
    EVENTS[end](side, None)
    return True


@pytest.mark.parametrize("fault_behind", [b"", b"\xff" * 60])
@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_hand_over_that_ends_the_connection_leaves_the_rest_of_the_segment(end: str, fault_behind: bytes) -> None:
    """Neither handed over nor in the guard nor in ``through``: a sender may send it again elsewhere."""
    side = server()
    forger = Forger(side)
    side.handler = lambda _envelope, _size: ending(side, end)
    forger.say(forger.envelope(), forger.envelope(kind="x"), forger.envelope(), fault_behind)
    assert (len(side.handed), len(side.guard), side.rejected) == (1, 1, [])
    assert forger.hear() == ([(wire.CLOSE, ["shutting_down", 0, [], None])] if end == "close" else [])
    behind_close = State.FAILED if fault_behind else State.CLOSING
    assert side.state is (behind_close if end == "close" else State.DEAD)


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_an_end_in_the_moment_of_authentication_hands_nothing_over(end: str) -> None:
    """Too many connections: it is told only now that it has proved itself, and its first record is already here."""
    both = pair()
    side = server()
    side.on_authenticated = lambda: EVENTS[end](side, None)
    fresh = client()
    side.connection.receive_data(fresh.output(), NOW)
    fresh.connection.receive_data(side.output(), NOW)
    fresh.send(b"first")
    side.connection.receive_data(fresh.output(), NOW)
    assert (side.authenticated, side.handed, len(side.guard)) == (1, [], 0)
    assert side.state is (State.CLOSING if end == "close" else State.DEAD)
    assert both.client.state is State.OPEN


@pytest.mark.parametrize("said", ["receipt", "close"])
@pytest.mark.parametrize("end", ["close", "abandon"])
def test_who_learns_of_an_outcome_may_end_the_connection(said: str, end: str) -> None:
    """A second CLOSE would be a fault of ours; and what was abandoned stays dead."""
    side = server()
    forger = Forger(side)
    sent = side.send()
    sent.add_done_callback(lambda _: EVENTS[end](side, None))
    side.send()
    assert len(forger.hear()) == 2
    forger.say(forger.receipt(0) if said == "receipt" else forger.close(through=0), forger.envelope())
    closes = [header[0] for type_, header in forger.hear() if type_ == wire.CLOSE]
    assert closes == ([] if end == "abandon" else ["shutting_down"])
    wanted = {"receipt": State.CLOSING, "close": State.DONE}[said] if end == "close" else State.DEAD
    assert side.state is wanted
    assert outcome(sent) == "accepted"


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_who_learns_of_an_expiry_may_end_the_connection_while_it_writes(end: str) -> None:
    """The CLOSE must be the last record, with the last sequence number: a RECEIPT is due and more is queued."""
    side = server()
    forger = Forger(side)
    side.send(b"old", ts=NOW - 31).add_done_callback(lambda _: EVENTS[end](side, None))
    side.send(b"fresh")
    forger.say(forger.envelope())
    heard = forger.hear()
    assert heard == ([(wire.CLOSE, ["shutting_down", 0, [], None])] if end == "close" else [])
    assert forger.hear() == []
    assert [outcome(one) for one in side.unclaimed] == ["shutting_down" if end == "close" else "delivery_unknown"]


def test_handlers_may_end_after_their_connection() -> None:
    side = server()
    side.handler = lambda _envelope, _size: False
    forger = Forger(side)
    forger.say(forger.envelope())
    assert side.connection.in_flight == 1
    side.connection.abandon(Category.CLOSED)
    side.connection.finish(100)
    assert side.connection.in_flight == 0
    stranger = server()
    stranger.connection.finish(100)
    assert stranger.connection.in_flight == 0


def test_a_client_that_is_abandoned_while_its_first_messages_expire_does_not_finish_the_handshake() -> None:
    """The transport is aborted by then; what is written now would go straight to the kernel."""
    ours, theirs = client(), server()
    ours.on_authenticated = lambda: ours.send(ts=NOW - 100).add_done_callback(
        lambda _: ours.connection.abandon(Category.CLOSED)
    )
    theirs.connection.receive_data(ours.output(), NOW)
    ours.connection.receive_data(theirs.output(), NOW)
    assert ours.output() == b""
    assert ours.state is State.DEAD
