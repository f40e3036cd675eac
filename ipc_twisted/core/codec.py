"""Record body ↔ values: the canonical payload of an envelope, receipts and closes.

::

    body = u8 type | u64 seq | u16 header_len | header (MessagePack) | payload          big endian

Encoding is canonical (shortest form, map keys sorted), so one value has one body. Decoding is strict about elements,
types, limits and trailing bytes, but takes any legal MessagePack form: what was signed are the bytes, and they are
never made anew.
"""

from __future__ import annotations

from struct import Struct
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from ipc_twisted.core.envelope import FIELD_RULES, MAX_HEADER_BYTES, HeaderFields, SecureEnvelope
from ipc_twisted.errors import Category, EnvelopeError

MAX_REJECTIONS = 1_000
"""Rejections in one RECEIPT or CLOSE; more go in the next."""

NO_SEQ = -1
"""``through`` of a side that has decided nothing yet."""

ENVELOPE, RECEIPT, CLOSE = 1, 2, 3
"""The types of a record."""

BODY_PREFIX = Struct(">BQH")
encode_prefix = BODY_PREFIX.pack


class Malformed(ValueError):
    """A body or header that is not what the wire protocol allows (its sections 3 and 5)."""


class Receipt(NamedTuple):
    """What became of the envelopes of the other direction, and how much of it may still be written.

    :ivar through: every envelope record up to this sequence number is decided; -1: none.
    :ivar rejected: those of them that were rejected, ascending, with their category; all others were accepted.
    :ivar messages: envelopes that may be written, in total since the connection began.
    :ivar bytes: bytes of their frames that may be written, in total since the connection began.
    """

    through: int
    rejected: list[tuple[int, Category]]
    messages: int
    bytes: int


class Close(NamedTuple):
    """The last record of a direction, and its last receipt: nothing beyond ``through`` was or will be handed over.

    :ivar seq: the sequence number that was expected where the fault lay; None if no record was at fault.
    """

    category: Category
    through: int
    rejected: list[tuple[int, Category]]
    seq: int | None


_U64 = Annotated[int, Meta(ge=0)]
_Through = Annotated[int, Meta(ge=NO_SEQ)]
_Rejected = Annotated[list[tuple[_U64, Category]], Meta(max_length=MAX_REJECTIONS)]

TOLD_BY_RECEIPT = frozenset(
    {
        Category.KIND_NOT_ALLOWED,
        Category.EXPIRED,
        Category.NOT_YET_VALID,
        Category.REPLAYED,
        Category.OUTSIDE_REPLAY_WINDOW,
        Category.REPLAY_CACHE_FULL,
        Category.SHUTTING_DOWN,
    }
)
"""What one message can be rejected with."""

TOLD_BY_CLOSE = frozenset(
    {
        Category.MALFORMED,
        Category.PAYLOAD_TOO_LARGE,
        Category.SIGNATURE_MISSING,
        Category.SIGNATURE_INVALID,
        Category.SEQUENCE_GAP,
        Category.REPLAYED,
        Category.CREDIT_EXCEEDED,
        Category.FRAME_TIMEOUT,
        Category.CLOSED,
        Category.SHUTTING_DOWN,
        Category.TOO_MANY_CONNECTIONS,
        Category.KEY_UNKNOWN,
        Category.CLOCK_STEPPED,
        Category.WRITE_STALLED,
        Category.RECEIPT_TIMEOUT,
    }
)
"""What a connection can be ended with in a word."""

_UNFIT = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
"""What the encoder raises for values it cannot take. (UnicodeError is a ValueError.)"""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
encode_checked = _encode
"""As :func:`encode_header`, for fields that are known to be good."""

decode_header = msgspec.msgpack.Decoder(HeaderFields).decode
_decode_receipt = msgspec.msgpack.Decoder(tuple[_Through, _Rejected, _U64, _U64]).decode
_decode_close = msgspec.msgpack.Decoder(tuple[Category, _Through, _Rejected, _U64 | None]).decode


def encode_header(fields: tuple[object, ...]) -> bytes:
    """Check and encode the header fields, in the order of :data:`HeaderFields`.

    :raises EnvelopeError: ``malformed``, naming the field and its rule.
    """
    try:
        header = _encode(fields)
        # Faster than any other way of checking all of them. Equal, since the encoder makes text of a UUID and a list of
        # a set; what arrives must be what was given.
        good = decode_header(header) == fields
    except _UNFIT:
        good = False
    if not good:
        raise EnvelopeError(Category.MALFORMED, _first_problem(fields))
    if len(header) > MAX_HEADER_BYTES:
        raise EnvelopeError(
            Category.MALFORMED,
            f"the encoded header has {len(header)} bytes, the limit is {MAX_HEADER_BYTES}: "
            "move large headers or targets into payload_bytes",
        )
    return header


def _first_problem(fields: tuple[object, ...]) -> str:
    problems = (
        f"{name} must be {rule}, in text that UTF-8 can hold"
        for (name, (type_, rule)), value in zip(FIELD_RULES.items(), fields, strict=True)
        if not _fits(value, type_)
    )
    return next(problems, "the header cannot be encoded")


def _fits(value: object, type_: Any) -> bool:
    try:
        return bool(msgspec.msgpack.decode(_encode(value), type=type_) == value)
    except _UNFIT:
        return False


def canonical_payload(envelope: SecureEnvelope, seq: int) -> bytes:
    """The bytes that ``sig`` signs: the whole body of the envelope's record.

    :raises EnvelopeError: a field breaks its rule.
    """
    fields = (
        envelope.ts,
        envelope.nonce,
        envelope.kind,
        envelope.trace_id,
        envelope.reply_to,
        envelope.target,
        envelope.headers,
    )
    header = encode_header(fields)
    return b"".join((encode_prefix(ENVELOPE, seq, len(header)), header, envelope.payload_bytes))


def serialize_receipt(receipt: Receipt, seq: int) -> bytes:
    """The body of a RECEIPT record."""
    header = _encode(receipt)
    return encode_prefix(RECEIPT, seq, len(header)) + header


def serialize_close(close: Close, seq: int) -> bytes:
    """The body of a CLOSE record."""
    header = _encode(close)
    return encode_prefix(CLOSE, seq, len(header)) + header


def decode_control(type_: int, header: memoryview, payload: bytes) -> Receipt | Close:
    """:raises Malformed: an unknown record type, a payload where none may be, or a header that is not of the type."""
    if payload:
        raise Malformed("a receipt or close has no payload")
    if type_ not in (RECEIPT, CLOSE):
        raise Malformed("unknown record type")
    record: Receipt | Close
    try:
        record = Receipt._make(_decode_receipt(header)) if type_ == RECEIPT else Close._make(_decode_close(header))
    except Exception as problem:  # also UnicodeDecodeError and RecursionError: never a traceback that a peer can cause
        raise Malformed("the header does not decode") from problem
    if isinstance(record, Close) and record.category not in TOLD_BY_CLOSE:
        raise Malformed("a category that no close tells")
    if not TOLD_BY_RECEIPT.issuperset(category for _, category in record.rejected):
        raise Malformed("a category that no receipt tells")
    return record


def deserialize(body: bytes, sig: str = "") -> tuple[int, SecureEnvelope | Receipt | Close]:
    """Read one whole record body; the inverse of the serializers. Verifies nothing: that is the verifier chain's work.

    :returns: the sequence number and the value.
    :raises Malformed: for whatever is not exactly one well-formed record.
    """
    if len(body) < BODY_PREFIX.size:
        raise Malformed("shorter than a record prefix")
    type_, seq, header_len = BODY_PREFIX.unpack_from(body)
    payload_at = BODY_PREFIX.size + header_len
    if payload_at > len(body):
        raise Malformed("the header reaches beyond the body")
    header, payload = memoryview(body)[BODY_PREFIX.size : payload_at], body[payload_at:]
    if type_ != ENVELOPE:
        return seq, decode_control(type_, header, payload)
    try:
        ts, nonce, kind, trace_id, reply_to, target, headers = decode_header(header)
    except Exception as problem:
        raise Malformed("the header does not decode") from problem
    return seq, SecureEnvelope(ts, nonce, kind, trace_id, reply_to, target, headers, payload, sig)
