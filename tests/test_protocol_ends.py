"""Every way in which a connection ends leaves nothing behind. On a clock, without a socket.

Runs under pytest and under ``python -m twisted.trial tests.test_protocol_ends``.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionLost as ConnectionReset

from ipc_twisted import Category, DeliveryUnknown, NotConnected, Rejected
from ipc_twisted.protocol import LINGER_SECONDS
from tests.memory_case import M1, LoggedTestCase
from tests.memory_link import MemoryLink, MemoryServer

Ending = Callable[[MemoryServer, MemoryLink], object]


class EndTests(LoggedTestCase):
    """However a connection ends: it is counted once, and nothing of it is left."""

    ENDINGS: dict[str, tuple[Ending, Category]]

    @staticmethod
    def with_one_written() -> tuple[MemoryServer, MemoryLink, Deferred[None]]:
        """A connection, and the outcome of a message of ours that the peer has not answered."""
        server = MemoryServer()
        link = server.connect()
        written = link.protocol.send("job.run", b"").as_deferred()
        server.turn()
        return server, link, written

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
                server, link, written = self.with_one_written()
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
        server, link, written = self.with_one_written()
        link.protocol.close()
        link.send()
        link.peer.read_envelope()
        link.peer.send_receipt()
        self.successResultOf(written)
        self.assertEqual(server.received, [])

    def test_all_is_dropped_behind_a_fault(self) -> None:
        server, link, written = self.with_one_written()
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
