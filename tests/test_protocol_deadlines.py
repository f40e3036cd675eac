"""How long a peer may take for the handshake, and for a record. On a clock, without a socket.

Runs under pytest and under ``python -m twisted.trial tests.test_protocol_deadlines``.
"""

from __future__ import annotations

from twisted.internet.error import ConnectionLost as ConnectionReset

from ipc_twisted import Category, HandshakeError
from ipc_twisted.protocol import LINGER_SECONDS
from tests import wire_peer as wire
from tests.memory_case import HOUR, M1, M2_BYTES, LoggedTestCase
from tests.memory_link import SECRET, MemoryClient, MemoryLink, MemoryServer


class HandshakeDeadlineTests(LoggedTestCase):
    """``limits.handshake_timeout_seconds`` counts from the accept, whatever comes meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.server = MemoryServer({"handshake_timeout_seconds": 10})

    def assertGoneAtTheDeadline(self, link: MemoryLink, left: float, answered: int = 0) -> None:
        self.server.turn(left - 0.01)
        self.assertFalse(link.transport.aborted)
        self.server.turn(0.02)
        self.assertTrue(link.transport.aborted)
        self.assertEqual(len(link.transport.take()), answered)
        self.server.turn()
        self.assertEqual(self.server.factory.counters["handshake", "handshake_timeout"], 1)
        self.assertNothingLeft(self.server)

    def test_a_silent_stranger_is_gone_at_the_deadline(self) -> None:
        self.assertGoneAtTheDeadline(self.server.accept(), 10)

    def test_bytes_do_not_extend_it(self) -> None:
        link = self.server.accept()
        for byte in M1[:9]:
            self.server.turn(1)
            link.peer.send_raw(bytes([byte]))
        self.assertGoneAtTheDeadline(link, 1)

    def test_a_good_first_message_does_not_extend_it(self) -> None:
        link = self.server.accept()
        self.server.turn(9)
        link.peer.send_raw(M1)
        self.assertGoneAtTheDeadline(link, 1, answered=M2_BYTES)

    def test_a_third_message_that_never_ends_does_not_extend_it(self) -> None:
        link = self.server.accept()
        link.peer.send_m1(SECRET)
        link.peer.read_m2()
        self.server.turn(5)
        link.peer.send_raw(link.peer.m3_frame[:-1])
        self.assertGoneAtTheDeadline(link, 5)

    def test_it_is_over_with_the_handshake(self) -> None:
        link = self.server.connect()
        self.server.turn(HOUR)
        self.server.turn(HOUR)
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_one_that_fires_late_begins_anew_since_this_process_was_held_up(self) -> None:
        link = self.server.accept()
        self.server.turn(600)
        self.assertFalse(link.transport.aborted)
        link.peer.handshake(SECRET)
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_one_that_began_anew_still_ends(self) -> None:
        link = self.server.accept()
        self.server.turn(600)
        self.assertGoneAtTheDeadline(link, 10)

    def test_strangers_that_come_and_go_at_a_port_need_one_timer(self) -> None:
        """A timer of its own would be a good part of what each costs."""
        factory = self.server.factory
        factory.doStart()
        for _ in range(3):
            self.server.accept().transport.lose(ConnectionReset())
            self.assertEqual(len(self.server.clock.getDelayedCalls()), 1)
        self.server.turn(5)
        link = self.server.accept()
        factory.doStop()
        self.server.clock.pump([0.5] * 19)
        self.assertFalse(link.transport.aborted)
        self.server.turn(0.5)
        self.assertTrue(link.transport.aborted)
        self.server.turn()
        self.assertNothingLeft(self.server)

    def test_a_port_that_is_gone_leaves_no_timer(self) -> None:
        self.server.factory.doStart()
        self.server.accept().transport.lose(ConnectionReset())
        self.server.factory.doStop()
        self.assertNothingLeft(self.server)

    def test_a_dialler_waits_no_longer_either(self) -> None:
        client = MemoryClient({"handshake_timeout_seconds": 10})
        waiting = client.protocol.when_authenticated()
        client.clock.advance(9.99)
        self.assertNoResult(waiting)
        client.clock.advance(0.02)
        error = self.failureResultOf(waiting, HandshakeError).value
        self.assertEqual(error.category, Category.HANDSHAKE_TIMEOUT)
        self.assertEqual(client.clock.getDelayedCalls(), [])


class FrameDeadlineTests(LoggedTestCase):
    """``limits.frame_timeout_seconds``: a record that has begun must end."""

    def setUp(self) -> None:
        super().setUp()
        self.server = MemoryServer({"frame_timeout_seconds": 30}, {"ttl_seconds": 86_400})
        self.link = self.server.connect()

    def assertTimedOut(self) -> None:
        close = self.link.peer.read_until_close()
        self.assertEqual((close["category"], close["cause"]), ("frame_timeout", 0))
        self.assertTrue(self.link.transport.half_closed)
        self.assertEqual(self.server.received, [])

    def test_a_record_that_never_ends(self) -> None:
        frame = self.link.frame(b"x" * 100)
        for length in (1, 4, 46, 47, len(frame) - 1):
            with self.subTest(length=length):
                self.link = self.server.connect()
                self.link.peer.send_raw(frame[:length])
                self.server.turn(29.99)
                self.assertTrue(self.link.protocol.is_open)
                self.server.turn(0.02)
                self.assertTimedOut()

    def test_bytes_do_not_extend_it(self) -> None:
        for byte in self.link.frame()[:29]:
            self.link.peer.send_raw(bytes([byte]))
            self.server.turn(1)
        self.server.turn(1.01)
        self.assertTimedOut()

    def test_bytes_of_its_payload_do_not_extend_it_and_are_counted(self) -> None:
        before = self.server.factory.bytes_received
        self.link.peer.send_raw(self.link.frame(b"x" * 1_000)[:200])
        for _ in range(29):
            self.server.turn(1)
            self.link.peer.send_raw(b"x")
        self.assertEqual(self.server.factory.bytes_received - before, 229)
        self.server.turn(1.01)
        self.assertTimedOut()

    def test_none_runs_behind_our_close(self) -> None:
        """Also where the CLOSE is said at the end of the segment in which the record began."""
        self.link.protocol.send("job.run", b"")
        self.link.protocol.drain(Category.SHUTTING_DOWN)
        self.server.turn()
        self.link.peer.read_envelope()
        peer = self.link.peer
        receipt = peer.record_frame(wire.RECEIPT, [peer.last_envelope, [], *peer.granted])[1]
        peer.send_raw(receipt + self.link.frame() + self.link.frame()[:9])
        self.assertTrue(self.link.transport.half_closed)
        waits = [call.getTime() - self.server.clock.seconds() for call in self.server.clock.getDelayedCalls()]
        self.assertEqual([wait for wait in waits if wait > LINGER_SECONDS], [])

    def test_time_between_records_does_not_count(self) -> None:
        for _ in range(3):
            self.assertEqual(self.link.peer.receipt_for(self.link.send()), "accepted")
            self.server.turn(HOUR)

    def test_traffic_that_always_ends_within_a_record_never_times_out(self) -> None:
        """Each record is held to a deadline of its own, not the stream to that of the first."""
        peer, held = self.link.peer, b""
        for number in range(100):
            frame = self.link.frame(str(number).encode())
            peer.send_raw(held + frame[:-7])
            held = frame[-7:]
            self.server.turn(10)
        peer.send_raw(held)
        self.assertEqual(peer.receipt_for(99), "accepted")
        self.assertEqual([int(envelope.payload_bytes) for envelope, _ in self.server.received], [*range(100)])

    def test_one_record_behind_another_does_not_inherit_its_time(self) -> None:
        first, second = self.link.frame(), self.link.frame()
        self.link.peer.send_raw(first[:10])
        self.server.turn(29)
        self.link.peer.send_raw(first[10:] + second[:10])
        self.server.turn(29)
        self.assertTrue(self.link.protocol.is_open)
        self.link.peer.send_raw(second[10:])
        self.assertEqual(self.link.peer.receipt_for(1), "accepted")

    def test_one_that_fires_late_begins_anew_since_this_process_was_held_up(self) -> None:
        frame = self.link.frame()
        self.link.peer.send_raw(frame[:50])
        self.server.turn(40)
        self.assertTrue(self.link.protocol.is_open)
        self.link.peer.send_raw(frame[50:])
        self.assertEqual(len(self.server.received), 1)

    def test_one_that_began_anew_still_ends(self) -> None:
        self.link.peer.send_raw(self.link.frame()[:50])
        self.server.turn(40)
        self.server.turn(30.01)
        self.assertTimedOut()
