"""Peers that do not read, or read and send no receipts: each is found at its limit, and a slow one is not.

Runs under pytest and under ``python -m twisted.trial tests.test_peer_watch``.
"""

from __future__ import annotations

import pytest
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted import DeliveryUnknown
from tests.memory_link import MemoryLink, MemoryServer

LIMITS = {"write_stall_seconds": 30, "receipt_timeout_seconds": 60}


def fill(link: MemoryLink, held: int) -> None:
    """The transport holds so many bytes that its socket does not take."""
    link.transport.dataBuffer = bytes(held)


class WriteStallTests(SynchronousTestCase):
    """``limits.write_stall_seconds``."""

    def setUp(self) -> None:
        self.server = MemoryServer(LIMITS | {"receipt_timeout_seconds": 10_000})
        self.link = self.server.connect()
        self.server.turn()

    def write(self, held: int) -> None:
        """Write a message that the socket does not take, nor what was there before."""
        self.link.protocol.send("job.run", b"x" * 100)
        fill(self.link, held)
        self.server.turn()

    def wait(self, seconds: float) -> None:
        """In small steps: a leap is taken for lateness of this process."""
        for _ in range(int(seconds * 2)):
            self.server.turn(0.5)
        self.server.turn(seconds % 0.5)

    @pytest.mark.attack(7)
    def test_a_peer_that_takes_nothing_is_cut_off_at_the_limit(self) -> None:
        self.write(500)
        self.wait(29.9)
        self.assertFalse(self.link.transport.aborted)
        self.wait(0.2)
        self.assertTrue(self.link.transport.aborted)
        self.assertEqual(str(self.link.protocol.category), "write_stalled")
        self.assertEqual(self.server.factory.counters["ended", "write_stalled"], 1)

    def test_one_that_takes_a_byte_at_a_time_is_not(self) -> None:
        self.write(500)
        for held in range(499, 489, -1):
            self.wait(29)
            fill(self.link, held)
            self.wait(1)
        self.assertFalse(self.link.transport.aborted)
        self.wait(31)
        self.wait(31)
        self.assertTrue(self.link.transport.aborted)

    def test_one_that_takes_some_while_more_is_written_is_not(self) -> None:
        self.write(500)
        self.wait(20)
        size = len(self.link.transport.take())
        self.link.protocol.send("job.run", b"y" * 100)
        self.server.turn()
        fill(self.link, 500 + len(self.link.transport.take()) - 1)
        self.assertGreater(size, 0)
        self.wait(11)
        self.assertFalse(self.link.transport.aborted)

    def test_one_that_takes_all_is_not_and_is_watched_again_at_the_next_write(self) -> None:
        self.write(0)
        self.wait(31)
        self.write(500)
        self.wait(29)
        self.assertFalse(self.link.transport.aborted)
        self.wait(2)
        self.assertTrue(self.link.transport.aborted)

    def test_one_that_stops_just_behind_a_write_is_cut_off_little_behind_the_limit(self) -> None:
        self.write(500)
        fill(self.link, 400)
        self.wait(29.9)
        self.assertFalse(self.link.transport.aborted)
        self.wait(8)
        self.assertTrue(self.link.transport.aborted)

    def test_nothing_is_left_of_it_behind_the_end(self) -> None:
        self.write(500)
        self.link.peer.abort()
        self.assertEqual(self.server.clock.getDelayedCalls(), [])


class ReceiptTimeoutTests(SynchronousTestCase):
    """``limits.receipt_timeout_seconds``."""

    def setUp(self) -> None:
        self.server = MemoryServer(LIMITS)
        self.link = self.server.connect()
        self.server.turn()

    def test_a_message_without_a_receipt_ends_the_connection_at_the_limit(self) -> None:
        sent = self.link.protocol.send("job.run", b"")
        self.server.turn()
        self.server.turn(59.9)
        self.assertFalse(self.link.transport.aborted)
        self.server.turn(0.2)
        self.assertTrue(self.link.transport.aborted)
        self.assertEqual(str(self.link.protocol.category), "receipt_timeout")
        self.assertIsInstance(sent.exception(), DeliveryUnknown)

    def test_each_message_has_its_own_time(self) -> None:
        self.link.protocol.send("job.run", b"first")
        self.server.turn()
        self.server.turn(40)
        self.link.protocol.send("job.run", b"second")
        self.server.turn()
        self.server.turn(10)
        self.link.peer.send_receipt(0)
        for _ in range(4):
            self.server.turn(10)
        self.assertFalse(self.link.transport.aborted, "the second was written 50 s ago")
        self.server.turn(10.1)
        self.assertTrue(self.link.transport.aborted)

    def test_new_messages_do_not_put_off_the_time_of_an_old_one(self) -> None:
        for _ in range(6):
            self.link.protocol.send("job.run", b"")
            self.server.turn()
            self.server.turn(9.9)
        self.assertFalse(self.link.transport.aborted)
        self.server.turn(0.7)
        self.assertTrue(self.link.transport.aborted)

    def test_one_that_waits_for_credit_is_not_written_yet(self) -> None:
        payload, _, _, octets = self.link.peer.limits
        link = self.server.connect(limits=(payload, 3_600, 0, octets))
        link.protocol.send("job.run", b"")
        self.server.turn()
        self.server.turn(61)
        self.server.turn(61)
        self.assertFalse(link.transport.aborted)

    def test_with_all_receipts_in_nothing_is_timed(self) -> None:
        self.link.protocol.send("job.run", b"")
        self.server.turn()
        self.link.peer.send_receipt(0)
        for _ in range(5):
            self.server.turn(61)
        self.assertFalse(self.link.transport.aborted)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    @pytest.mark.attack(40)
    def test_a_process_that_was_stopped_itself_gives_the_peer_its_time_again(self) -> None:
        self.link.protocol.send("job.run", b"")
        self.server.turn()
        self.server.turn(600)
        self.assertFalse(self.link.transport.aborted)
        self.link.peer.send_receipt(0)
        self.assertFalse(self.link.transport.aborted)
