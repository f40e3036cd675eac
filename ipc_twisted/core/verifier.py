"""The verifier chain: every check a record passes before anything is done with it, in order, in one place.

1. connection state: a connection that has ended drops every later record, also within one segment
2. length prefix within bounds (in the framer, before the body is buffered)
3. payload length within ``max_payload_bytes`` (in the framer, as soon as the record's first 47 bytes are there)
4. signature
5. sequence, and credit of an envelope
6. strict decode
7. kind allowed, and not shutting down
8. ``abs(now - ts) <= ttl_seconds``
9. nonce unique
10. hand-over, before the next record is looked at

1 to 6 end the connection, since who fails them is no key holder or has lost the stream. 7 to 9 reject that one message.
Nothing but lengths and connection state is looked at before the signature holds: whoever has no key reaches no parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature

from ipc_twisted.core.codec import (
    ENVELOPE,
    NO_SEQ,
    Close,
    Malformed,
    Receipt,
    decode_control,
    decode_header,
)
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.flow import ReceiveCredit
from ipc_twisted.core.framing import Frame
from ipc_twisted.core.replay import ReplayGuard
from ipc_twisted.core.signing import MacKey
from ipc_twisted.errors import Category


class Fault(Exception):
    """What the peer sent ends the connection. Never leaves the core."""

    def __init__(self, category: Category) -> None:
        super().__init__(category)
        self.category = category


class Rejection(NamedTuple):
    """One message was rejected; ``kind`` and ``trace_id`` are the peer's text, to be escaped where they are logged."""

    category: Category
    kind: str
    trace_id: str | None


class Verifier:
    """The chain for one direction of one connection.

    :param key: the key of that direction.
    :param allowed_kinds: compared exactly.
    :param ttl_seconds: how far a ``ts`` may lie from now, either way; ours.
    :param guard: shared by all connections of the receiver.
    :param credit: what the other side may write; counted here.
    :ivar expected: the sequence number the next record must have.
    :ivar through: the last envelope record that is decided; -1: none.
    :ivar rejected: those of them that were rejected and are not yet told, ascending.
    :ivar ended: 1 of the chain; set by who ends the connection.
    :ivar dropping: an orderly CLOSE of ours is out: records are still verified, envelopes go no further than 6.
    :ivar shutting_down: new envelopes are rejected.
    """

    def __init__(
        self,
        key: MacKey,
        allowed_kinds: frozenset[str],
        ttl_seconds: int,
        guard: ReplayGuard,
        credit: ReceiveCredit,
    ) -> None:
        self.expected = 0
        self.through = NO_SEQ
        self.rejected: list[tuple[int, Category]] = []
        self.ended = False
        self.dropping = False
        self.shutting_down = False
        self._new_mac = key.new
        self._allowed_kinds = allowed_kinds
        self._ttl = ttl_seconds
        self._guard = guard
        self._credit = credit

    def verify(
        self,
        frames: Iterable[Frame],
        now: int,
        hand_over: Callable[[SecureEnvelope, int], bool],
        on_rejected: Callable[[Rejection], None],
        take_control: Callable[[Receipt | Close], None],
    ) -> None:
        """Run the chain over the complete frames of a segment, one record at a time.

        The hot loop: one HMAC, one decode, and of our own calls the guard's and the hand-over. State is up to date at
        every call, so whoever is called may end the connection.

        :param now: unix seconds, read once per segment.
        :param hand_over: gets an envelope and the size of its frame in bytes; True: the handler is done with it.
        :param on_rejected: gets what was rejected.
        :param take_control: gets a RECEIPT or CLOSE, and raises :exc:`Fault` if it lies; ``expected`` still names it.
        :raises Fault: the connection must end; ``expected`` is the sequence number that was expected there.
        """
        new_mac, decode, admit, credit = self._new_mac, decode_header, self._guard.admit, self._credit
        allowed_kinds, oldest, newest = self._allowed_kinds, now - self._ttl, now + self._ttl
        for size, sig, type_, seq, signed, header, payload in frames:
            if self.ended:  # 1
                return
            if type(signed) is memoryview:  # 4
                mac = new_mac()
                mac.update(signed)
            else:
                mac = signed  # the MAC that was computed while the record arrived
            try:
                mac.verify(sig)
            except InvalidSignature:
                raise Fault(Category.SIGNATURE_INVALID if any(sig) else Category.SIGNATURE_MISSING) from None
            if seq != self.expected:  # 5
                raise Fault(Category.REPLAYED if seq < self.expected else Category.SEQUENCE_GAP)
            if type_ != ENVELOPE:
                try:
                    control = decode_control(type_, header, payload)  # 6
                except Malformed:
                    raise Fault(Category.MALFORMED) from None
                take_control(control)
                self.expected = seq + 1
                continue
            if credit.used_messages >= credit.told_messages or credit.used_bytes + size > credit.told_bytes:
                raise Fault(Category.CREDIT_EXCEEDED)
            try:
                ts, nonce, kind, trace_id, reply_to, target, headers = decode(header)  # 6
            except Exception:  # also UnicodeDecodeError and RecursionError: never a traceback that a peer can cause
                raise Fault(Category.MALFORMED) from None
            self.expected = seq + 1
            credit.used_messages += 1
            credit.used_bytes += size
            if self.dropping:
                continue
            if kind not in allowed_kinds:  # 7
                category: Category | None = Category.KIND_NOT_ALLOWED
            elif self.shutting_down:
                category = Category.SHUTTING_DOWN
            elif ts < oldest:  # 8
                category = Category.EXPIRED
            elif ts > newest:
                category = Category.NOT_YET_VALID
            else:
                category = admit(nonce, ts, now)  # 9
            self.through = seq
            if category is not None:
                self.rejected.append((seq, category))
                on_rejected(Rejection(category, kind, trace_id))
            elif not hand_over(  # 10
                SecureEnvelope(ts, nonce, kind, trace_id, reply_to, target, headers, payload, sig.hex()), size
            ):
                continue  # its credit comes back when its handler ends
            credit.finished_messages += 1
            credit.finished_bytes += size
