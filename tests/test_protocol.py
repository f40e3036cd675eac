"""When the protocol does what it does: turns, pauses, handlers, what is sent. On a clock, without a socket.

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
from twisted.python.failure import Failure

from ipc_twisted import (
    Category,
    EnvelopeError,
    NotConnected,
    Rejected,
    SecureEnvelope,
    SecureIPCProtocol,
    SendBufferFull,
)
from ipc_twisted.protocol import (
    EARLY_BYTES,
    EARLY_MOST_BYTES,
    LARGE_BYTES,
    READ_BYTES,
    READ_MOST_BYTES,
    WRITE_BYTES,
)
from tests import wire_peer as wire
from tests.memory_case import HOUR, LoggedTestCase
from tests.memory_link import NOW, MemoryServer


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

    def test_still_larger_ones_where_large_messages_fill_two_in_a_row(self) -> None:
        def read(*sizes: int, payload: int = LARGE_BYTES, **fields: Any) -> list[object]:
            """What is asked for behind each of these reads."""
            stream, asked = b"", []
            for size in sizes:
                while len(stream) < size:
                    stream += self.link.frame(payload=bytes(payload), **fields)
                self.link.peer.send_raw(stream[:size])
                stream = stream[size:]
                asked.append(getattr(self.link.transport, "bufferSize", None))
            self.link.peer.send_raw(stream)
            return asked

        usual, most = READ_BYTES, READ_MOST_BYTES
        self.assertEqual(read(usual, usual, usual), [usual, most, most])
        self.assertEqual(read(most, usual, usual - 1, usual), [usual, most, usual, usual], "the rest was no full one")
        self.assertEqual(read(usual, usual, usual, payload=LARGE_BYTES // 2), [usual] * 3)
        self.assertEqual(read(usual, usual, payload=0, ts=NOW - 100), [usual] * 2, "rejected ones are small, too")
        self.assertEqual(read(most, most, payload=most), [usual, most])

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
        each, writes = 4_096, self.link.transport.writes
        for _ in range(26 * EARLY_BYTES // each):
            self.link.protocol.send("job.run", bytes(each))
        sizes = [len(write) / EARLY_BYTES for write in writes]
        self.assertEqual([round(size) for size in sizes], [1, 1, 2, 4, 8, 8])
        self.assertEqual(EARLY_MOST_BYTES, 8 * EARLY_BYTES)
        self.server.turn()
        self.assertEqual(len(writes), 7)

    def test_so_it_is_in_every_turn(self) -> None:
        link = self.link
        for _ in range(60):
            link.protocol.send("job.run", bytes(4_096))
        self.server.turn()
        for _ in range(60):
            link.peer.read_envelope()
        link.peer.send_receipt()
        writes = len(link.transport.writes)
        for _ in range(4):
            link.protocol.send("job.run", bytes(4_096))
        self.assertEqual(len(link.transport.writes), writes + 1)

    def test_not_within_a_segment_that_is_read(self) -> None:
        """What handlers send goes out with the receipt, behind all that the segment has."""

        def answer(_envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
            connection.send("job.run", b"")

        self.server.handler = answer
        self.link.protocol.send("job.run", bytes(EARLY_BYTES))
        writes = len(self.link.transport.writes)
        self.link.peer.send_raw(self.link.frame() + self.link.frame())
        self.assertEqual(len(self.link.transport.writes), writes)
        self.server.turn()
        self.assertEqual(self.written(), [wire.RECEIPT, *[wire.ENVELOPE] * 3])

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

    def test_what_the_kernel_takes_in_several_calls_does_not_wait_for_another_turn(self) -> None:
        """Twisted hands it 128 KiB at the most."""
        transport = self.link.transport

        def some(data: bytes) -> int:
            taken = min(len(data), 128 * 1024)
            transport.unread += data[:taken]
            return taken

        self.link.protocol.send("job.run", bytes(200_000))
        with patch.object(transport, "writeSomeData", some), patch.object(transport, "write", self.fail):
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

    def test_a_callback_that_was_taken_back_is_not_called_and_awaits_nothing(self) -> None:
        told: list[Any] = []
        kept, gone = (self.link.protocol.send("job.run", b"") for _ in range(2))
        for delivery in (kept, gone):
            delivery.add_done_callback(told.append)
        gone.remove_done_callback(told.append)
        self.server.turn()
        self.link.peer.send_receipt(1, [[0, "expired"], [1, "expired"]])
        self.assertEqual(told, [kept])
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
