"""Stopping in order: what is under way ends, everybody learns what became of their messages, and it takes no longer
than it may.

Runs under pytest and under ``python -m twisted.trial tests.test_draining``.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted import Category, DeliveryUnknown, NotConnected, Rejected
from ipc_twisted.draining import end_in_order
from tests.memory_link import SECRET, MemoryServer


class DrainTests(SynchronousTestCase):
    """A server with ``drain_seconds`` 10."""

    def setUp(self) -> None:
        self.server = MemoryServer()
        self.running: list[Deferred[None]] = []
        self.done: list[bool] = []

    def wait(self, *_: Any) -> Deferred[None]:
        """A handler that ends when the test says so."""
        self.running.append(Deferred())
        return self.running[-1]

    def stop(self, seconds: float = 10) -> None:
        factory = self.server.factory
        stopping = end_in_order(factory.transports, factory.when_handlers_end(), self.server.clock, seconds)
        ensureDeferred(stopping).addCallback(self.done.append)
        self.server.turn()

    def test_an_idle_connection_is_closed_at_once(self) -> None:
        link = self.server.connect()
        self.stop()
        self.assertEqual(link.peer.read_until_close()["category"], "shutting_down")
        self.assertEqual(self.done, [])
        link.peer.send_close()
        self.server.turn()
        self.assertEqual(self.done, [True])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_new_messages_are_rejected_and_those_before_are_handled(self) -> None:
        self.server.handler = self.wait
        link = self.server.connect()
        first = link.send(b"first")
        self.stop()
        second = link.send(b"second")
        self.assertEqual(link.peer.receipt_for(second), "shutting_down")
        self.assertEqual(link.peer.receipt_for(first), "accepted")
        self.server.turn(5)
        self.assertEqual(self.done, [])
        self.running[0].callback(None)
        self.assertEqual(link.peer.read_until_close()["category"], "shutting_down")
        self.assertEqual(len(self.server.received), 1)

    def test_a_handler_may_still_send_and_its_message_gets_its_outcome_first(self) -> None:
        self.server.handler = self.wait
        link = self.server.connect()
        link.send()
        self.stop()
        answer = link.protocol.send("job.run", b"done")
        self.running[0].callback(None)
        self.server.turn()
        envelope = link.peer.read_envelope()
        self.assertEqual(envelope["payload"], b"done")
        self.server.turn(3)
        self.assertIsNone(link.peer.close_record)
        link.peer.send_receipt(envelope["seq"])
        self.assertTrue(answer.done())
        self.assertIsNone(answer.exception())
        self.assertEqual(link.peer.read_until_close()["category"], "shutting_down")

    @pytest.mark.attack(9)
    def test_who_is_not_done_in_time_is_told_and_then_cut_off(self) -> None:
        self.server.handler = self.wait
        link = self.server.connect()
        seq = link.send()
        self.stop()
        answer = link.protocol.send("job.run", b"never receipted")
        self.server.turn(8.9)
        self.assertIsNone(link.protocol.category)
        self.server.turn(0.2)
        close = link.peer.read_until_close()
        self.assertEqual((close["category"], close["through"]), ("shutting_down", seq))
        with self.assertRaises(NotConnected):
            link.protocol.send("job.run", b"too late")
        self.server.turn(1)
        self.server.turn()
        self.assertTrue(link.transport.lost)
        self.assertEqual(self.done, [False])
        self.assertIsInstance(answer.exception(), DeliveryUnknown)
        self.running[0].callback(None)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_where_there_is_less_than_a_second_who_says_nothing_is_cut_off_sooner(self) -> None:
        link = self.server.connect()
        self.stop(0.5)
        self.server.turn(0.26)
        self.assertFalse(link.transport.aborted)
        self.server.turn(0.25)
        self.server.turn()
        self.assertTrue(link.transport.lost)
        self.assertEqual(self.done, [False])

    def test_handlers_of_connections_that_are_gone_are_awaited_too(self) -> None:
        self.server.handler = self.wait
        link = self.server.connect()
        link.send()
        link.peer.abort()
        self.stop()
        self.assertEqual(self.done, [])
        self.running[0].callback(None)
        self.assertEqual(self.done, [True])

    def test_a_handshake_may_end_and_who_wrote_behind_it_learns_that_it_was_not_handed_over(self) -> None:
        link = self.server.accept()
        link.peer.send_m1(SECRET)
        link.peer.read_m2()
        self.stop()
        link.peer.send_raw(link.peer.m3_frame + link.frame(b"in the same write"))
        close = link.peer.read_until_close()
        self.assertEqual((close["category"], close["through"]), ("shutting_down", 0))
        self.assertEqual(close["rejected"], [[0, "shutting_down"]])
        self.assertEqual(self.server.received, [])

    def test_what_comes_behind_its_end_is_told_by_the_close_not_to_be_handed_over(self) -> None:
        link = self.server.accept()
        link.peer.send_m1(SECRET)
        link.peer.read_m2()
        self.stop()
        link.peer.send_raw(link.peer.m3_frame)
        link.peer.send_raw(link.frame(b"in the next"))
        close = link.peer.read_until_close()
        self.assertEqual((close["category"], close["through"], close["rejected"]), ("shutting_down", -1, []))
        self.assertEqual(self.server.received, [])

    def test_a_stranger_holds_it_up_for_a_second_and_no_longer(self) -> None:
        link = self.server.accept()
        self.stop()
        self.server.turn(0.9)
        self.assertFalse(link.transport.aborted)
        self.server.turn(0.2)
        self.server.turn()
        self.assertTrue(link.transport.lost)
        self.assertEqual(self.done, [True])

    def test_what_a_closed_connection_has_not_decided_is_rejected_with_the_reason(self) -> None:
        link = self.server.connect()
        sent = link.protocol.send("job.run", b"")
        self.server.turn()
        link.peer.send_close("shutting_down", -1)
        self.assertIsInstance(sent.exception(), Rejected)
        self.assertEqual(link.protocol.category, Category.SHUTTING_DOWN)

    def test_who_answers_the_close_in_the_last_second_is_not_cut_off(self) -> None:
        self.server.handler = self.wait
        link = self.server.connect()
        link.send()
        self.stop()
        self.server.turn(9.1)
        link.peer.read_until_close()
        link.peer.send_close()
        self.server.turn()
        self.assertTrue(link.transport.lost)
        self.assertFalse(link.transport.aborted)
        self.assertEqual(self.done, [False])
        self.running[0].callback(None)
