"""When the protocol and its factory do what they do: deadlines, turns, pauses, ends. On a clock, without a socket.

Runs under pytest and under ``python -m twisted.trial tests.test_protocol``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionLost as ConnectionReset
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted import (
    Category,
    DeliveryUnknown,
    EnvelopeError,
    HandshakeError,
    Keyring,
    NotConnected,
    Rejected,
    SecureEnvelope,
    SecureIPCProtocol,
    SendBufferFull,
    connect,
)
from ipc_twisted.config import SPARE_DESCRIPTORS
from ipc_twisted.dialling import Dialler
from ipc_twisted.log_limit import LINES, SECONDS
from ipc_twisted.protocol import EARLY_BYTES, LINGER_SECONDS, READ_BYTES, WRITE_BYTES
from tests import wire_peer as wire
from tests.log_lines import Lines
from tests.memory_link import NOW, SECRET, SERVER, MemoryClient, MemoryLink, MemoryServer
from tests.raw_channel import DEFAULT_LIMITS, PeerClosed

M1 = wire.prefixed(wire.m1(wire.key_id(wire.prk(SECRET), "execution_ipc"), DEFAULT_LIMITS, bytes(range(32))))
M2_BYTES = 100
HOUR = 3_600.0


class LoggedTestCase(SynchronousTestCase):
    """Keeps the package's lines that were logged."""

    def setUp(self) -> None:
        self.lines = Lines()
        globalLogPublisher.addObserver(self.lines)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines)

    def assertNothingLeft(self, server: MemoryServer) -> None:
        """No timer, no table entry."""
        self.assertEqual(server.clock.getDelayedCalls(), [])
        self.assertEqual(server.factory.connections, set())
        self.assertEqual([*server.factory.pending], [])


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


class TurnTests(LoggedTestCase):
    """What is written, and in which turn of the reactor."""

    def setUp(self) -> None:
        super().setUp()
        self.server = MemoryServer()
        self.link = self.server.connect()
        self.link.transport.writes.clear()

    def written(self) -> list[int]:
        """The types of the records that were written since the last call."""
        contents, rest = wire.split_frames(self.link.transport.take())
        self.assertEqual(rest, b"")
        return [content[32] for content in contents]

    def test_one_receipt_at_once_for_all_that_was_decided_of_a_segment(self) -> None:
        self.link.peer.send_raw(b"".join([*(self.link.frame() for _ in range(50)), self.link.frame(ts=NOW - 100)]))
        self.assertEqual(self.written(), [wire.RECEIPT])
        self.server.turn()
        self.assertEqual(self.written(), [])

    def test_what_a_handler_answers_is_one_write_with_the_receipt_and_no_turn_later(self) -> None:
        def handler(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
            connection.send("job.run", envelope.payload_bytes)

        self.server.handler = handler
        self.link.peer.send_raw(b"".join(self.link.frame() for _ in range(3)))
        self.assertEqual(len(self.link.transport.writes), 1)
        self.assertEqual(self.written(), [wire.RECEIPT, *[wire.ENVELOPE] * 3])

    def test_one_receipt_for_each_turn(self) -> None:
        for _ in range(3):
            self.link.send()
            self.server.turn()
        self.assertEqual(self.written(), [wire.RECEIPT] * 3)

    def test_none_where_nothing_was_decided(self) -> None:
        self.link.peer.send_receipt()
        self.server.turn()
        self.server.turn(HOUR)
        self.assertEqual(self.written(), [])

    def test_credit_that_comes_back_is_told_in_the_turn_in_which_it_does(self) -> None:
        pending: list[Deferred[None]] = []

        def handler(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
            pending.append(Deferred())
            return pending[-1]

        self.server.handler = handler
        self.link.peer.send_raw(self.link.frame() + self.link.frame())
        self.assertEqual(self.link.peer.read_record()[1]["messages"], 16_384)
        for deferred in pending:
            deferred.callback(None)
        self.server.turn()
        receipt = self.link.peer.read_record()[1]
        self.assertEqual((receipt["through"], receipt["messages"]), (1, 16_386))
        self.assertRaises(TimeoutError, self.link.peer.read_record)

    def test_larger_pieces_are_read_once_the_peer_has_proved_itself(self) -> None:
        stranger = self.server.accept()
        self.assertNotEqual(getattr(stranger.transport, "bufferSize", None), READ_BYTES)
        self.assertEqual(getattr(self.link.transport, "bufferSize", None), READ_BYTES)

    def test_what_is_sent_in_a_turn_is_one_write(self) -> None:
        for _ in range(30):
            self.link.protocol.send("job.run", b"x")
        self.assertEqual(self.link.transport.writes, [])
        self.server.turn()
        self.assertEqual(len(self.link.transport.writes), 1)
        self.assertEqual(self.written(), [wire.ENVELOPE] * 30)

    def test_the_first_of_many_go_out_within_the_turn(self) -> None:
        """Else the other side would begin with them only when the last of them was made. Each write has as much as was
        written before: a side that has more to do is told of more at a time."""
        each, writes = 1_024, self.link.transport.writes
        for _ in range(16 * EARLY_BYTES // each + 1):
            self.link.protocol.send("job.run", bytes(each))
        sizes = [len(write) / EARLY_BYTES for write in writes]
        self.assertEqual([round(size) for size in sizes], [1, 1, 2, 4, 8])
        self.server.turn()
        self.assertEqual(len(writes), 6)

    def test_what_goes_out_within_the_turn_may_end_the_connection_before_a_message_is_queued(self) -> None:
        """Else its sender would get what has ended already, and the log would say that nobody awaits it."""
        old = self.link.protocol.send("job.run", bytes(EARLY_BYTES))
        old.add_done_callback(lambda _: self.link.protocol.abandon(Category.CLOSED))
        self.server.skew = 100
        self.assertRaises(NotConnected, self.link.protocol.send, "job.run", b"")
        self.assertIsInstance(old.exception(), Rejected)

    def test_they_do_not_where_the_other_side_has_enough_to_do(self) -> None:
        self.link.protocol.send("job.run", bytes(2 * EARLY_BYTES))
        self.server.turn()
        writes = len(self.link.transport.writes)
        for _ in range(2 * EARLY_BYTES // 4_096 - 1):
            self.link.protocol.send("job.run", bytes(4_096))
        self.assertEqual(len(self.link.transport.writes), writes)
        self.server.turn()
        self.assertEqual(len(self.link.transport.writes), writes + 1)

    def test_what_the_kernel_does_not_take_at_once_follows_in_order(self) -> None:
        transport = self.link.transport
        for takes in ([0], [1, 0], [47, 47, 0], [10**6]):

            def some(data: memoryview, takes: list[int] = takes) -> int:
                taken = bytes(data[: takes.pop(0)])
                transport.unread += taken
                return len(taken)

            with patch.object(transport, "writeSomeData", some):
                self.link.protocol.send("job.run", bytes(100))
                self.server.turn()
            self.assertEqual(self.written(), [wire.ENVELOPE])

    def test_a_transport_that_fails_finds_out_in_its_own_time(self) -> None:
        with patch.object(self.link.transport, "writeSomeData", lambda _: ConnectionReset()):
            self.link.protocol.send("job.run", b"")
            self.server.turn()
        self.assertEqual(self.written(), [wire.ENVELOPE])

    def test_nothing_overtakes_what_waits_in_the_transport(self) -> None:
        transport = self.link.transport
        for name, held in (("dataBuffer", b"x"), ("_tempDataLen", 1)):
            with patch.object(transport, name, held), patch.object(transport, "writeSomeData", self.fail):
                self.link.protocol.send("job.run", b"")
                self.server.turn()
            self.assertEqual(self.written(), [wire.ENVELOPE])

    def test_little_more_is_handed_to_the_transport_than_it_should_hold(self) -> None:
        for _ in range(40):
            self.link.protocol.send("job.run", bytes(50_000))
        self.server.turn()
        sizes = [len(write) for write in self.link.transport.writes]
        self.assertGreater(len(sizes), 5)
        self.assertLess(max(sizes), WRITE_BYTES + 51_000)
        self.assertEqual(self.written(), [wire.ENVELOPE] * 40)

    def test_nothing_is_written_while_the_peer_does_not_read(self) -> None:
        self.link.protocol.pauseProducing()
        self.link.send()
        self.link.protocol.send("job.run", b"")
        self.server.turn()
        self.assertEqual(self.written(), [])
        self.link.protocol.resumeProducing()
        self.server.turn()
        self.assertEqual(self.written(), [wire.RECEIPT, wire.ENVELOPE])

    def test_a_pause_between_the_call_and_its_turn_counts(self) -> None:
        self.link.protocol.send("job.run", b"")
        self.link.protocol.pauseProducing()
        self.server.turn()
        self.assertEqual(self.written(), [])

    def test_nothing_but_a_close_is_written_while_the_peer_does_not_read(self) -> None:
        self.link.protocol.pauseProducing()
        self.link.send()
        self.link.peer.send_raw(bytes(4))
        self.assertEqual(self.written(), [wire.CLOSE])

    def test_a_message_that_waits_for_a_paused_transport_still_expires(self) -> None:
        """Unsent at ``ts + ttl`` is rejected, whatever holds it: a transport that drains slowly pauses often."""
        self.link.protocol.pauseProducing()
        first = self.link.protocol.send("job.run", b"").as_deferred()
        self.server.turn(20)
        second = self.link.protocol.send("job.run", b"").as_deferred()
        self.server.turn(10.5)
        self.assertNoResult(first)
        self.server.turn(0.5)
        self.assertEqual(self.failureResultOf(first, Rejected).value.category, Category.EXPIRED)
        self.assertNoResult(second)
        self.server.turn(20)
        self.assertEqual(self.failureResultOf(second, Rejected).value.category, Category.EXPIRED)
        self.assertEqual(self.written(), [])

    def test_a_message_that_waits_for_credit_expires_unsent(self) -> None:
        link = self.server.connect((1_000, 5, 0, 100_000))
        waiting = link.protocol.send("job.run", b"").as_deferred()
        self.server.turn(5)
        self.assertNoResult(waiting)
        self.server.turn(1)
        self.assertEqual(self.failureResultOf(waiting, Rejected).value.category, Category.EXPIRED)
        self.assertEqual(link.transport.take(), b"")
        self.assertEqual(link.protocol.buffered, 0)

    def test_one_that_was_written_in_time_does_not(self) -> None:
        waiting = self.link.protocol.send("job.run", b"").as_deferred()
        self.server.turn()
        self.server.turn(HOUR)
        self.assertNoResult(waiting)
        self.link.peer.read_envelope()
        self.link.peer.send_receipt()
        self.successResultOf(waiting)

    def test_credit_that_comes_lets_go_what_waits(self) -> None:
        link = self.server.connect((1_000, 30, 1, 100_000))
        for number in range(3):
            link.protocol.send("job.run", str(number).encode())
        for number in range(3):
            self.assertEqual(link.peer.read_envelope()["payload"], str(number).encode())
            self.assertRaises(TimeoutError, link.peer.read_envelope)
            link.peer.send_receipt(credit=(number + 2, 100_000))


Ending = Callable[[MemoryServer, MemoryLink], object]


class EndTests(LoggedTestCase):
    """However a connection ends: it is counted once, and nothing of it is left."""

    ENDINGS: dict[str, tuple[Ending, Category]]

    @staticmethod
    def _both_close(_server: MemoryServer, link: MemoryLink) -> None:
        link.protocol.close()
        link.peer.read_until_close()
        link.peer.send_close()

    @staticmethod
    def _both_close_a_turn_apart(server: MemoryServer, link: MemoryLink) -> None:
        link.protocol.close()
        link.peer.read_until_close()
        server.turn()  # our writing side is shut now: Twisted ends the transport within loseConnection()
        link.peer.send_close()

    @staticmethod
    def _close_and_eof(_server: MemoryServer, link: MemoryLink) -> None:
        link.peer.send_close()
        link.protocol.readConnectionLost()

    @staticmethod
    def _we_close_and_peer_only_ends(_server: MemoryServer, link: MemoryLink) -> None:
        link.protocol.close()
        link.peer.end_writing()

    @staticmethod
    def _we_close_and_peer_says_nothing(server: MemoryServer, link: MemoryLink) -> None:
        link.protocol.close()
        server.turn(LINGER_SECONDS)

    @staticmethod
    def _fault(server: MemoryServer, link: MemoryLink) -> None:
        link.send(sig=bytes(32))
        server.turn(LINGER_SECONDS)

    @staticmethod
    def _fault_and_eof(_server: MemoryServer, link: MemoryLink) -> None:
        link.send(sig=bytes(32))
        link.peer.end_writing()

    @staticmethod
    def _fault_and_reset(_server: MemoryServer, link: MemoryLink) -> None:
        link.send(sig=bytes(32))
        link.peer.abort()

    @staticmethod
    def _within_a_record(_server: MemoryServer, link: MemoryLink) -> None:
        link.peer.send_raw(link.frame()[:20])
        link.peer.abort()

    @staticmethod
    def _with_work_in_hand(server: MemoryServer, link: MemoryLink) -> None:
        server.handler = lambda _envelope, _connection: Deferred()
        link.send()
        link.protocol.send("job.run", b"")
        server.turn()
        link.protocol.send("job.run", b"")
        link.peer.abort()

    @staticmethod
    def _frame_timeout(server: MemoryServer, link: MemoryLink) -> None:
        link.peer.send_raw(b"\0")
        server.turn(30)
        server.turn(LINGER_SECONDS)

    @staticmethod
    def _close_within_a_handler(server: MemoryServer, link: MemoryLink) -> None:
        server.handler = lambda _envelope, connection: connection.close().addBoth(lambda _: None)
        link.send()
        link.peer.send_close()

    def test_nothing_is_left_and_it_is_counted_once(self) -> None:
        for name, (ending, category) in self.ENDINGS.items():
            with self.subTest(ending=name):
                server = MemoryServer()
                link = server.connect()
                closed = link.protocol.wait_closed()
                ending(server, link)
                server.turn()
                self.assertTrue(link.transport.lost)
                self.assertEqual(self.successResultOf(closed), category)
                self.assertEqual(self.successResultOf(link.protocol.wait_closed()), category)
                self.assertEqual(link.protocol.category, category)
                self.assertNothingLeft(server)
                ended = {key: count for key, count in server.factory.counters.items() if key[0] == "ended"}
                self.assertEqual(ended, {("ended", category): 1})

    def test_nothing_is_left_of_a_stranger_either(self) -> None:
        def reset_behind(link: MemoryLink, data: bytes) -> None:
            link.peer.send_raw(data)
            link.peer.abort()

        endings: dict[str, Callable[[MemoryLink], object]] = {
            "malformed": lambda link: link.peer.send_raw(b"GET "),
            "eof": lambda link: link.peer.end_writing(),
            "reset": lambda link: link.peer.abort(),
            "reset within M1": lambda link: reset_behind(link, M1[:30]),
            "reset behind M2": lambda link: reset_behind(link, M1),
            "clean close": lambda link: link.transport.lose(ConnectionDone()),
        }
        for name, ending in endings.items():
            with self.subTest(ending=name):
                server = MemoryServer()
                link = server.accept()
                ending(link)
                server.turn()
                self.assertTrue(link.transport.lost)
                self.assertNothingLeft(server)
                self.assertEqual(sum(server.factory.counters.values()), 1)

    def test_a_thousand_resets_leave_room_for_honest_clients(self) -> None:
        """A connection that was reset holds no place in ``max_connections`` nor among the pending ones."""
        server = MemoryServer({"max_connections": 2, "max_pending_handshakes": 2})
        for _ in range(1000):
            server.connect().peer.abort()
            server.accept().peer.abort()
        link = server.connect()
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")
        self.assertEqual(len(server.factory.connections), 1)
        self.assertEqual(server.factory.counters["handshake", "evicted"], 0)

    def test_a_close_is_answered_and_the_transport_closed(self) -> None:
        server = MemoryServer()
        link = server.connect()
        link.peer.send_close()
        self.assertTrue(link.transport.closing)
        self.assertEqual(link.peer.read_until_close()["category"], "closed")

    def test_an_end_right_behind_the_close_does_not_stop_the_answer(self) -> None:
        server = MemoryServer()
        link = server.connect()
        self._close_and_eof(server, link)
        self.assertEqual(link.peer.read_until_close()["category"], "closed")

    def test_an_end_without_close_is_never_taken_for_success(self) -> None:
        for ending in (MemorySocketEnd.eof, MemorySocketEnd.reset, MemorySocketEnd.clean):
            with self.subTest(ending=ending.__name__):
                server = MemoryServer()
                link = server.connect()
                written = link.protocol.send("job.run", b"").as_deferred()
                server.turn()
                queued = link.protocol.send("job.run", b"").as_deferred()
                closed = link.protocol.wait_closed()
                ending(link)
                server.turn()
                for waiting in (written, queued):
                    self.failureResultOf(waiting, DeliveryUnknown)
                self.assertEqual(self.successResultOf(closed), Category.CONNECTION_LOST)
                self.assertRaises(NotConnected, link.protocol.send, "job.run", b"")

    def test_what_a_close_leaves_undecided_is_rejected_with_its_category(self) -> None:
        server = MemoryServer()
        link = server.connect()
        accepted, beyond = (link.protocol.send("job.run", b"").as_deferred() for _ in range(2))
        server.turn()
        link.peer.read_envelope()
        link.peer.send_close("shutting_down", through=0)
        self.successResultOf(accepted)
        self.assertEqual(self.failureResultOf(beyond, Rejected).value.category, Category.SHUTTING_DOWN)

    def test_what_we_closed_before_it_was_written_is_rejected(self) -> None:
        server = MemoryServer()
        link = server.connect()
        queued = link.protocol.send("job.run", b"").as_deferred()
        link.protocol.close()
        self.assertEqual(self.failureResultOf(queued, Rejected).value.category, Category.CLOSED)

    def test_receipts_are_still_read_behind_our_close_and_envelopes_dropped(self) -> None:
        server = MemoryServer()
        link = server.connect()
        written = link.protocol.send("job.run", b"").as_deferred()
        server.turn()
        link.protocol.close()
        link.send()
        link.peer.read_envelope()
        link.peer.send_receipt()
        self.successResultOf(written)
        self.assertEqual(server.received, [])

    def test_all_is_dropped_behind_a_fault(self) -> None:
        server = MemoryServer()
        link = server.connect()
        written = link.protocol.send("job.run", b"").as_deferred()
        server.turn()
        link.peer.read_envelope()
        link.peer.send_raw(link.frame(sig=bytes(32)) + link.frame())
        link.send()
        link.peer.send_receipt()
        self.assertEqual(server.received, [])
        self.failureResultOf(written, DeliveryUnknown)
        server.turn(LINGER_SECONDS - 0.01)
        self.assertFalse(link.transport.aborted)
        server.turn(0.02)
        self.assertTrue(link.transport.aborted)

    def test_a_handler_that_closes_leaves_the_rest_of_the_segment_untouched(self) -> None:
        server = MemoryServer(handler=lambda _envelope, connection: connection.close() and None)
        link = server.connect()
        link.peer.send_raw(b"".join(link.frame() for _ in range(5)))
        self.assertEqual(len(server.received), 1)
        self.assertEqual(link.peer.read_until_close()["through"], 0)

    def test_close_may_be_called_again(self) -> None:
        server = MemoryServer()
        link = server.connect()
        both = link.protocol.close(), link.protocol.close()
        link.peer.read_until_close()
        link.peer.send_close()
        server.turn()
        self.assertEqual([*map(self.successResultOf, both)], [Category.CLOSED] * 2)
        self.assertEqual(self.successResultOf(link.protocol.close()), Category.CLOSED)

    def test_nothing_can_be_sent_on_an_ended_connection(self) -> None:
        server = MemoryServer()
        link = server.connect()
        link.protocol.close()
        self.assertFalse(link.protocol.is_open)
        error = self.assertRaises(NotConnected, link.protocol.send, "job.run", b"")
        self.assertEqual(error.category, Category.NOT_CONNECTED)


class MemorySocketEnd:
    """Three ways in which a stream ends without CLOSE."""

    @staticmethod
    def eof(link: MemoryLink) -> None:
        link.peer.end_writing()

    @staticmethod
    def reset(link: MemoryLink) -> None:
        link.transport.lose(ConnectionReset())

    @staticmethod
    def clean(link: MemoryLink) -> None:
        link.transport.lose(ConnectionDone())


EndTests.ENDINGS = {
    "the peer closes": (lambda _server, link: link.peer.send_close(), Category.CLOSED),
    "both close": (EndTests._both_close, Category.CLOSED),
    "both close, a turn apart": (EndTests._both_close_a_turn_apart, Category.CLOSED),
    "the peer closes and ends at once": (EndTests._close_and_eof, Category.CLOSED),
    "we close and the peer only ends": (EndTests._we_close_and_peer_only_ends, Category.CLOSED),
    "we close and the peer says nothing": (EndTests._we_close_and_peer_says_nothing, Category.CLOSED),
    "the peer ends": (lambda _server, link: link.peer.end_writing(), Category.CONNECTION_LOST),
    "the peer resets": (lambda _server, link: link.peer.abort(), Category.CONNECTION_LOST),
    "a reset within a record": (EndTests._within_a_record, Category.CONNECTION_LOST),
    "a reset with work in hand": (EndTests._with_work_in_hand, Category.CONNECTION_LOST),
    "a fault": (EndTests._fault, Category.SIGNATURE_MISSING),
    "a fault, then its end": (EndTests._fault_and_eof, Category.SIGNATURE_MISSING),
    "a fault, then a reset": (EndTests._fault_and_reset, Category.SIGNATURE_MISSING),
    "a record that never ends": (EndTests._frame_timeout, Category.FRAME_TIMEOUT),
    "a handler closes and waits": (EndTests._close_within_a_handler, Category.CLOSED),
}


class StrangersTests(LoggedTestCase):
    """What the factory bounds before a peer has proved itself."""

    def test_the_oldest_pending_one_goes_and_each_only_once(self) -> None:
        server = MemoryServer({"max_pending_handshakes": 2})
        links = [server.accept() for _ in range(5)]  # in one turn: no abort has taken effect yet
        self.assertEqual([link.transport.aborted for link in links], [True, True, True, False, False])
        self.assertEqual(server.factory.counters["handshake", "evicted"], 3)
        server.turn()
        self.assertEqual([link.transport.lost for link in links], [True, True, True, False, False])
        self.assertEqual([*server.factory.pending], [link.protocol for link in links[3:]])

    def test_at_the_descriptor_budget_a_newcomer_is_closed_at_once(self) -> None:
        """Those that were given up are closed in the next turn only, and a batch may be larger than what is spare."""
        server = MemoryServer({"max_connections": 1, "max_pending_handshakes": 1})
        for _ in range(1 + 1 + SPARE_DESCRIPTORS // 2):
            server.accept()
        self.assertIsNone(server.factory.buildProtocol(None))
        self.assertEqual(server.factory.counters["handshake", "refused"], 1)
        server.turn()
        self.assertIsNotNone(server.factory.buildProtocol(None))

    def test_who_is_in_is_no_longer_pending(self) -> None:
        server = MemoryServer({"max_pending_handshakes": 1})
        links = [server.connect() for _ in range(5)]
        server.accept()
        for link in links:
            self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_first_messages_in_a_loop_are_answered_once(self) -> None:
        server = MemoryServer()
        for segment in (M1 * 50, M1 + M1[:1]):
            link = server.accept()
            link.peer.send_raw(segment)
            self.assertEqual(b"".join(link.transport.writes), b"")
            self.assertTrue(link.transport.aborted)
        link = server.accept()
        for _ in range(50):
            link.peer.send_raw(M1)
        self.assertEqual(len(b"".join(link.transport.writes)), M2_BYTES)
        self.assertTrue(link.transport.aborted)

    def test_who_proved_itself_is_told_that_there_is_no_place(self) -> None:
        server = MemoryServer({"max_connections": 1})
        first, second = server.connect(), server.connect()
        self.assertEqual(second.peer.read_until_close()["category"], "too_many_connections")
        self.assertEqual(first.peer.receipt_for(first.send()), "accepted")
        first.peer.send_close()
        third = server.connect()
        self.assertEqual(third.peer.receipt_for(third.send()), "accepted")

    def test_a_stranger_is_not(self) -> None:
        server = MemoryServer({"max_connections": 1})
        server.connect()
        link = server.accept()
        link.peer.send_raw(M1)
        self.assertEqual(len(link.transport.take()), M2_BYTES)

    def test_no_nonce_of_a_handshake_comes_twice(self) -> None:
        """Neither side's: else what was recorded could be said again."""
        server, nonces = MemoryServer(), set()
        for _ in range(3):
            link = server.accept()
            link.peer.send_raw(M1)
            for said in (link.transport.take(), MemoryClient().transport.take()):
                nonces.add(said[36:68])
        self.assertEqual([len(nonce) for nonce in nonces], [32] * 6)

    @pytest.mark.attack(28)
    def test_a_clock_that_steps_back_ends_all_connections_and_begins_a_new_instance(self) -> None:
        server = MemoryServer(auth={"nonce_cache_size": 1})
        links = [server.connect() for _ in range(3)]
        old = links[0].peer.server.instance
        self.assertEqual(links[0].peer.receipt_for(links[0].send(ts=NOW - 20)), "accepted")
        self.assertEqual(links[1].peer.receipt_for(links[1].send(ts=NOW)), "accepted")  # raises the floor
        stranger = server.accept()
        stranger.peer.send_m1(SECRET)
        server.skew = -HOUR
        links[2].send()
        for link in links:
            self.assertEqual(link.peer.read_until_close()["category"], "clock_stepped")
        self.assertEqual(len(server.received), 2)
        with self.assertRaises(PeerClosed):  # its handshake promised the guard that has gone
            stranger.peer.read_m2()
            stranger.peer.send_raw(stranger.peer.m3_frame)
            stranger.peer.receipt_for(stranger.send())
        newcomer = server.connect()
        self.assertNotEqual(newcomer.peer.server.instance, old)
        self.assertEqual(newcomer.peer.receipt_for(newcomer.send()), "accepted")

    def test_a_clock_that_steps_back_a_little_ends_nothing(self) -> None:
        server = MemoryServer()
        link = server.connect()
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")
        for skew in (-1, -29, 0, 29):
            server.skew = skew
            self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_it_ends_all_only_once_the_guard_would_reject_what_is_a_second_ahead(self) -> None:
        server = MemoryServer(auth={"nonce_cache_size": 1})
        link = server.connect()
        self.assertEqual(link.peer.receipt_for(link.send(ts=NOW - 2)), "accepted")
        self.assertEqual(link.peer.receipt_for(link.send(ts=NOW)), "accepted")  # raises the floor to NOW - 1
        server.skew = -2
        self.assertEqual(link.peer.receipt_for(link.send()), "outside_replay_window")
        self.assertTrue(link.protocol.is_open)
        server.skew = -3
        link.send()
        self.assertEqual(link.peer.read_until_close()["category"], "clock_stepped")


class LogTests(LoggedTestCase):
    """What peers can make us write into the log."""

    def test_lines_about_strangers_are_bounded_and_say_how_many_were_left_out(self) -> None:
        server = MemoryServer()
        for _ in range(20):
            server.accept().peer.send_raw(b"GET ")
        self.assertEqual(len(self.lines), LINES)
        server.turn(SECONDS)
        server.accept().peer.send_raw(b"GET ")
        self.assertEqual(len(self.lines), LINES + 1)
        self.assertIn("handshake_malformed (and 15 more like it, left out)", self.lines[-1])

    def test_one_kind_of_line_does_not_hide_another(self) -> None:
        server = MemoryServer()
        for _ in range(20):
            server.accept().peer.send_raw(b"GET ")
        server.accept().peer.end_writing()
        self.assertIn("connection_lost", self.lines[-1])

    def test_what_a_peer_writes_is_escaped(self) -> None:
        server = MemoryServer()
        link = server.connect()
        evil = "a\n2026-01-01 [fake] line\r\x1b[31mred\x07\u2028\u202e\x85{peer}"
        link.peer.send_envelope(evil, trace_id=evil, ts=NOW)
        (line,) = self.lines
        self.assertTrue(line.isprintable(), line)
        self.assertIn(r"a\n2026-01-01 [fake] line\r\x1b[31mred\x07\u2028\u202e\x85{peer}", line)
        self.assertIn("kind_not_allowed", line)

    def test_a_rejection_that_nobody_awaits_is_logged_with_what_was_sent_escaped(self) -> None:
        server = MemoryServer()
        link = server.connect()
        link.protocol.send("evil\nkind", b"", trace_id="\x1b[2J")
        seq = link.peer.read_envelope()["seq"]
        link.peer.send_receipt(seq, [[seq, "kind_not_allowed"]])
        (line,) = self.lines
        self.assertIn(r"kind_not_allowed kind='evil\nkind' trace_id='\x1b[2J'", line)
        self.assertEqual(server.factory.counters["unclaimed", "kind_not_allowed"], 1)

    def test_one_that_somebody_awaits_is_not(self) -> None:
        server = MemoryServer()
        link = server.connect()
        waiting = link.protocol.send("job.x", b"").as_deferred()
        seq = link.peer.read_envelope()["seq"]
        link.peer.send_receipt(seq, [[seq, "kind_not_allowed"]])
        self.assertEqual(self.failureResultOf(waiting, Rejected).value.category, Category.KIND_NOT_ALLOWED)
        self.assertEqual(self.lines, [])

    def test_an_orderly_end_is_no_line(self) -> None:
        server = MemoryServer()
        server.connect().peer.send_close()
        self.assertEqual(self.lines, [])

    def test_lines_at_debug_level_are_bounded_too(self) -> None:
        """Whoever holds the key can connect as often as it likes."""
        server = MemoryServer()
        with capturedLogs() as events:
            for _ in range(20):
                server.connect().peer.send_close()
            server.turn(SECONDS)
            server.connect().peer.send_close()
        for name in ("connection_authenticated", "connection_ended"):
            left_out = [event["left_out"] for event in events if event.get("event") == name]
            self.assertEqual(left_out, [0] * LINES + [20 - LINES], name)

    def test_a_handlers_failure_is_logged_with_the_trace_id_escaped(self) -> None:
        def handler(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
            raise RuntimeError

        link = MemoryServer(handler=handler).connect()
        link.send(trace_id="t\n1")
        self.assertIn(r"trace_id='t\n1'", self.lines[0])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_the_failures_of_a_handler_are_bounded_and_say_how_many_were_left_out(self) -> None:
        def handler(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
            raise RuntimeError

        server = MemoryServer(handler=handler)
        link = server.connect()
        for _ in range(20):
            link.send()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), LINES)
        server.turn(SECONDS)
        link.send()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertIn("(and 15 more like it, left out)", self.lines[-1])


class HandlerTests(LoggedTestCase):
    """Whatever the application's handler does, the connection and the other messages are untouched."""

    TEXT = "a text that no peer may see"

    def handlers(self) -> dict[str, Callable[[SecureEnvelope, SecureIPCProtocol], Any]]:
        def raises(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
            raise ValueError(self.TEXT)

        async def raises_later(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
            await connection.drained()
            raise ValueError(self.TEXT)

        def fails(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
            return fail(ValueError(self.TEXT))

        def nonsense(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Any:
            return self.TEXT

        return {"raises": raises, "raises later": raises_later, "fails": fails, "nonsense": nonsense}

    def test_one_that_fails_is_counted_and_logged_and_its_credit_comes_back(self) -> None:
        for name, handler in self.handlers().items():
            with self.subTest(handler=name):
                server = MemoryServer({"max_inflight": 1}, handler=handler)
                link = server.connect()
                for _ in range(3):  # more than the credit, if it did not come back
                    self.assertEqual(link.peer.receipt_for(link.send()), "accepted")
                self.assertTrue(link.protocol.is_open)
                self.assertEqual(server.factory.counters["handler", "failed"], 3)
                self.assertEqual(len(self.flushLoggedErrors(ValueError, TypeError)), 3)
                self.assertNotIn(self.TEXT.encode(), b"".join(link.transport.writes))

    def test_one_that_never_ends_keeps_its_credit_and_no_more(self) -> None:
        server = MemoryServer({"max_inflight": 2}, handler=lambda _envelope, _connection: Deferred())
        link = server.connect()
        for _ in range(2):
            self.assertEqual(link.peer.receipt_for(link.send()), "accepted")
        self.assertEqual(link.peer.credit[0], 2)
        link.send()
        self.assertEqual(link.peer.read_until_close()["category"], "credit_exceeded")
        self.assertEqual(len(server.received), 2)

    def test_one_that_never_ends_does_not_hold_up_other_connections(self) -> None:
        server = MemoryServer({"max_inflight": 1}, handler=lambda _envelope, _connection: Deferred())
        for _ in range(3):
            link = server.connect()
            self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_one_that_ends_after_the_connection_writes_nothing(self) -> None:
        deferreds: list[Deferred[None]] = []

        def handler(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
            deferreds.append(Deferred())
            return deferreds[-1]

        server = MemoryServer(handler=handler)
        link = server.connect()
        link.send()
        link.send()
        link.peer.abort()
        written = len(link.transport.writes)
        deferreds[0].callback(None)
        deferreds[1].errback(ValueError())
        server.turn()
        self.assertEqual(len(link.transport.writes), written)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertNothingLeft(server)

    def test_one_that_sends_after_the_connection_gets_not_connected(self) -> None:
        async def handler(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
            await connection.wait_closed()
            connection.send("job.run", b"")

        server = MemoryServer(handler=handler)
        link = server.connect()
        link.send()
        link.peer.abort()
        self.assertEqual(len(self.flushLoggedErrors(NotConnected)), 1)

    def test_one_may_await_its_own_send(self) -> None:
        outcomes: list[object] = []

        async def handler(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
            outcomes.append(await connection.send("job.run", b"answer"))  # type: ignore[func-returns-value]

        server = MemoryServer({"max_inflight": 1}, handler=handler)
        link = server.connect()
        link.send()
        self.assertEqual(link.peer.read_envelope()["payload"], b"answer")
        self.assertEqual(link.peer.credit[0], 1)
        link.peer.send_receipt()
        self.assertEqual(outcomes, [None])
        server.turn()
        link.peer.read_record()
        self.assertEqual(link.peer.credit[0], 2)

    def test_the_outcome_of_a_message_may_be_asked_for_after_it_is_known(self) -> None:
        server = MemoryServer()
        link = server.connect()
        delivery = link.protocol.send("job.x", b"")
        seq = link.peer.read_envelope()["seq"]
        link.peer.send_receipt(seq, [[seq, "kind_not_allowed"]])
        for _ in range(2):
            self.failureResultOf(delivery.as_deferred(), Rejected)

        async def waits() -> None:
            await delivery

        self.failureResultOf(ensureDeferred(waits()), Rejected)


class SendTests(LoggedTestCase):
    """What ``send()`` and ``drained()`` promise before anything is written."""

    def setUp(self) -> None:
        super().setUp()
        self.server = MemoryServer({"send_buffer_bytes": 100_000}, max_payload_bytes=1_000)
        self.link = self.server.connect((10_000, 30, 100, 1_000_000))

    def test_what_breaks_a_rule_is_refused_before_anything_is_queued(self) -> None:
        send = self.link.protocol.send
        bad: dict[str, Callable[[], object]] = {
            "kind": lambda: send("", b""),
            "long kind": lambda: send("k" * 129, b""),
            "payload": lambda: send("job.run", "text"),  # type: ignore[arg-type]
            "trace_id": lambda: send("job.run", b"", trace_id=""),
            "reply_to": lambda: send("job.run", b"", reply_to="r" * 257),
            "target": lambda: send("job.run", b"", target=[]),
            "targets": lambda: send("job.run", b"", target=["t"] * 65),
            "headers": lambda: send("job.run", b"", headers={str(i): "" for i in range(65)}),
            "header types": lambda: send("job.run", b"", headers={"a": 1}),  # type: ignore[dict-item]
            "all of them": lambda: send("job.run", b"", headers={"a": "x" * 65_536}),
            "surrogates": lambda: send("job.\ud800", b""),
        }
        for name, attempt in bad.items():
            with self.subTest(bad=name):
                self.assertEqual(self.assertRaises(EnvelopeError, attempt).category, Category.MALFORMED)
        error = self.assertRaises(EnvelopeError, send, "job.run", bytes(10_001))
        self.assertEqual(error.category, Category.PAYLOAD_TOO_LARGE)
        self.server.turn()
        self.assertEqual((self.link.protocol.buffered, self.link.transport.take()), (0, b""))

    def test_what_never_fits_the_peers_credit_is_refused(self) -> None:
        link = self.server.connect((10_000, 30, 100, 500))
        error = self.assertRaises(EnvelopeError, link.protocol.send, "job.run", bytes(500))
        self.assertEqual(error.category, Category.PAYLOAD_TOO_LARGE)

    def test_the_buffer_has_a_bound_and_drained_waits_for_half_of_it(self) -> None:
        for _ in range(9):
            self.link.protocol.send("job.run", bytes(10_000))
        error = self.assertRaises(SendBufferFull, self.link.protocol.send, "job.run", bytes(10_000))
        self.assertEqual(error.category, Category.SEND_BUFFER_FULL)
        drained = self.link.protocol.drained()
        for _ in range(4):
            self.link.peer.read_envelope()
        self.link.peer.send_receipt()
        self.assertNoResult(drained)
        self.link.peer.read_envelope()
        self.link.peer.send_receipt()
        self.successResultOf(drained)

    def test_waiters_go_on_in_order_and_one_at_a_time(self) -> None:
        for _ in range(9):
            self.link.protocol.send("job.run", bytes(10_000))
        order: list[int] = []

        def fill(_: None, number: int) -> None:
            if self.link.protocol.is_open:
                order.append(number)
                self.link.protocol.send("job.run", bytes(8_000))

        for number in range(9):
            self.link.protocol.drained().addCallback(fill, number)
        for _ in range(4):
            self.link.peer.read_envelope()
        self.link.peer.send_receipt()
        self.assertEqual(order, [])
        self.link.peer.read_envelope()
        self.link.peer.send_receipt()
        self.assertEqual(order, [0, 1])  # the second of them has filled it beyond half
        self.link.peer.abort()

    def test_drained_ends_with_the_connection(self) -> None:
        for _ in range(9):
            self.link.protocol.send("job.run", bytes(10_000))
        drained = self.link.protocol.drained()
        self.link.peer.abort()
        self.successResultOf(drained)
        self.successResultOf(self.link.protocol.drained())

    def test_what_is_waited_for_may_be_cancelled(self) -> None:
        for _ in range(9):
            self.link.protocol.send("job.run", bytes(10_000))
        waiting: list[Deferred[Any]] = [
            self.link.protocol.drained(),
            self.link.protocol.wait_closed(),
            self.link.protocol.send("job.run", b"").as_deferred(),
        ]
        for deferred in waiting:
            deferred.cancel()
            self.failureResultOf(deferred, CancelledError)
        self.link.peer.abort()
        self.server.turn()

    def test_who_learns_of_an_outcome_may_cancel_another_wait_for_it(self) -> None:
        link = MemoryServer().connect()
        deliveries = [link.protocol.send("job.run", b"") for _ in range(2)]
        first, other = deliveries[0].as_deferred(), deliveries[0].as_deferred()
        first.addCallback(lambda _: other.cancel())
        link.server.turn()
        link.peer.read_envelope()
        link.peer.read_envelope()
        link.peer.send_receipt()
        self.assertTrue(deliveries[1].done())
        self.failureResultOf(other, CancelledError)

    def test_a_rejection_is_nobodys_where_the_wait_for_it_was_cancelled(self) -> None:
        waiting = self.link.protocol.send("job.run", b"").as_deferred()
        self.server.turn()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.link.peer.send_receipt(0, [[0, "expired"]])
        self.assertEqual(self.server.factory.counters["unclaimed", "expired"], 1)

    def test_a_callback_that_raises_whatever_it_is_disturbs_no_other(self) -> None:
        """Neither another waiter, nor another message, nor the connection."""

        def raises(_delivery: Any) -> None:
            raise SystemExit(3)

        first, second = (self.link.protocol.send("job.run", b"") for _ in range(2))
        first.add_done_callback(raises)
        waiting = first.as_deferred(), second.as_deferred()
        self.server.turn()
        self.link.peer.send_receipt(1)
        for deferred in waiting:
            self.successResultOf(deferred)
        self.assertTrue(self.link.protocol.is_open)
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 1)

    @pytest.mark.attack(38)
    def test_a_fork_says_nothing_under_its_parents_keys(self) -> None:
        self.link.protocol.send("job.run", b"queued")
        self.link.transport.take()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork among threads: it only looks and leaves
            child = os.fork()
        if not child:
            status = 1
            try:
                try:
                    self.link.protocol.send("job.run", b"")
                except NotConnected:
                    self.server.turn()
                    self.link.protocol.close()
                    self.link.protocol.connectionLost(Failure(ConnectionDone()))
                    status = len(self.link.transport.take())
            finally:
                os._exit(min(status, 99))
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.server.turn()
        self.assertEqual(self.link.peer.read_record()[0], "envelope")  # the parent goes on


class DiallerTests(LoggedTestCase):
    """The client's side on a clock."""

    def connected(self) -> MemoryClient:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        client.peer.handshake(SECRET)
        self.assertIs(self.successResultOf(waiting), client.protocol)
        self.assertIs(self.successResultOf(client.protocol.when_authenticated()), client.protocol)
        return client

    def failed(self, provoke: Callable[[MemoryClient], object]) -> HandshakeError:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        provoke(client)
        error = self.failureResultOf(waiting, HandshakeError).value
        self.failureResultOf(client.protocol.when_authenticated(), HandshakeError)
        client.clock.advance(0)
        self.assertEqual(client.clock.getDelayedCalls(), [])
        self.assertTrue(client.transport.lost)
        self.assertIsInstance(error, HandshakeError)
        return error  # type: ignore[no-any-return]

    def test_it_says_nothing_but_its_first_message_to_a_server_that_does_not_prove_itself(self) -> None:
        def other_key(client: MemoryClient) -> None:
            client.peer.read_m1()
            client.peer.send_m2(bytes(32))
            self.assertEqual(client.transport.take(), b"")

        self.assertEqual(self.failed(other_key).category, Category.AUTHENTICATION_FAILED)

    def test_it_dials_the_address_and_no_name_that_a_resolver_could_lead_elsewhere(self) -> None:
        reactor = MemoryReactorClock()
        waiting = connect(reactor, SERVER[1], Keyring([SECRET]))
        ((host, port, *_),) = reactor.tcpClients
        self.assertEqual((host, port), SERVER)
        waiting.cancel()
        self.failureResultOf(waiting)

    def test_without_a_handler_it_takes_no_kind_at_all(self) -> None:
        dialler = Dialler(MemoryReactorClock(), SERVER[1], Keyring([SECRET]), (), None, None, None)
        self.assertEqual(dialler.config.allowed_kinds, ())

    def test_where_it_was_led_to_another_port_than_it_dialled_no_proof_convinces_it(self) -> None:
        client = MemoryClient(peer=(SERVER[0], SERVER[1] + 1))
        waiting = client.protocol.when_authenticated()
        client.peer.read_m1()
        client.peer.send_m2(SECRET)
        error = self.failureResultOf(waiting, HandshakeError).value
        self.assertEqual(error.category, Category.AUTHENTICATION_FAILED)
        self.assertEqual(client.transport.take(), b"")

    def test_what_comes_too_early_ends_it(self) -> None:
        def chatty(client: MemoryClient) -> None:
            client.peer.read_m1()
            send, client.peer.send_raw = client.peer.send_raw, lambda data: send(data + b"!")  # type: ignore[method-assign]
            client.peer.send_m2(SECRET)

        self.assertEqual(self.failed(chatty).category, Category.EARLY_DATA)

    def test_an_end_in_place_of_an_answer(self) -> None:
        error = self.failed(lambda client: client.peer.end_writing())
        self.assertEqual(error.category, Category.HANDSHAKE_REFUSED)
        self.assertIn("another key", str(error))
        self.assertIn("another service name", str(error))

    def test_a_reset_in_place_of_an_answer(self) -> None:
        self.assertEqual(self.failed(lambda client: client.peer.abort()).category, Category.HANDSHAKE_REFUSED)

    def test_what_is_no_server_of_ours(self) -> None:
        for answer, category in (
            (b"HTTP/1.1 400 Bad Request", Category.HANDSHAKE_MALFORMED),
            (bytes.fromhex("00000060495043540202000000"), Category.VERSION_UNSUPPORTED),
        ):
            with self.subTest(answer=answer):

                def answers(client: MemoryClient, answer: bytes = answer) -> None:
                    client.peer.send_raw(answer)

                self.assertEqual(self.failed(answers).category, category)

    def test_who_no_longer_waits_leaves_no_connection_behind(self) -> None:
        client = MemoryClient()
        waiting = client.protocol.when_authenticated()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        client.clock.advance(0)
        self.assertTrue(client.transport.lost)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_it_may_send_in_the_same_write_as_its_proof(self) -> None:
        def send(protocol: SecureIPCProtocol) -> None:
            protocol.send("job.run", b"first")

        client = MemoryClient()
        client.protocol.when_authenticated().addCallback(send)
        client.peer.handshake(SECRET)
        self.assertEqual(client.peer.read_envelope()["payload"], b"first")

    def test_it_may_close_as_soon_as_it_is_authenticated(self) -> None:
        client = MemoryClient()
        client.protocol.when_authenticated().addCallback(lambda protocol: protocol.end(Category.CLOSED))
        client.peer.handshake(SECRET)
        self.assertEqual(client.peer.read_until_close()["category"], "closed")
        client.peer.send_close()
        client.clock.advance(0)
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_a_kind_that_it_does_not_take_is_logged_and_rejected(self) -> None:
        client = self.connected()
        seq = client.peer.send_envelope("job.other", ts=NOW)
        self.assertEqual(client.peer.receipt_for(seq), "kind_not_allowed")
        self.assertEqual(client.received, [])
        self.assertIn("kind_not_allowed kind='job.other'", self.lines[-1])
