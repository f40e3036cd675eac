"""What the factory bounds before a peer has proved itself, and what it logs. On a clock, without a socket.

Runs under pytest and under ``python -m twisted.trial tests.test_factory``.
"""

from __future__ import annotations

import pytest
from twisted.logger import capturedLogs

from ipc_twisted import Category, Rejected, SecureEnvelope, SecureIPCProtocol
from ipc_twisted.config import SPARE_DESCRIPTORS
from ipc_twisted.log_limit import LINES, SECONDS
from tests.memory_case import HOUR, M1, M2_BYTES, LoggedTestCase
from tests.memory_link import NOW, SECRET, MemoryClient, MemoryServer
from tests.raw_channel import PeerClosed


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
