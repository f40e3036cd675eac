"""One connection as a Twisted protocol: :class:`SecureIPCProtocol` moves bytes and keeps time for the core.

What it decides itself is only when: a flush behind each segment, at the end of a turn, and in one that sends much; the
deadlines; how an ended connection's transport goes.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection as TCPConnection
from twisted.python.failure import Failure
from zope.interface import implementer

from ipc_twisted.config import ExecutionIPCConfig
from ipc_twisted.core.connection import DEAD, DONE, HANDSHAKE, OPEN, Connection, State
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.handshake import Limits
from ipc_twisted.core.outbox import Outbox
from ipc_twisted.core.verifier import Rejection
from ipc_twisted.deadline import Deadline
from ipc_twisted.delivery import Delivery, when_drained
from ipc_twisted.errors import Category, HandshakeError
from ipc_twisted.origin import Origin
from ipc_twisted.peer_watch import PeerWatch

WRITE_BYTES = 256 * 1024
"""What is handed to the transport at a time; a record may exceed it."""

READ_BYTES = 128 * 1024
"""Read at a time once the peer has proved itself. For small messages larger reads gain nothing, and a turn of some
hundred of them is long enough."""

READ_MOST_BYTES = 512 * 1024
"""Read at a time where large messages come faster than they are read: each read costs its turn, a RECEIPT, and a record
that lies across its end, which is collected part by part."""

LARGE_BYTES = 2 * 1024
"""Messages are large from here on, in the mean of a read."""

# glibc maps each piece of memory that is larger than any freed so far, and unmaps it when it is freed: every read would
# begin on pages that are not there. Behind this it keeps what we read into.
_larger = bytes(2 * READ_MOST_BYTES)
del _larger

EARLY_BYTES = 8 * 1024
"""So much that is sent in one turn does not wait for its end, if the other side has no more than that to do; else
as much as it has."""

EARLY_MOST_BYTES = 64 * 1024
"""But no more than that is held back: to make and write larger pieces costs more for each byte."""

_MANY_BUFFERS = 64  # from here on, one more copy of small frames costs less than what the transport does with each

LINGER_SECONDS = 1.0
"""How long a connection that has said CLOSE waits for the other side's end."""

LINGER_LATE_SECONDS = 0.1
"""Lateness that is ours: so short a time must not run out before what the peer has long said is read."""

Handler = Callable[[SecureEnvelope, "SecureIPCProtocol"], Deferred[Any] | Coroutine[Any, Any, Any] | None]
"""What an application does with an envelope. Its credit comes back when the Deferred or coroutine ends."""


class Siblings(typing.Protocol):
    """What a connection shares with the others of its side, and tells it; :mod:`ipc_twisted.factory` has both sides."""

    clock: IReactorTime
    config: ExecutionIPCConfig
    handler: Handler
    wall: Callable[[], float]
    accepted: int  # envelopes handed over
    handlers: int  # of them, those whose handlers have not ended
    bytes_received: int
    bytes_sent: int

    def now(self) -> int:
        """Wall-clock time, whole unix seconds."""

    def make_connection(self, protocol: SecureIPCProtocol) -> Connection:
        """The core's part of a new connection."""

    def make_outbox(self, peer: str) -> Outbox:
        """For the messages to the peer at this address."""

    def connection_made(self, protocol: SecureIPCProtocol) -> None:
        """A transport is there; nothing is known of the peer, and its time for the handshake runs."""

    def handshake_answered(self, protocol: SecureIPCProtocol) -> None:
        """The other side's first message was in order, and ours is out."""

    def connection_authenticated(self, protocol: SecureIPCProtocol) -> None:
        """The handshake is done. May end the connection."""

    def connection_ending(self, protocol: SecureIPCProtocol) -> None:
        """It is over but for the transport: it counts no more. Called once."""

    def connection_ended(self, protocol: SecureIPCProtocol) -> None:
        """The transport is gone. Called once."""

    def handshake_error(self, category: Category) -> HandshakeError:
        """The error for who waits for the handshake: what it can be."""

    def envelope_rejected(self, protocol: SecureIPCProtocol, rejection: Rejection) -> None:
        """An envelope of the peer's was rejected."""

    def handler_failed(self, failure: Failure, trace_id: str | None) -> None:
        """The application's handler raised."""

    def handler_ended(self) -> None:
        """One of :attr:`handlers` has, in whichever way."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class SecureIPCProtocol(Protocol):
    """One authenticated connection; what handlers and :func:`ipc_twisted.connect` get to send on.

    :param shared: what this connection shares with the others of its factory.
    """

    transport: TCPConnection
    _connection: Connection

    def __init__(self, shared: Siblings) -> None:
        self._shared = shared
        self._clock = shared.clock
        self._origin = Origin(shared.wall)
        self._paused = False
        self._busy = False  # what is sent while a segment is read, or written, waits for the end of that
        self._unflushed = 0  # cost of what was sent since the last flush, bytes
        self._early_at = EARLY_BYTES  # when so much is unflushed, it may be time
        self._flush_call: IDelayedCall | None = None
        self._expiry_call: IDelayedCall | None = None
        self._linger: Deadline | None = None
        self._closing_as: State | None = None
        self._frame_timed = 0
        self._frame: Deadline | None = None
        self._authenticated: list[Deferred[SecureIPCProtocol]] = []
        self._closed: list[Deferred[Category]] = []
        self._lost = False
        self._read_full = False  # the last read: large messages, and all that was asked for was there
        self._records = 0  # of the peer's, when that was last looked at
        self._watch: PeerWatch | None = None

    # What applications use

    def send(
        self,
        kind: str,
        payload_bytes: bytes,
        *,
        trace_id: str | None = None,
        reply_to: str | None = None,
        target: str | list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Delivery:
        """Queue one message; ``await`` the returned :class:`Delivery` for its outcome.

        Whatever can be checked here is checked here, and an error means that nothing was queued. Of many that are sent
        in one turn, the first are written meanwhile. Only for the reactor's thread: from another one,
        ``reactor.callFromThread``.

        :param kind: 1 to 128 characters; the other side must allow it.
        :param payload_bytes: at most the other side's ``max_payload_bytes``; opaque.
        :param trace_id: and ``reply_to``: None or 1 to 256 characters, carried as they are.
        :param target: None, 1 to 256 characters, or a list of 1 to 64 of those.
        :param headers: at most 64 of text to text; all fields but the payload encode to at most 65,535 bytes.
        :raises EnvelopeError: ``malformed`` or ``payload_too_large``.
        :raises SendBufferFull: ``send_buffer_full``; await :meth:`drained` and send again.
        :raises NotConnected: ``not_connected``; the connection has ended or is ending. Looked at behind the arguments.
        :raises RuntimeError: in another thread than the reactor's.
        """
        delivery = self._origin.message(kind, payload_bytes, trace_id, reply_to, target, headers)
        if self._unflushed >= self._early_at and not self._busy:
            self._flush_early()  # before this message is queued: should it end the connection, nothing is
        self._connection.send(delivery)
        if not self._busy:
            self._unflushed += delivery.cost
            if self._flush_call is None:
                self._flush_soon()
        return delivery

    def drained(self) -> Deferred[None]:
        """Wait until at least half of ``limits.send_buffer_bytes`` is free. Waiters go on in order, one at a time.

        Also ends when the connection does: ``send()`` then raises :exc:`NotConnected`.
        """
        return when_drained(self._connection.outbox)

    def close(self) -> Deferred[Category]:
        """Say CLOSE, wait for the outcomes that the other side still tells (at most a second), and end.

        What is not written yet, such as what was queued in the same turn, is rejected with ``closed``: await the
        outcomes first.

        :returns: as :meth:`wait_closed`.
        """
        self.end(Category.CLOSED)
        return self.wait_closed()

    def wait_closed(self) -> Deferred[Category]:
        """Wait for the end of the connection, and say what it ended in. Never fails."""
        if self._lost:
            return succeed(self._connection.category or Category.CONNECTION_LOST)
        ended: Deferred[Category] = Deferred()
        self._closed.append(ended)
        return ended

    @property
    def category(self) -> Category | None:
        """Why the connection has ended or is ending; None while it is not."""
        return self._connection.category

    @property
    def is_open(self) -> bool:
        """Messages may be sent."""
        return self._connection.state is OPEN

    @property
    def peer_limits(self) -> Limits | None:
        """What the other side takes; None before the handshake is done."""
        return None if self._connection.peer is None else self._connection.peer.limits

    @property
    def outbox(self) -> Outbox:
        """Messages without an outcome."""
        return self._connection.outbox

    @property
    def buffered(self) -> int:
        """Bytes of messages without an outcome, out of ``limits.send_buffer_bytes``."""
        return self._connection.outbox.buffered

    # What Twisted calls

    def connectionMade(self) -> None:
        """As little as can be: whoever it is costs us this. The rest is for :meth:`handshake_done`."""
        self._connection = self._shared.make_connection(self)
        self._shared.connection_made(self)
        if self._connection.start():
            self._after()

    def dataReceived(self, data: bytes) -> None:
        """Run the chain over a segment. The clock is read once.

        What handlers answer goes out at once with the RECEIPT: a turn later would be half of a round trip's time.
        """
        self._shared.bytes_received += len(data)
        if self._connection.receive_part(data):  # as most segments of a large record
            return
        self._busy = True
        try:
            self._connection.receive_data(data, self._shared.now())
        finally:
            self._busy = False
        if len(data) >= READ_BYTES or self._read_full:
            self._suit_reads(len(data))
        self._after(at_once=True)

    def readConnectionLost(self) -> None:
        self._connection.receive_eof()
        self._after()

    def writeConnectionLost(self) -> None:
        """Our CLOSE is out and the other side has said all: nothing keeps the transport."""
        if self._connection.state is DONE:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._connection.connection_lost()
        if self._closing_as is None:  # a reset, or any other end that nothing announced
            self._shared.connection_ending(self)
        self._stop_clocks()
        if self._linger is not None:
            self._linger.close()
        self._shared.connection_ended(self)
        category = self._connection.category or Category.CONNECTION_LOST
        self._fail_authentication(category)
        closed, self._closed = self._closed, []
        for waiting in closed:
            waiting.callback(category)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._after()

    def stopProducing(self) -> None:
        self._paused = True

    # What the factory calls

    def when_authenticated(self) -> Deferred[SecureIPCProtocol]:
        """Wait for the handshake.

        :raises HandshakeError: on the Deferred.
        """
        waiting: Deferred[SecureIPCProtocol] = Deferred(self._waits_no_longer)
        if self._connection.peer is not None:
            waiting.callback(self)
        elif self._connection.category is not None:
            waiting.errback(self._shared.handshake_error(self._connection.category))
        else:
            self._authenticated.append(waiting)
        return waiting

    def _waits_no_longer(self, waiting: Deferred[SecureIPCProtocol]) -> None:
        """Who dialled has given up: a connection that nobody holds must not come about."""
        if waiting in self._authenticated:  # else they are being told
            self._authenticated.remove(waiting)
            self.abandon(Category.CLOSED)

    def abandon(self, category: Category) -> None:
        """End without a word, and give the transport up at once."""
        self._connection.abandon(category)
        self._after()

    def end(self, category: Category) -> None:
        """End in an orderly way, now."""
        self._connection.close(category)
        self._after()

    def drain(self, category: Category) -> None:
        """End in an orderly way once nothing is under way; new envelopes of the peer's are rejected until then."""
        self._connection.drain(category)
        self._after()

    def flush(self) -> None:
        """There may be something to write: messages that were queued elsewhere, or an end that is due."""
        if self.is_open:
            self._flush_soon()

    @property
    def authenticated(self) -> bool:
        """The handshake is done, whatever came after."""
        return self._connection.peer is not None

    @property
    def key_id(self) -> bytes | None:
        """Of the key of this connection, 8 bytes; None before the handshake is done."""
        return None if self._connection.peer is None else self._connection.peer.key_id

    @property
    def send_credit(self) -> tuple[int, int]:
        """Messages, and bytes of their frames, that the other side lets us write now."""
        return self._connection.send_credit

    @property
    def peer_address(self) -> str:
        """For log lines."""
        address = self.transport.getPeer()
        return f"{address.host}:{address.port}"

    # What the core calls: its Owner

    def make_outbox(self) -> Outbox:
        return self._shared.make_outbox(self.peer_address)

    def handshake_done(self) -> None:
        self.transport.setTcpNoDelay(True)  # we gather what belongs together ourselves
        self.transport.registerProducer(self, True)
        self.transport.bufferSize = READ_BYTES
        self._watch = PeerWatch(
            self._clock,
            self._shared.config.limits,
            self.transport,
            self._connection.outbox.in_flight,
            self.abandon,
        )
        self._shared.connection_authenticated(self)
        waiting, self._authenticated = self._authenticated, []
        for deferred in waiting:
            if not deferred.called:  # who was told before may have ended the wait
                deferred.callback(self)

    def hand_over(self, envelope: SecureEnvelope, size: int) -> bool:
        self._shared.accepted += 1
        try:
            result = self._shared.handler(envelope, self)
        except BaseException:  # as Deferred does: not even sys.exit() in a handler may end the connection of others
            self._shared.handler_failed(Failure(), envelope.trace_id)
            return True
        if result is None:
            return True
        deferred = Deferred.fromCoroutine(result) if iscoroutine(result) else result
        if not isinstance(deferred, Deferred):
            wrong = TypeError(f"a handler must return None, a Deferred or a coroutine, not {type(result).__name__}")
            self._shared.handler_failed(Failure(wrong), envelope.trace_id)
            return True
        self._shared.handlers += 1
        deferred.addErrback(self._shared.handler_failed, envelope.trace_id)
        deferred.addBoth(self._handler_done, size)
        return False

    def _handler_done(self, _: object, size: int) -> None:
        self._connection.finish(size)
        self._shared.handler_ended()
        self.flush()

    def rejected(self, rejection: Rejection) -> None:
        self._shared.envelope_rejected(self, rejection)

    # Time and transport

    def _after(self, *, at_once: bool = False) -> None:
        """Do what the core's state asks for; called after every call into it.

        :param at_once: a turn has at most one such call, so what is written now is not written piecemeal.
        """
        connection = self._connection
        if connection.state is OPEN:
            receiving = connection.receiving
            if receiving != self._frame_timed:
                self._time_frame(receiving)  # before what follows, which may end the connection
            if at_once and self._flush_call is None:
                self._flush()
            elif connection.wants_to_write:
                self._write(connection.data_to_send(0, 0))  # the end of the handshake waits for nothing
                self._flush_soon()
        elif connection.state is HANDSHAKE:
            message = connection.data_to_send(0, 0)
            if message:
                self._write(message)
                self._shared.handshake_answered(self)
        elif connection.state is not self._closing_as and not self._lost:
            first, self._closing_as = self._closing_as is None, connection.state
            self._end_transport(connection.state, first)

    def _time_frame(self, receiving: int) -> None:
        """Give every record that arrives in parts its own deadline."""
        self._frame_timed = receiving
        if self._frame is None:
            seconds = self._shared.config.limits.frame_timeout_seconds
            self._frame = Deadline(self._clock, seconds, self._frame_missed)
        if receiving:
            self._frame.start()
        else:
            self._frame.stop()

    def _suit_reads(self, size: int) -> None:
        """So much was read: how much next time? More only where the second read in a row was full, since who has but a
        few messages under way waits for what becomes of each."""
        before, self._records = self._records, self._connection.records
        again, self._read_full = self._read_full, size >= max(READ_BYTES, LARGE_BYTES * (self._records - before))
        self.transport.bufferSize = READ_MOST_BYTES if again and self._read_full else READ_BYTES

    def _flush_soon(self) -> None:
        if self._flush_call is None and not self._busy:
            self._flush_call = self._clock.callLater(0, self._flush_due)

    def _flush_early(self) -> None:
        """Within the turn, so that the other side begins while the rest is made; but not before there is as much as
        it has to do already."""
        enough = min(self._connection.outbox.buffered - self._unflushed, EARLY_MOST_BYTES)
        if self._unflushed >= enough:
            self._flush()
        else:
            self._early_at = enough

    def _flush_due(self) -> None:
        self._flush_call = None
        self._flush()

    def _flush(self) -> None:
        """Write what may be written: the end of the handshake always, and as far as credit and room go a RECEIPT and
        envelopes."""
        self._unflushed, self._early_at = 0, EARLY_BYTES
        connection = self._connection
        self._busy = True
        try:
            room = 0 if self._paused else WRITE_BYTES
            written = connection.data_to_send(room, self._shared.now(), self._clock.seconds())
        finally:
            self._busy = False
        self._write(written)
        if connection.state is not OPEN:  # drained, or ended by who was told of an outcome
            self._after()
        elif written and connection.wants_to_write:
            self._flush_soon()
        if connection.outbox.queue and self._expiry_call is None:
            self._expire_later()

    def _expire_later(self) -> None:
        expires_at = self._connection.expires_at
        if self.is_open and expires_at is not None:
            seconds = max(0.0, expires_at - self._shared.wall())
            self._expiry_call = self._clock.callLater(seconds, self._expire)

    def _expire(self) -> None:
        self._expiry_call = None
        self._connection.expire(self._shared.now())
        self.flush()

    def _write(self, data: list[bytes]) -> None:
        if data and self._origin.is_here:
            size = sum(map(len, data))
            transport = self.transport
            if size <= WRITE_BYTES and not (transport.dataBuffer or transport._tempDataLen):
                # Straight to the kernel: the transport would write it a turn later, after two more system calls.
                left: Any = b"".join(data)
                while isinstance(sent := transport.writeSomeData(left), int) and 0 < sent < len(left):
                    left = memoryview(left)[sent:]  # its type says bytes, but it takes any buffer
                if sent != len(left):  # also of an error, which the transport meets again in its own time
                    transport.write(bytes(left))
            else:
                transport.writeSequence(data if len(data) < _MANY_BUFFERS else [b"".join(data)])
            self._shared.bytes_sent += size
            if self._watch is not None:
                self._watch.wrote(size)

    def _end_transport(self, state: State, first: bool) -> None:
        """The connection is over but for what the transport still holds. It leaves the factory's tables at once."""
        self._stop_clocks()
        if first:
            self._shared.connection_ending(self)
        self._fail_authentication(self._connection.category or Category.CONNECTION_LOST)
        if not self._origin.is_here:  # the socket, and the reactor's epoll, are the parent's too
            return
        if state is DEAD:
            self.transport.abortConnection()
            return
        self._write(self._connection.data_to_send(0, 0))
        if first:
            self.transport.unregisterProducer()  # with one, the transport would wait for it for ever
        if self._linger is None:  # before what follows, which may end the transport within the call
            self._linger = Deadline(self._clock, LINGER_SECONDS, self._linger_over, late=LINGER_LATE_SECONDS)
            self._linger.start()
        if state is DONE:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _linger_over(self) -> None:
        self.transport.abortConnection()

    def _frame_missed(self) -> None:
        self._connection.fail(Category.FRAME_TIMEOUT)
        self._after()

    def _fail_authentication(self, category: Category) -> None:
        waiting, self._authenticated = self._authenticated, []
        for deferred in waiting:
            if not deferred.called:
                deferred.errback(self._shared.handshake_error(category))

    def _stop_clocks(self) -> None:
        """For good: the connection is over, but for how long its transport may still take."""
        if self._frame is not None:
            self._frame.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._flush_call is not None:
            self._flush_call.cancel()
        if self._expiry_call is not None:
            self._expiry_call.cancel()
        self._flush_call = self._expiry_call = None
