"""What was sent and has no outcome yet: the queue, what is in flight, and how each message ends.

Every :class:`Delivery` ends exactly once: accepted, rejected with a category, or unknown. All that has no outcome
counts against one bound, so a side that does not read or does not grant credit cannot make this grow.

========================================================  ==========================================
what is known when the connection ends                    outcome
========================================================  ==========================================
a receipt or CLOSE decided it                             accepted, or rejected with its category
beyond ``through`` of the peer's CLOSE                    rejected with the CLOSE's category
never written, and we closed in order                     rejected with our category
never written by ``ts + ttl``                             rejected, ``expired``
no CLOSE came                                             ``delivery_unknown``
========================================================  ==========================================

:mod:`ipc_twisted.core.resend` has the outbox of a client that connects again, with another table.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from struct import Struct

import msgspec

from ipc_twisted.core.codec import ENVELOPE, NO_SEQ, Malformed, encode_prefix
from ipc_twisted.core.flow import SendCredit
from ipc_twisted.core.framing import HEAD_BYTES
from ipc_twisted.core.signing import SIG_BYTES, MacKey
from ipc_twisted.errors import Category, DeliveryUnknown, EnvelopeError, Rejected, SendBufferFull

FLAT_COST_BYTES = 200
"""What a message costs besides header and payload, flat."""

JOIN_BYTES = 512
"""Payloads up to this are copied behind their header, larger ones are written as they are: one call less against one
copy."""

_signed_head = Struct(f">I{SIG_BYTES}s").pack

_WHY = {
    Category.KIND_NOT_ALLOWED: "the kind is not in the receiver's allowed_kinds",
    Category.EXPIRED: "it arrived after its time to live: the receiver is too busy, or the clocks differ",
    Category.NOT_YET_VALID: "its time lies in the receiver's future: the clocks differ",
    Category.OUTSIDE_REPLAY_WINDOW: "the receiver's replay guard is full: send slower, or raise auth.nonce_cache_size",
    Category.REPLAY_CACHE_FULL: "the receiver's replay guard is full: send slower, or raise auth.nonce_cache_size",
    Category.SHUTTING_DOWN: "the receiver is shutting down",
}
"""What a rejection means, and what to do."""

UNSENT = "unsent: no connection or no credit came within its time to live"


class Delivery(msgspec.Struct, eq=False):
    """What becomes of one message. Small, since there is one for each that has no outcome.

    It holds nothing that the garbage collector would have to look at, until somebody waits for it or it ends in an
    error: else the collector goes again and again over all that is in flight.

    :ivar ts: of the message, unix seconds; ``kind`` and ``trace_id`` likewise.
    :ivar header: encoded, as it is written.
    :ivar cost: bytes it counts for in :attr:`Outbox.buffered`; set by :meth:`Outbox.add`.
    :ivar seq: of its record, once written.
    :ivar written_at: when, in seconds of the caller's monotonic clock.
    :ivar seen_by: the instance of the receiver that may have handed it over; None: nobody has.
    """

    ts: int
    kind: str
    trace_id: str | None
    header: bytes
    payload: bytes
    cost: int = 0
    seq: int = NO_SEQ
    written_at: float = 0.0
    seen_by: bytes | None = None
    # Pending: who waits for the outcome. Else the outcome; None: accepted.
    _state: tuple[Callable[[Delivery], None], ...] | Rejected | DeliveryUnknown | None = ()

    def done(self) -> bool:
        """The outcome is known, or it is known that it never will be."""
        return not isinstance(self._state, tuple)

    def exception(self) -> Rejected | DeliveryUnknown | None:
        """None: accepted, or not done yet."""
        return None if isinstance(self._state, tuple) else self._state

    def add_done_callback(self, callback: Callable[[Delivery], None]) -> None:
        """Call ``callback(self)`` once done, at once if it is."""
        if isinstance(self._state, tuple):
            self._state = (*self._state, callback)
        else:
            callback(self)

    def remove_done_callback(self, callback: Callable[[Delivery], None]) -> None:
        """Who waited for it does no longer. Of one that is done, nobody waits."""
        waiting = self._state if isinstance(self._state, tuple) else ()
        if callback in waiting:
            self._state = tuple(other for other in waiting if other != callback)

    @property
    def awaited(self) -> bool:
        """It is pending, and somebody asked for the outcome."""
        return isinstance(self._state, tuple) and len(self._state) > 0

    def settle(self, error: Rejected | DeliveryUnknown | None) -> None:
        """End it; the message is let go."""
        callbacks, self._state = self._state, error
        self.header = self.payload = b""
        for callback in callbacks if isinstance(callbacks, tuple) else ():
            callback(self)

    def __repr__(self) -> str:
        error = self.exception()
        state = "pending" if not self.done() else "accepted" if error is None else str(error.category)
        return f"<Delivery kind={self.kind!r} trace_id={self.trace_id!r} {state}>"


class Outbox:
    """The messages of one sender that have no outcome.

    :param limit_bytes: bound of :attr:`buffered`.
    :param tally: counts the outcomes, by category; ``accepted`` too.
    :param on_unclaimed: called with each rejected or unknown delivery that nobody awaits, so that none is lost
        silently.
    :ivar buffered: bytes of all messages without an outcome: header, payload and a flat cost each.
    :ivar queue: not written yet, oldest first.
    :ivar in_flight: written, without a receipt, by ascending ``seq``.
    """

    def __init__(self, limit_bytes: int, tally: Counter[str], on_unclaimed: Callable[[Delivery], None]) -> None:
        self.buffered = 0
        self.queue: deque[Delivery] = deque()
        self.in_flight: deque[Delivery] = deque()
        self._limit = limit_bytes
        self._through = NO_SEQ
        self._tally = tally
        self._on_unclaimed = on_unclaimed
        self._drained: deque[Callable[[], None]] = deque()
        self._refused = 0  # cost of the message that found no room last

    def add(self, delivery: Delivery) -> None:
        """Queue a message. Nothing is queued if one of these is raised.

        :raises SendBufferFull: there is no room for it now.
        :raises EnvelopeError: ``payload_too_large``: there never will be.
        """
        delivery.cost = cost = len(delivery.header) + len(delivery.payload) + FLAT_COST_BYTES
        buffered = self.buffered + cost
        if buffered > self._limit:
            if cost > self._limit:
                raise EnvelopeError(
                    Category.PAYLOAD_TOO_LARGE,
                    f"the message takes {cost} bytes, limits.send_buffer_bytes of this side is {self._limit}",
                )
            self._refused = cost
            raise SendBufferFull(
                Category.SEND_BUFFER_FULL,
                f"{self.buffered} of limits.send_buffer_bytes={self._limit} are taken by messages without an outcome; "
                "await drained() and send again",
            )
        self._refused = 0
        self.buffered = buffered
        self.queue.append(delivery)

    @property
    def unsettled(self) -> int:
        """Messages without an outcome."""
        return len(self.queue) + len(self.in_flight)

    def attach(self, instance: bytes, refusal: Callable[[int, int], str | None]) -> None:
        """A connection is authenticated: what is queued will be written to it.

        :param instance: of the receiver's replay guard.
        :param refusal: why a payload and a frame of so many bytes each can never be taken by it; None: they can.
        """

    def write(
        self, key: MacKey, seq: int, credit: SendCredit, room: int, oldest: int, at: float
    ) -> tuple[list[bytes], int]:
        """Make the frames that may be written now, in order; the hot loop of sending, with no call of ours within.

        :param seq: of the next record.
        :param room: stop once this many bytes are made.
        :param oldest: a ``ts`` before it has expired; stops there. :meth:`expire` rejects it, not this, because who
            learns of it may end the connection, which nothing half written survives.
        :param at: now, on the caller's monotonic clock.
        :returns: the buffers to write, and the sequence number of the record after them.
        """
        new_mac, queue, in_flight = key.new, self.queue, self.in_flight
        messages, bytes_ = credit.messages - credit.used_messages, credit.bytes - credit.used_bytes
        out: list[bytes] = []
        while queue and room > 0:
            delivery = queue[0]
            if delivery.ts < oldest:
                break
            header, payload = delivery.header, delivery.payload
            size = HEAD_BYTES + len(header) + len(payload)
            if messages <= 0 or size > bytes_:
                break
            mac = new_mac()
            if len(payload) <= JOIN_BYTES:
                body = encode_prefix(ENVELOPE, seq, len(header)) + header + payload
                mac.update(body)
                out.append(_signed_head(size - 4, mac.finalize()) + body)
            else:
                body = encode_prefix(ENVELOPE, seq, len(header)) + header
                mac.update(body)
                mac.update(payload)
                out.append(_signed_head(size - 4, mac.finalize()) + body)
                out.append(payload)
            queue.popleft()
            delivery.seq = seq
            delivery.written_at = at
            in_flight.append(delivery)
            messages -= 1
            bytes_ -= size
            seq += 1
            room -= size
        credit.used_messages, credit.used_bytes = credit.messages - messages, credit.bytes - bytes_
        return out, seq

    def expire(self, oldest: int) -> None:
        """End what is still unwritten and older than ``oldest``."""
        while self.queue and self.queue[0].ts < oldest:
            self._settle(self.queue.popleft(), Rejected(Category.EXPIRED, UNSENT))

    def take_receipt(self, through: int, rejected: Sequence[tuple[int, Category]], written: int) -> None:
        """Settle what a RECEIPT or CLOSE decides.

        :param written: records of our direction that were written.
        :raises Malformed: it lies; nothing was settled.
        """
        if not self._through <= through < written:
            raise Malformed("through falls, or names a record that was not sent")
        previous = self._through
        for seq, _ in rejected:
            if not previous < seq <= through:
                raise Malformed("rejected sequence numbers do not ascend within what is decided")
            previous = seq
        categories = dict(rejected)
        if categories:
            to_decide = takewhile(lambda delivery: delivery.seq <= through, self.in_flight)
            if not categories.keys() <= {delivery.seq for delivery in to_decide}:
                raise Malformed("a rejected record was no envelope")
        self._through = through
        in_flight = self.in_flight
        decided: list[Delivery] = []
        while in_flight and in_flight[0].seq <= through:
            decided.append(in_flight.popleft())
        accepted = [delivery for delivery in decided if delivery.seq not in categories] if categories else decided
        # Counted before anybody is told, since who is told may look, send, or end the connection.
        self.buffered -= sum([delivery.cost for delivery in accepted])
        self._tally["accepted"] += len(accepted)
        for delivery in decided:
            if categories and delivery.seq in categories:
                self._rejected(delivery, categories[delivery.seq])
            else:  # the hot path
                delivery.settle(None)
        self._wake()

    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        """The peer's CLOSE: nothing of what is left was or will be handed over by this connection.

        :param seq: of the record at fault; None: none was.
        """
        why = "the receiver closed the connection without handing it over"
        self._settle_all((self.in_flight, self.queue), lambda: Rejected(category, why))

    def closed_here(self, category: Category) -> None:
        """Our CLOSE: nothing more will be written to this connection."""
        why = "unsent: the connection was closed on this side"
        self._settle_all((self.queue,), lambda: Rejected(category, why))

    def lose(self) -> None:
        """The connection ended and nobody said what became of the rest."""
        self._settle_all((self.in_flight, self.queue), unknown)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once at least half of the bound is free, at once if it is; in the order of the calls."""
        if self._has_room() and not self._drained:
            callback()
        else:
            self._drained.append(callback)

    def not_when_drained(self, callback: Callable[[], None]) -> None:
        """Who waited for room does no longer."""
        if callback in self._drained:
            self._drained.remove(callback)

    def _settle_all(self, queues: Sequence[deque[Delivery]], outcome: Callable[[], Rejected | DeliveryUnknown]) -> None:
        for queue in queues:
            while queue:
                self._settle(queue.popleft(), outcome())

    def _rejected(self, delivery: Delivery, category: Category) -> None:
        """A receipt says so."""
        why = _WHY.get(category, "the receiver did not hand it over")
        self._settle(delivery, Rejected(category, f"{why} (kind {delivery.kind!r})"))

    def _settle(self, delivery: Delivery, error: Rejected | DeliveryUnknown | None) -> None:
        self.buffered -= delivery.cost
        self._tally["accepted" if error is None else error.category] += 1
        unclaimed = error is not None and not delivery.awaited
        delivery.settle(error)
        if unclaimed:
            self._on_unclaimed(delivery)
        self._wake()

    def _wake(self) -> None:
        """Let go on who waits for room: one at a time, since each will send, and may fill it again."""
        while self._drained and self._has_room():
            self._drained.popleft()()

    def _has_room(self) -> bool:
        """Half of the bound is free, and what was refused last fits."""
        return self.buffered * 2 <= self._limit and self.buffered + self._refused <= self._limit


def unknown() -> DeliveryUnknown:
    """For what was written, and nobody said what became of it."""
    return DeliveryUnknown(
        Category.DELIVERY_UNKNOWN, "the connection ended before the receiver said what became of the message"
    )
