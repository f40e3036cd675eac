"""One connection without I/O: all of its states, and every transition between them, are in this file.

:data:`TRANSITIONS` is the table of them; what is not in it does not happen.

* HANDSHAKE: nothing but the handshake is read or written. A fault is dropped without an answer.
* OPEN: records both ways. When drained (:meth:`Connection.drain`), the peer's new envelopes are rejected; once its
  earlier ones are done with and ours have their outcomes, it closes itself.
* CLOSING: our orderly CLOSE is out, so is all we shall ever write. RECEIPT and CLOSE are still verified and read, so
  that our own messages learn their outcome; envelopes are dropped: they lie beyond the ``through`` of our CLOSE.
* FAILED: a record of the peer's was at fault; our CLOSE, which said so or came before it, still goes out. Whatever
  comes is thrown away.
* DONE: nothing more will come or go; what we wrote is flushed, then the transport is closed.
* DEAD: nothing is read or written any more.

In CLOSING, FAILED and DONE the caller bounds the time. The caller does the I/O, reads the clock and hands in
randomness; after any call it writes :meth:`Connection.data_to_send` and looks at :attr:`Connection.state`.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from functools import partial
from typing import NamedTuple, Protocol

from ipc_twisted.core.codec import (
    MAX_REJECTIONS,
    NO_SEQ,
    Close,
    Malformed,
    Receipt,
    serialize_close,
    serialize_receipt,
)
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.flow import ReceiveCredit, SendCredit
from ipc_twisted.core.framing import HEAD_BYTES, Framer
from ipc_twisted.core.handshake import ClientHandshake, Limits, Outcome, ServerHandshake
from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.core.replay import ReplayGuard
from ipc_twisted.core.verifier import Fault, Rejection, Verifier
from ipc_twisted.errors import Category, EnvelopeError, NotConnected


class State(StrEnum):
    """See the module's docstring."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSING = "closing"
    FAILED = "failed"
    DONE = "done"
    DEAD = "dead"


HANDSHAKE, OPEN, CLOSING, FAILED, DONE, DEAD = State
"""They have names of their own: each message and each stranger asks for one, and with Python 3.11 the way through the
class takes longer than the comparison."""

TRANSITIONS: dict[State, dict[State, str]] = {
    HANDSHAKE: {OPEN: "both ends have proved themselves", DEAD: "a fault, or an end"},
    OPEN: {
        CLOSING: "close(), or drained",
        FAILED: "a record of the peer's is at fault",
        DONE: "the peer's CLOSE, answered by ours",
        DEAD: "an end without CLOSE",
    },
    CLOSING: {
        DONE: "the peer's CLOSE, or its end",
        FAILED: "a record of the peer's is at fault",
        DEAD: "the transport is lost",
    },
    FAILED: {DONE: "the peer's end", DEAD: "the transport is lost"},
    DONE: {DEAD: "the transport is gone"},
    DEAD: {},
}
"""From each state to each that may follow it, and upon what."""


class Policy(NamedTuple):
    """What one side takes; the same for all of its connections."""

    allowed_kinds: frozenset[str]
    limits: Limits


class Owner(Protocol):
    """Whom a connection tells while it reads. None of these may raise."""

    def make_outbox(self) -> Outbox:
        """For :attr:`Connection.outbox`: both ends have proved themselves."""

    def handshake_done(self) -> None:
        """The connection is open; records behind the handshake have not been looked at."""

    def hand_over(self, envelope: SecureEnvelope, size: int, /) -> bool:
        """An envelope, and its frame's size. True: the handler is done; False: ``finish(size)`` will be called."""

    def rejected(self, rejection: Rejection, /) -> None:
        """An envelope of the peer's was."""


_EMPTY = Outbox(0, Counter(), lambda _delivery: None)
"""Before the handshake is done nothing can be sent: one is enough for all who never get that far."""


class _Link(NamedTuple):
    """What there is only once the handshake is done."""

    outcome: Outcome
    framer: Framer
    verifier: Verifier
    receive_credit: ReceiveCredit
    send_credit: SendCredit


class Connection:
    """One connection, either side.

    :param guard: the receiver's, shared by its connections.
    :ivar state: see the module's docstring.
    :ivar category: why it ended, or is ending; None before.
    :ivar outbox: our messages without an outcome; nobody else writes from it while this connection lasts.
    """

    def __init__(
        self,
        handshake: ServerHandshake | ClientHandshake,
        policy: Policy,
        guard: ReplayGuard,
        owner: Owner,
    ) -> None:
        self.state = HANDSHAKE
        self.category: Category | None = None
        self._handshake = handshake
        self.outbox = _EMPTY
        self._policy = policy
        self._guard = guard
        self._owner: Owner | None = owner  # None: DEAD, and they need not hold each other any more
        self._link: _Link | None = None
        self._control: list[bytes] = []  # handshake messages and CLOSE: written whatever the transport holds
        self._seq = 0
        self._told_through = NO_SEQ
        self._attached = False  # the outbox waits for what becomes of this connection
        self._draining: Category | None = None

    # What the owner may ask

    @property
    def peer(self) -> Outcome | None:
        """What the handshake brought; None before it is done."""
        return None if self._link is None else self._link.outcome

    @property
    def receiving(self) -> int:
        """Which record has begun and has not ended, by a number of its own; 0: none."""
        return 0 if self._link is None else self._link.framer.receiving

    @property
    def records(self) -> int:
        """Of the peer's, that were verified."""
        return 0 if self._link is None else self._link.verifier.expected

    @property
    def in_flight(self) -> int:
        """Envelopes of the peer's whose handlers have not ended."""
        return 0 if self._link is None else self._link.receive_credit.in_flight

    @property
    def expires_at(self) -> int | None:
        """The first second in which a message that still waits for credit has expired; None if none waits."""
        if self._link is None or not self.outbox.queue:
            return None
        return self.outbox.queue[0].ts + self._link.outcome.limits.ttl_seconds + 1

    @property
    def send_credit(self) -> tuple[int, int]:
        """Envelopes and bytes of their frames that the peer lets us write now."""
        if self._link is None:
            return 0, 0
        credit = self._link.send_credit
        return credit.messages - credit.used_messages, credit.bytes - credit.used_bytes

    @property
    def idle(self) -> bool:
        """Nothing is under way: no handler of the peer's envelopes, no message of ours without an outcome."""
        return self.in_flight == 0 and self.outbox.buffered == 0

    # Incoming

    def start(self) -> bool:
        """The transport is connected. False: nothing is to be done until the peer says something."""
        try:
            first = self._handshake.start()
        except Fault as fault:
            self.abandon(fault.category)
            return True
        if first:
            self._control.append(first)
        return bool(first)

    def receive_part(self, data: bytes) -> bool:
        """Take a segment that lies within the payload of a record: there is nothing to do. False: it does not."""
        return self._link is not None and self._link.framer.take_part(data)

    def receive_data(self, data: bytes, now: int) -> None:
        """Take a segment from the peer.

        :param now: unix seconds.
        """
        owner = self._owner
        if owner is None:
            return
        if self.state is HANDSHAKE:
            data = self._shake(data, owner)
        link = self._link
        if link is None or not data or not (self.state is OPEN or self.state is CLOSING):
            return
        control = partial(self._take_control, link)
        try:
            link.verifier.verify(link.framer.feed(data), now, owner.hand_over, owner.rejected, control)
            if link.framer.fault is not None and not link.verifier.ended:
                raise Fault(link.framer.fault)
        except Fault as fault:
            self.fail(fault.category)

    def receive_eof(self) -> None:
        """The peer will write no more."""
        if self.state is HANDSHAKE and isinstance(self._handshake, ClientHandshake):
            self.abandon(Category.HANDSHAKE_REFUSED)
        elif self.state in (CLOSING, FAILED):
            self._end(DONE, Category.CONNECTION_LOST)  # our CLOSE still goes out
            self._lose()
        elif self.state is not DONE:  # behind the peer's CLOSE an end is in order, and our answer still goes out
            self.abandon(Category.CONNECTION_LOST)

    def connection_lost(self) -> None:
        """The transport is gone."""
        self.receive_eof()
        if self.state is not DEAD:
            self.abandon(Category.CONNECTION_LOST)

    def abandon(self, category: Category) -> None:
        """End without a word. What is in flight stays unknown. The first category given to a connection is kept."""
        self._end(DEAD, category)
        self._lose()

    def _lose(self) -> None:
        """Tell the outbox, once, that this connection says nothing more."""
        if self._attached:
            self._attached = False
            self.outbox.lose()

    def _shake(self, data: bytes, owner: Owner) -> bytes:
        """Go on with the handshake; return what lies behind it."""
        try:
            reply, rest = self._handshake.receive(data)
        except Fault as fault:
            self.abandon(fault.category)
            return b""
        if reply:
            self._control.append(reply)
        outcome = self._handshake.outcome
        if outcome is None:
            return b""
        limits = self._policy.limits
        receive_credit = ReceiveCredit(limits.messages, limits.bytes)
        self._link = _Link(
            outcome,
            Framer(limits.max_payload_bytes, outcome.receive_key.new),
            Verifier(outcome.receive_key, self._policy.allowed_kinds, limits.ttl_seconds, self._guard, receive_credit),
            receive_credit,
            SendCredit(outcome.limits.messages, outcome.limits.bytes),
        )
        self._attached = True
        self.state = OPEN
        self.outbox = owner.make_outbox()
        self.outbox.attach(outcome.instance, partial(_refusal, self._link))
        if self.state is not OPEN:  # who was told of an outcome has ended it
            return b""
        if self._draining is not None:
            self.drain(self._draining)
        owner.handshake_done()
        return rest

    def _take_control(self, link: _Link, record: Receipt | Close) -> None:
        """:raises Fault: it lies."""
        if type(record) is Receipt and not link.send_credit.raise_to(record.messages, record.bytes):
            raise Fault(Category.MALFORMED)
        try:
            self.outbox.take_receipt(record.through, record.rejected, self._seq)
        except Malformed:
            raise Fault(Category.MALFORMED) from None
        if type(record) is Close:
            self._take_close(link, record)

    def _take_close(self, link: _Link, close: Close) -> None:
        if self.state is OPEN:
            self._say_close(link, Category.CLOSED, None)
        self._end(DONE, close.category)
        if self._attached:
            self._attached = False
            self.outbox.closed_by_peer(close.category, close.seq)

    # Outgoing

    def send(self, delivery: Delivery) -> None:
        """Queue one message.

        :raises EnvelopeError: the peer can never take it, or our own buffer cannot.
        :raises NotConnected: the connection is not open.
        :raises SendBufferFull: the bound on messages without an outcome.
        """
        link = self._link
        if self.state is not OPEN or link is None:
            end = "is not authenticated yet" if self.category is None else f"has ended ({self.category}); connect again"
            raise NotConnected(Category.NOT_CONNECTED, f"the connection {end}")
        limits = link.outcome.limits
        payload = len(delivery.payload)
        size = HEAD_BYTES + len(delivery.header) + payload
        if payload > limits.max_payload_bytes or size > limits.bytes:  # else it fits: the path of most messages
            why = _refusal(link, payload, size)
            if why is not None:
                raise EnvelopeError(Category.PAYLOAD_TOO_LARGE, why)
        self.outbox.add(delivery)

    def finish(self, size: int) -> None:
        """The handler of an envelope whose frame had ``size`` bytes has ended: its credit comes back."""
        if self._link is not None:
            self._link.receive_credit.finish(size)

    @property
    def receipt_due(self) -> bool:
        """The peer is owed a RECEIPT: something was decided, or credit came back."""
        if self._link is None or self.state is not OPEN:
            return False
        return self._link.verifier.through > self._told_through or self._link.receive_credit.due

    @property
    def wants_to_write(self) -> bool:
        """:meth:`data_to_send` would return something that flow control allows, or expire something."""
        if self._control or self.receipt_due:
            return True
        return self.state is OPEN and (bool(self.outbox.queue) or (self._draining is not None and self.idle))

    def data_to_send(self, room: int, now: int, at: float = 0.0) -> list[bytes]:
        """The buffers to write now: handshake and CLOSE always; with ``room`` bytes to spare, a RECEIPT and envelopes.

        Not for every message: each call makes a RECEIPT if one is due.

        :param now: unix seconds.
        :param at: seconds of the caller's monotonic clock, noted for each envelope that is written.
        """
        link, outbox = self._link, self.outbox
        if room <= 0 or link is None or self.state is not OPEN:
            out, self._control = self._control, []
            return out
        oldest = now - link.outcome.limits.ttl_seconds
        outbox.expire(oldest)  # first: who is told may end the connection, and nothing may follow the CLOSE
        if self._draining is not None and self.idle:
            self.close(self._draining)
        out, self._control = self._control, []
        if self.state is OPEN:
            if self.receipt_due:
                out.append(self._receipt(link))
            if outbox.queue:
                frames, self._seq = outbox.write(link.outcome.send_key, self._seq, link.send_credit, room, oldest, at)
                out += frames
        return out

    def expire(self, now: int) -> None:
        """Reject what waited for credit longer than the peer would take it."""
        if self._link is not None:
            self.outbox.expire(now - self._link.outcome.limits.ttl_seconds)

    def _decided(self, link: _Link) -> tuple[int, list[tuple[int, Category]]]:
        """``through`` and the rejections up to it that the peer has not been told; they count as told."""
        rejected = link.verifier.rejected
        told, rest = rejected[:MAX_REJECTIONS], rejected[MAX_REJECTIONS:]
        link.verifier.rejected = rest
        self._told_through = rest[0][0] - 1 if rest else link.verifier.through
        return self._told_through, told

    def _receipt(self, link: _Link) -> bytes:
        decided = self._decided(link)
        credit = link.receive_credit
        # Rejections that no RECEIPT had room for keep the credit: else a peer makes them faster than they are told.
        granted = (credit.told_messages, credit.told_bytes) if link.verifier.rejected else credit.tell()
        return self._frame(link, serialize_receipt(Receipt(*decided, *granted), self._seq))

    def _frame(self, link: _Link, body: bytes) -> bytes:
        self._seq += 1
        sig = link.outcome.send_key.sign(body)
        return b"".join(((len(sig) + len(body)).to_bytes(4, "big"), sig, body))

    # Ending

    def close(self, category: Category = Category.CLOSED) -> None:
        """End in order: say CLOSE, go on reading for our own outcomes. Before the handshake is done: abandon it."""
        if self.state is HANDSHAKE:
            self.abandon(category)
        elif self.state is OPEN and self._link is not None:
            self._say_close(self._link, category, None)
            self._end(CLOSING, category)
            self._link.verifier.dropping = True
            self.outbox.closed_here(category)

    def drain(self, category: Category) -> None:
        """End in order once nothing is under way. Until then the peer's new envelopes are rejected, and ours go out.

        A handshake goes on: the peer may have written messages behind it, and is told that they were not handed over.
        """
        self._draining = category
        if self._link is not None:
            self._link.verifier.shutting_down = True

    def fail(self, category: Category) -> None:
        """End because of what the peer sent, or did not finish: tell it, and look at nothing that still comes."""
        if self.state in (OPEN, CLOSING) and self._link is not None:
            if self.state is OPEN:
                self._say_close(self._link, category, self._link.verifier.expected)
            self._end(FAILED, category)
            self._lose()
        else:
            self.abandon(category)

    def _say_close(self, link: _Link, category: Category, seq: int | None) -> None:
        """The last bytes we shall write; a RECEIPT goes first for each thousand rejections that a CLOSE cannot hold."""
        while len(link.verifier.rejected) > MAX_REJECTIONS:
            self._control.append(self._receipt(link))
        through, rejected = self._decided(link)
        self._control.append(self._frame(link, serialize_close(Close(category, through, rejected, seq), self._seq)))

    def _end(self, state: State, category: Category) -> None:
        if state not in TRANSITIONS[self.state]:  # such as where who was told of an outcome has ended it meanwhile
            return
        self.state = state
        if self.category is None:
            self.category = category
        if self._link is not None:
            self._link.verifier.ended = state is not CLOSING
            if state is not CLOSING:
                self._link.framer.drop()
        if state is DEAD:
            self._owner = None
            self._control.clear()  # who was told of an outcome may have abandoned it just before it is written


def _refusal(link: _Link, payload: int, size: int) -> str | None:
    """Why the peer can never take a payload and a frame of so many bytes each; None: it can."""
    limits = link.outcome.limits
    if payload > limits.max_payload_bytes:
        return f"payload_bytes has {payload} bytes, the receiver's max_payload_bytes is {limits.max_payload_bytes}"
    if not link.send_credit.can_ever_fit(size):
        return (
            f"the message takes {size} bytes on the wire, more than the receiver ever grants at a time "
            f"(its limits.max_inflight_bytes is {limits.bytes})"
        )
    return None
