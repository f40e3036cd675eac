"""One connection: that nobody writes beyond its credit, and that credit never locks two sides up."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from ipc_twisted.core.connection import State
from ipc_twisted.core.handshake import Limits
from ipc_twisted.core.outbox import Delivery
from tests.core_pair import LIMITS, MIB, NOW, Forger, Side, pair, server

WINDOWS = [1, 2, 16]


def small(window: int) -> Limits:
    """A window of messages, and of bytes that hold little more than one largest frame."""
    return Limits(1_000, 30, window, 1_200 if window == 1 else 66_582)


@pytest.mark.parametrize("window", WINDOWS)
def test_two_sides_that_only_write_never_lock_each_other_up(window: int) -> None:
    """Receipts travel in the same stream, so nobody may stop reading while it waits for one."""
    both = pair(small(window), small(window))
    sent = [side.send(b"%d" % at, ts=NOW) for at in range(200) for side in both]
    both.settle()
    assert all(delivery.done() and delivery.exception() is None for delivery in sent)
    for side in both:
        assert [envelope.payload_bytes for envelope in side.handed] == [b"%d" % at for at in range(200)]


class Answering:
    """Handlers that await their own send on the same connection before they are done."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.answers: list[Delivery] = []
        self.most = 0
        side.handler = self.handle

    def handle(self, envelope: Any, size: int) -> bool:
        self.most = max(self.most, self.side.connection.in_flight)
        if envelope.payload_bytes.startswith(b"answer"):
            return True
        answer = self.side.send(b"answer " + envelope.payload_bytes)
        self.answers.append(answer)
        answer.add_done_callback(lambda _: self.side.connection.finish(size))
        return False


@pytest.mark.parametrize("window", WINDOWS)
def test_handlers_that_await_their_own_sends_go_on_with_the_smallest_credit(window: int) -> None:
    both = pair(small(window), small(window))
    answering = Answering(both.server)
    sent = [both.client.send(b"%d" % at) for at in range(100)]
    both.settle()
    assert all(delivery.exception() is None for delivery in (*sent, *answering.answers))
    assert [e.payload_bytes for e in both.server.handed] == [b"%d" % at for at in range(100)]
    assert [e.payload_bytes for e in both.client.handed] == [b"answer %d" % at for at in range(100)]
    assert answering.most <= window


@pytest.mark.parametrize("window", WINDOWS)
def test_handlers_on_both_sides_that_await_their_own_sends_all_end(window: int) -> None:
    """Each side's window can be full of handlers that wait for the other's: what gets no credit within its time to
    live expires, and frees them. Every message has an outcome, and the connection goes on."""
    both = pair(small(window), small(window))
    answering = [Answering(side) for side in both]
    sent = [side.send(b"%d" % at) for at in range(20) for side in both]
    for now in range(NOW, NOW + 200):
        both.settle(now)
        if all(one.done() for one in (*sent, *answering[0].answers, *answering[1].answers)):
            break
        for side in both:
            side.connection.expire(now)
    everything = [*sent, *answering[0].answers, *answering[1].answers]
    assert all(one.done() for one in everything)
    assert {str(one.exception()).partition(":")[0] for one in everything} <= {"None", "expired"}
    for side, other in (both, both[::-1]):
        accepted = [one for one in sent[side is both.server :: 2] if one.exception() is None]
        requests = [e for e in other.handed if not e.payload_bytes.startswith(b"answer")]
        assert len(requests) == len(accepted)
        assert other.connection.in_flight == 0
    last = both.client.send(b"answer: goes on", ts=now)
    both.settle(now)
    assert (last.done(), last.exception()) == (True, None)


def test_a_sender_is_never_beyond_the_credit_whatever_the_order_of_handlers() -> None:
    """The receiver would end the connection."""
    both = pair(LIMITS, Limits(1_000, 30, 3, 2_200))
    waiting: deque[int] = deque()

    def handle(_: object, size: int) -> bool:
        waiting.append(size)
        return False

    both.server.handler = handle
    for at in range(60):
        both.client.send(bytes(at * 17 % 1_000))
    turn = 0
    while both.client.connection.outbox.buffered:
        both.settle()
        turn += 1
        assert len(waiting) <= 3
        assert sum(waiting) <= 2_200
        both.server.connection.finish(waiting.pop() if turn % 2 else waiting.popleft())
    assert (both.server.state, len(both.server.handed)) == (State.OPEN, 60)


def test_the_window_outgrows_what_the_handshake_can_say() -> None:
    """Totals are counted in Python integers and travel as u64: gigabytes later the credit still rises."""
    side = server()
    forger = Forger(side)
    forger.say(forger.receipt(messages=2**40, octets=2**50))
    forger.say(forger.receipt(messages=2**64 - 1, octets=2**64 - 1))
    side.send(bytes(MIB))
    assert len(side.output(room=2 * MIB)) > MIB
    assert side.state is State.OPEN
