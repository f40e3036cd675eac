"""Bodies of records: one value has one body, and nothing but exactly one well-formed value is read back."""

from __future__ import annotations

import enum
import tracemalloc
import uuid
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_twisted.core.codec import (
    MAX_REJECTIONS,
    TOLD_BY_CLOSE,
    TOLD_BY_RECEIPT,
    Close,
    Malformed,
    Receipt,
    canonical_payload,
    deserialize,
    encode_header,
    serialize_close,
    serialize_receipt,
)
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.errors import Category, EnvelopeError
from tests import wire_peer as wire

NAMES = ("ts", "nonce", "kind", "trace_id", "reply_to", "target", "headers")
PLAIN: dict[str, Any] = dict(zip(NAMES, (1_763_900_000, "n", "job.run", None, None, None, {}), strict=True))


def header(**changes: Any) -> tuple[Any, ...]:
    return tuple((PLAIN | changes).values())


# Round trips

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
envelopes = st.builds(
    SecureEnvelope,
    ts=st.integers(0, 2**53 - 1),
    nonce=text,
    kind=text,
    trace_id=st.none() | text,
    reply_to=st.none() | text,
    target=st.none() | text | st.lists(text, min_size=1, max_size=5),
    headers=st.dictionaries(text, st.text(st.characters(exclude_categories=["Cs"])), max_size=5),
    payload_bytes=st.binary(max_size=100),
)
rejected = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(sorted(TOLD_BY_RECEIPT))), max_size=5)
u64 = st.integers(0, 2**64 - 1)


@given(envelopes, u64)
@settings(deadline=None)
def test_an_envelope_has_the_body_that_a_second_implementation_gives_it(envelope: SecureEnvelope, seq: int) -> None:
    """Canonical: shortest forms, keys sorted. And it comes back as it was."""
    body = canonical_payload(envelope, seq)
    values = [getattr(envelope, name) for name in NAMES]
    assert body == wire.envelope_body(seq, values, envelope.payload_bytes)
    assert deserialize(body) == (seq, envelope)


@given(st.integers(-1, 2**63 - 1), rejected, u64, u64, u64)
@settings(deadline=None)
def test_a_receipt_has_the_body_that_a_second_implementation_gives_it(
    through: int, listed: list[tuple[int, Category]], messages: int, octets: int, seq: int
) -> None:
    receipt = Receipt(through, listed, messages, octets)
    body = serialize_receipt(receipt, seq)
    assert body == wire.receipt_body(seq, through, listed, messages, octets)
    assert deserialize(body) == (seq, receipt)


@given(st.sampled_from(sorted(TOLD_BY_CLOSE)), st.integers(-1, 2**63 - 1), rejected, st.none() | u64, u64)
@settings(deadline=None)
def test_a_close_has_the_body_that_a_second_implementation_gives_it(
    category: Category, through: int, listed: list[tuple[int, Category]], cause: int | None, seq: int
) -> None:
    close = Close(category, through, listed, cause)
    body = serialize_close(close, seq)
    assert body == wire.close_body(seq, category, through, listed, cause)
    assert deserialize(body) == (seq, close)


def test_the_signature_is_carried_beside_the_body() -> None:
    body = canonical_payload(SecureEnvelope(**PLAIN), 0)
    _, envelope = deserialize(body, "ab" * 32)
    assert envelope == SecureEnvelope(**PLAIN, sig="ab" * 32)


def test_the_order_in_which_headers_were_set_does_not_show() -> None:
    one = SecureEnvelope(**PLAIN | {"headers": {"a": "1", "b": "2"}})
    other = SecureEnvelope(**PLAIN | {"headers": {"b": "2", "a": "1"}})
    assert canonical_payload(one, 0) == canonical_payload(other, 0)


# What may not be sent


class Colour(enum.Enum):
    RED = "red"


class Kind(enum.StrEnum):
    RUN = "job.run"


WRONG: dict[str, list[object]] = {
    "ts": [None, True, -1, 2**53, 2**64, -(2**70), 1.0, float("nan"), "1", b"1", Decimal(1)],
    "nonce": [None, "", "n" * 65, 1, b"n", "\ud800", uuid.UUID(int=1)],
    "kind": [None, "", "k" * 129, 1, b"job.run", "\udfff", Colour.RED, msgspec.Raw(b"\xa1k"), date(2026, 1, 1)],
    "trace_id": ["", "t" * 257, 1, b"t", True, ["t"], uuid.UUID(int=1), object()],
    "reply_to": ["", "r" * 257, 0, b"r", {"r": "r"}],
    "target": ["", "t" * 257, [], ["t"] * 65, [""], ["t" * 257], [None], [["t"]], ("a", "b"), {"a"}, {"a": "b"}, 1],
    "headers": [
        None,
        [],
        [["a", "b"]],
        {f"h{at}": "" for at in range(65)},
        {1: "a"},
        {"a": 1},
        {"a": None},
        {b"a": "b"},
        {"a": b"b"},
        {"\ud800": "a"},
        {"a": uuid.UUID(int=1)},
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_that_breaks_its_rule_is_named_and_never_sent(name: str, value: object) -> None:
    """Also what the encoder would take and turn into something else: a UUID into text, a set into a list."""
    with pytest.raises(EnvelopeError, match=f"^malformed: {name} must be ") as caught:
        encode_header(header(**{name: value}))
    assert caught.value.category is Category.MALFORMED


LARGEST: dict[str, list[object]] = {
    "ts": [0, 2**53 - 1],
    "nonce": ["n", "\U0001f511" * 64],
    "kind": ["k", "\u00e9" * 128, Kind.RUN],
    "trace_id": [None, "t", "\u00e9" * 256],
    "reply_to": [None, "r", "r" * 256],
    "target": [None, "t", "t" * 256, ["t"], ["t" * 256] * 64],
    "headers": [{}, {"": ""}, {f"h{at}": "v" for at in range(64)}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in LARGEST.items() for value in values])
def test_a_field_at_its_bounds_is_sent_as_it_is(name: str, value: object) -> None:
    body = wire.record_body(wire.ENVELOPE, 0, encode_header(header(**{name: value})))
    _, envelope = deserialize(body)
    assert getattr(envelope, name) == value


def test_the_first_field_that_is_wrong_is_named() -> None:
    with pytest.raises(EnvelopeError, match="kind must be"):
        encode_header(header(kind="", target=""))


class Turncoat(dict[str, str]):
    """Unequal to what arrives when the whole header is checked, equal when its own field is."""

    checks = 0

    def __eq__(self, other: object) -> bool:
        type(self).checks += 1
        return type(self).checks > 1


def test_what_cannot_be_named_is_refused_all_the_same() -> None:
    with pytest.raises(EnvelopeError, match="the header cannot be encoded"):
        encode_header(header(headers=Turncoat()))


def test_a_header_at_its_limit_is_sent_and_one_byte_more_is_not() -> None:
    """The length is a u16 on the wire: it must not wrap round."""
    room = 65_535 - len(encode_header(header(headers={"h": "x" * 60_000}))) + 60_000
    assert len(encode_header(header(headers={"h": "x" * room}))) == 65_535
    with pytest.raises(EnvelopeError, match="has 65536 bytes, the limit is 65535: move large headers"):
        encode_header(header(headers={"h": "x" * (room + 1)}))


def test_a_structure_that_never_ends_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EnvelopeError, match="target must be"):
        encode_header(header(target=endless))


def test_the_text_of_an_error_holds_no_value() -> None:
    """It may be a secret by mistake, and errors are logged."""
    with pytest.raises(EnvelopeError) as caught:
        encode_header(header(trace_id=["swordfish"], headers={"swordfish": 1}))
    assert "swordfish" not in str(caught.value)


# What is not read

GOOD_RECEIPT = wire.pack([-1, [], 1, 1])
GOOD_CLOSE = wire.pack(["closed", -1, [], None])
BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut prefix": bytes(10),
    "header beyond the body": wire.record_body(2, 0, GOOD_RECEIPT, header_len=len(GOOD_RECEIPT) + 1),
    "unknown type 0": wire.record_body(0, 0, GOOD_RECEIPT),
    "unknown type 4": wire.record_body(4, 0, GOOD_RECEIPT),
    "unknown type 0, a close's header": wire.record_body(0, 0, GOOD_CLOSE),
    "unknown type 4, a close's header": wire.record_body(4, 0, GOOD_CLOSE),
    "receipt with a payload": wire.record_body(2, 0, GOOD_RECEIPT, b"x"),
    "close with a payload": wire.record_body(3, 0, GOOD_CLOSE, b"x"),
    "receipt: trailing byte": wire.record_body(2, 0, GOOD_RECEIPT + b"\xc0"),
    "receipt: one element less": wire.record_body(2, 0, wire.pack([-1, [], 1])),
    "receipt: one element more": wire.record_body(2, 0, wire.pack([-1, [], 1, 1, 1])),
    "receipt: through -2": wire.record_body(2, 0, wire.pack([-2, [], 1, 1])),
    "receipt: through nil": wire.record_body(2, 0, wire.pack([None, [], 1, 1])),
    "receipt: through true": wire.record_body(2, 0, wire.pack([True, [], 1, 1])),
    "receipt: credit negative": wire.record_body(2, 0, wire.pack([-1, [], -1, 1])),
    "receipt: unknown category": wire.record_body(2, 0, wire.pack([0, [[0, "swordfish"]], 1, 1])),
    "receipt: rejected seq negative": wire.record_body(2, 0, wire.pack([0, [[-1, "expired"]], 1, 1])),
    "receipt: 1001 rejections": wire.receipt_body(0, 1000, [(at, "expired") for at in range(1_001)], 1, 1),
    "close: seq -1": wire.record_body(3, 0, wire.pack(["closed", -1, [], -1])),
    "close: category not text": wire.record_body(3, 0, wire.pack([1, -1, [], None])),
    "close: 1001 rejections": wire.close_body(0, "closed", 1000, [(at, "expired") for at in range(1_001)], None),
    "envelope: not UTF-8": wire.envelope_body(0, wire.pack(list(header(kind=wire.Raw(b"\xa1\xff")))), b""),
    "envelope: deep": wire.envelope_body(0, b"\x91" * 60_000 + b"\xc0", b""),
    "envelope: a receipt's header": wire.envelope_body(0, GOOD_RECEIPT, b""),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_whatever_is_not_one_well_formed_record_is_malformed(body: bytes) -> None:
    """Never another exception: a peer must not be able to cause a traceback."""
    with pytest.raises(Malformed):
        deserialize(body)


def test_a_thousand_rejections_are_as_many_as_fit() -> None:
    listed = [(at, Category.OUTSIDE_REPLAY_WINDOW) for at in range(MAX_REJECTIONS)]
    body = serialize_receipt(Receipt(2**63 - 1, listed, 2**64 - 1, 2**64 - 1), 0)
    assert len(body) < 65_535
    assert deserialize(body) == (0, Receipt(2**63 - 1, listed, 2**64 - 1, 2**64 - 1))


@given(st.binary(max_size=60), st.integers(0, 5))
@settings(deadline=None, max_examples=300)
def test_no_bytes_raise_anything_but_malformed(noise: bytes, type_: int) -> None:
    try:
        deserialize(wire.record_body(type_, 0, noise))
        deserialize(noise)
    except Malformed:
        pass


@pytest.mark.attack(29)
@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"])
@pytest.mark.parametrize("field", range(7))
def test_a_claimed_size_allocates_nothing(claim: bytes, field: int) -> None:
    values: list[object] = list(header())
    values[field] = wire.Raw(claim)
    body = wire.envelope_body(0, values, b"")
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            deserialize(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024
