"""Frames that a receiver must refuse, but for RECEIPTs and CLOSEs, which have a page of their own."""

from __future__ import annotations

import struct
from typing import Any

from tests.vectors.common import KEYS, NOW, PRK, Case, envelope, fields, receiver, record_case, signed
from tests.wire_peer import ENVELOPE, MAX_HEADER, MIN_LENGTH, Raw, connection_keys, pack

_SMALL = receiver(max_payload_bytes=64)
_HEADER = pack(list(fields().values()))
_FORGED = {"sig": b"\x5a" * 32}


def envelope_reject() -> list[Case]:
    """The cases in the order of the checks, then those in which two checks would fail."""
    return [*_lengths(), *_signatures(), *_sequence_and_credit(), *_structure(), *_limits(), *_message(), *_order()]


def _lengths() -> list[Case]:
    def prefix(length: int, category: str) -> Case:
        text = "The four bytes of the length alone: refused before any more is read."
        return record_case(f"length-{length:#x}", text, struct.pack(">I", length), state=_SMALL, category=category)

    def beginning(name: str, text: str, length: int, header_len: int, category: str) -> Case:
        data = struct.pack(">I32sBQH", length, bytes(range(32)), ENVELOPE, 0, header_len)
        return record_case(name, text, data, state=_SMALL, category=category)

    return [
        prefix(0, "malformed"),
        prefix(1, "malformed"),
        prefix(MIN_LENGTH - 1, "malformed"),
        prefix(MIN_LENGTH + MAX_HEADER + 64 + 1, "payload_too_large"),
        prefix(0x7FFF_FFFF, "payload_too_large"),
        prefix(0x8000_0000, "payload_too_large"),
        prefix(0xFFFF_FFFF, "payload_too_large"),
        beginning(
            "payload-one-over",
            "A payload of max_payload_bytes + 1 under a plain header: known after 47 bytes.",
            MIN_LENGTH + 22 + 65,
            22,
            "payload_too_large",
        ),
        beginning(
            "payload-one-over-no-header",
            "header_len 0 and one byte more than the payload may have.",
            MIN_LENGTH + 65,
            0,
            "payload_too_large",
        ),
        beginning(
            "header-len-beyond-frame",
            "header_len says one byte more than the frame has: known after 47 bytes.",
            MIN_LENGTH + 22,
            23,
            "malformed",
        ),
    ]


def _signatures() -> list[Case]:
    good = signed(ENVELOPE, _HEADER, b"hello")

    def flipped(at: int) -> bytes:
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    other = connection_keys(PRK, bytes(32))
    cases: list[tuple[str, str, bytes, str]] = [
        ("signature-zero", "32 zero bytes.", signed(ENVELOPE, _HEADER, sig=bytes(32)), "signature_missing"),
        ("signature-random", "Not the signature.", signed(ENVELOPE, _HEADER, sig=b"\x5a" * 32), "signature_invalid"),
        ("signature-first-bit", "One bit of it is wrong.", flipped(4), "signature_invalid"),
        ("signature-last-bit", "One bit of its last byte is wrong.", flipped(35), "signature_invalid"),
        ("tampered-type", "The type was changed after signing.", flipped(36), "signature_invalid"),
        ("tampered-seq", "seq was changed after signing.", flipped(44), "signature_invalid"),
        ("tampered-header", "ts was changed after signing.", flipped(52), "signature_invalid"),
        ("tampered-payload", "The payload was changed after signing.", flipped(len(good) - 1), "signature_invalid"),
        (
            "header-end-moved",
            "header_len was lowered after signing, so that header and payload meet elsewhere.",
            good[:46] + bytes([good[46] - 1]) + good[47:],
            "signature_invalid",
        ),
        (
            "reflected",
            "A frame of the other direction, sent back to who made it.",
            signed(ENVELOPE, _HEADER, key=KEYS.s2c),
            "signature_invalid",
        ),
        (
            "other-connection",
            "Signed under the keys of another connection with the same secret.",
            signed(ENVELOPE, _HEADER, key=other.c2s),
            "signature_invalid",
        ),
        (
            "signed-with-finished-key",
            "Signed under k_fin_c.",
            signed(ENVELOPE, _HEADER, key=KEYS.fin_c),
            "signature_invalid",
        ),
    ]
    return [record_case(name, text, data, category=category) for name, text, data, category in cases]


def _sequence_and_credit() -> list[Case]:
    used_up = receiver(credit={"messages": 8, "bytes": 67_108_864}, used={"messages": 8, "bytes": 552})
    one_short = receiver(credit={"messages": 8, "bytes": 1_068}, used={"messages": 7, "bytes": 1_000})
    first = receiver(expected_seq=1, accepted_before=[["n-1", NOW]])
    return [
        envelope("same-bytes-twice", "The previous frame again.", state=first, seq=0, category="replayed"),
        envelope("seq-lower", "seq one too low.", state=receiver(expected_seq=7), seq=6, category="replayed"),
        envelope("seq-higher", "seq one too high.", state=receiver(expected_seq=7), seq=8, category="sequence_gap"),
        envelope("seq-highest", "seq 2**64 - 1.", seq=2**64 - 1, category="sequence_gap"),
        envelope("credit-messages", "One message more than granted.", state=used_up, category="credit_exceeded"),
        envelope("credit-bytes", "One byte more than granted.", state=one_short, category="credit_exceeded"),
    ]


def _structure() -> list[Case]:
    values = list(fields().values())
    nested = b"\x91" * 20_000 + b"\xc0"
    headers: list[tuple[str, str, bytes]] = [
        ("header-empty", "No header at all.", b""),
        ("header-nil", "nil in place of the header.", b"\xc0"),
        ("header-map", "A map in place of the array.", pack(fields())),
        ("header-six", "An element is missing.", pack(values[:6])),
        ("header-eight", "An element too many.", pack([*values, None])),
        ("header-trailing-byte", "A byte behind the array.", _HEADER + b"\xc0"),
        ("header-cut", "The last byte is missing.", _HEADER[:-1]),
        ("header-array-claims-2-32", "An array that claims 2**32 - 1 items.", b"\xdd\xff\xff\xff\xff"),
        ("header-nested", "20,000 arrays in each other.", nested),
        ("header-reserved-code", "The code 0xc1, which MessagePack never uses.", pack([*values[:6], Raw(b"\xc1")])),
    ]
    return [envelope(name, text, header=raw, category="malformed") for name, text, raw in headers]


def _limits() -> list[Case]:
    """Each field out of its type or limits, alone."""
    deep = Raw(b"\x91" * 2_000 + b"\xa1t")
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("ts-negative", "ts −1.", {"ts": -1}),
        ("ts-2-53", "ts 2**53.", {"ts": 2**53}),
        ("ts-2-64", "ts 2**64 − 1.", {"ts": 2**64 - 1}),
        ("ts-true", "ts true.", {"ts": True}),
        ("ts-float", "ts as a float of the right value.", {"ts": float(NOW)}),
        ("ts-nan", "ts NaN.", {"ts": Raw(b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00")}),
        ("ts-text", "ts as text.", {"ts": str(NOW)}),
        ("ts-nil", "ts nil.", {"ts": None}),
        ("ts-timestamp", "ts as the timestamp extension type.", {"ts": Raw(b"\xd6\xff" + struct.pack(">I", NOW))}),
        ("nonce-empty", "An empty nonce.", {"nonce": ""}),
        ("nonce-65", "A nonce of 65 characters.", {"nonce": "n" * 65}),
        ("nonce-nil", "No nonce.", {"nonce": None}),
        ("nonce-int", "The nonce as a number.", {"nonce": 1}),
        ("nonce-bin", "The nonce as bytes.", {"nonce": b"n-1"}),
        ("kind-empty", "An empty kind.", {"kind": ""}),
        ("kind-129", "A kind of 129 characters.", {"kind": "k" * 129}),
        ("kind-nil", "No kind.", {"kind": None}),
        ("kind-bin", "An allowed kind as bytes.", {"kind": b"job.run"}),
        ("kind-bad-utf-8", "A kind with a stray continuation byte.", {"kind": Raw(b"\xa8job.run\x80")}),
        ("kind-overlong-utf-8", "An overlong '.', else an allowed kind.", {"kind": Raw(b"\xa8job\xc0\xaerun")}),
        ("trace-id-surrogate", "A UTF-16 surrogate in UTF-8.", {"trace_id": Raw(b"\xa3\xed\xa0\x80")}),
        ("trace-id-empty", "An empty trace_id is not the same as none.", {"trace_id": ""}),
        ("trace-id-257", "257 characters of two bytes.", {"trace_id": "\u00e9" * 257}),
        ("trace-id-int", "trace_id as a number.", {"trace_id": 7}),
        ("trace-id-claims-2-32", "Text that claims 2**32 − 1 bytes.", {"trace_id": Raw(b"\xdb\xff\xff\xff\xff")}),
        ("reply-to-empty", "An empty reply_to.", {"reply_to": ""}),
        ("reply-to-257", "reply_to of 257 characters.", {"reply_to": "r" * 257}),
        ("reply-to-list", "reply_to as a list.", {"reply_to": ["r"]}),
        ("target-empty", "An empty target.", {"target": ""}),
        ("target-257", "A target of 257 characters.", {"target": "t" * 257}),
        ("target-list-empty", "A list of no targets.", {"target": []}),
        ("target-list-65", "65 targets.", {"target": ["t"] * 65}),
        ("target-item-empty", "An empty target in a list.", {"target": ["t", ""]}),
        ("target-item-257", "A target of 257 characters in a list.", {"target": ["t" * 257]}),
        ("target-item-nil", "nil in a list of targets.", {"target": ["t", None]}),
        ("target-list-in-list", "A list in a list of targets.", {"target": [["t"]]}),
        ("target-deep", "2,000 lists in each other.", {"target": deep}),
        ("target-map", "A map of targets.", {"target": {"t": "t"}}),
        ("target-int", "A target as a number.", {"target": 1}),
        ("headers-65", "65 headers.", {"headers": {f"h{n:02}": "" for n in range(65)}}),
        ("headers-nil", "nil is not the same as no headers.", {"headers": None}),
        ("headers-pairs", "Headers as a list of pairs.", {"headers": [["a", "b"]]}),
        ("headers-name-int", "A number as the name of a header.", {"headers": {1: "b"}}),
        ("headers-name-bin", "Bytes as the name of a header.", {"headers": {b"a": "b"}}),
        ("headers-value-int", "A number as the value of a header.", {"headers": {"a": 1}}),
        ("headers-value-nil", "nil as the value of a header.", {"headers": {"a": None}}),
        ("headers-value-bin", "Bytes as the value of a header.", {"headers": {"a": b"b"}}),
        ("headers-name-bad-utf-8", "A header's name that is no UTF-8.", {"headers": Raw(b"\x81\xa1\xff\xa1b")}),
        ("headers-repeated-65", "65 headers of one name.", {"headers": Raw(b"\xde\x00\x41" + 65 * b"\xa1a\xa0")}),
        (
            "headers-repeated-value-int",
            "A number as the value of a header whose name comes again.",
            {"headers": Raw(b"\x82\xa1a\x01\xa1a\xa1b")},
        ),
        ("headers-claim-2-32", "A map that claims 2**32 − 1 headers.", {"headers": Raw(b"\xdf\xff\xff\xff\xff")}),
    ]
    return [envelope(name, text, category="malformed", **changes) for name, text, changes in cases]


def _message() -> list[Case]:
    """Steps 7 to 9: the message is refused, the connection goes on."""
    cafe = receiver(allowed_kinds=["caf\u00e9"])
    seen = receiver(accepted_before=[["n-1", NOW]])
    earlier = receiver(accepted_before=[["n-1", NOW - 20]])
    full = receiver(nonce_cache_size=2, accepted_before=[["a", NOW - 1], ["b", NOW]])
    shrunk = receiver(
        nonce_cache_size=3,
        accepted_before=[["a", NOW - 5], ["b", NOW - 1], ["c", NOW], ["d", NOW]],
        floor=NOW - 4,
    )
    stopping = receiver(shutting_down=True)
    refused = "kind_not_allowed"
    return [
        envelope("kind-other", "A kind that is not allowed.", kind="job.stop", category=refused),
        envelope("kind-other-case", "An allowed kind in another case.", kind="Job.run", category=refused),
        envelope("kind-space", "An allowed kind and a space.", kind="job.run ", category=refused),
        envelope("kind-nul", "An allowed kind and a NUL.", kind="job.run\0", category=refused),
        envelope("kind-look-alike", "A Cyrillic letter in an allowed kind.", kind="j\u043eb.run", category=refused),
        envelope("kind-decomposed", "Composed is allowed.", state=cafe, kind="cafe\u0301", category=refused),
        envelope("shutting-down", "The receiver takes no more.", state=stopping, category="shutting_down"),
        envelope("expired", "ts is now - ttl - 1.", ts=NOW - 31, category="expired"),
        envelope("expired-zero", "ts 0, long ago.", ts=0, category="expired"),
        envelope("not-yet-valid", "ts is now + ttl + 1.", ts=NOW + 31, category="not_yet_valid"),
        envelope("not-yet-valid-largest", "ts 2**53 - 1.", ts=2**53 - 1, category="not_yet_valid"),
        envelope("nonce-replayed", "A nonce used before.", state=seen, category="replayed", ends=False),
        envelope(
            "nonce-replayed-other-ts",
            "A nonce used before, with another ts.",
            state=earlier,
            category="replayed",
            ends=False,
        ),
        envelope(
            "outside-replay-window",
            "In time, but of a second that the full guard had to forget.",
            state=shrunk,
            ts=NOW - 5,
            category="outside_replay_window",
        ),
        envelope(
            "replay-cache-full",
            "The guard is full with the last two seconds, which it never forgets.",
            state=full,
            category="replay_cache_full",
        ),
    ]


def _order() -> list[Case]:
    """Two faults each; the category is that of the check that comes first."""
    later = receiver(expected_seq=1)
    used_up = receiver(credit={"messages": 0, "bytes": 67_108_864})
    full = receiver(nonce_cache_size=2, accepted_before=[["n-1", NOW - 1], ["b", NOW]])
    seen = receiver(accepted_before=[["n-1", NOW]])
    stopping = receiver(shutting_down=True, accepted_before=[["n-1", NOW]])
    bad = b"\xc0"
    return [
        envelope(
            "order-oversized-forged",
            "Oversized and forged: the length comes before the signature.",
            state=_SMALL,
            payload=bytes(65),
            wire=_FORGED,
            category="payload_too_large",
        ),
        envelope(
            "order-header-len-forged",
            "header_len beyond the frame, and forged.",
            wire={"header_len": 23, **_FORGED},
            category="malformed",
        ),
        envelope(
            "order-forged-kind", "Forged, kind not allowed.", kind="x", wire=_FORGED, category="signature_invalid"
        ),
        envelope("order-forged-seq", "Forged, seq too high.", seq=9, wire=_FORGED, category="signature_invalid"),
        envelope(
            "order-forged-credit", "Forged, no credit.", state=used_up, wire=_FORGED, category="signature_invalid"
        ),
        envelope(
            "order-forged-malformed", "Forged, no header.", header=b"", wire=_FORGED, category="signature_invalid"
        ),
        envelope(
            "order-missing-malformed",
            "Signature all zero, no header.",
            header=b"",
            wire={"sig": bytes(32)},
            category="signature_missing",
        ),
        envelope("order-gap-malformed", "seq too high, malformed.", seq=1, header=bad, category="sequence_gap"),
        envelope("order-low-malformed", "seq too low, malformed.", state=later, seq=0, header=bad, category="replayed"),
        envelope("order-gap-credit", "seq too high, no credit.", state=used_up, seq=1, category="sequence_gap"),
        envelope("order-gap-kind", "seq too high, kind not allowed.", seq=1, kind="x", category="sequence_gap"),
        envelope(
            "order-credit-malformed", "No credit, malformed.", state=used_up, header=bad, category="credit_exceeded"
        ),
        envelope("order-malformed-kind", "kind not allowed, nonce empty.", kind="x", nonce="", category="malformed"),
        envelope("order-malformed-expired", "Expired, target empty.", ts=0, target="", category="malformed"),
        envelope("order-kind-expired", "kind not allowed, expired.", kind="x", ts=0, category="kind_not_allowed"),
        envelope(
            "order-kind-stopping",
            "kind not allowed, shutting down.",
            state=stopping,
            kind="x",
            category="kind_not_allowed",
        ),
        envelope(
            "order-kind-replayed", "kind not allowed, nonce seen.", state=seen, kind="x", category="kind_not_allowed"
        ),
        envelope("order-stopping-expired", "Shutting down, expired.", state=stopping, ts=0, category="shutting_down"),
        envelope("order-stopping-replayed", "Shutting down, nonce seen.", state=stopping, category="shutting_down"),
        envelope("order-expired-replayed", "Expired, nonce seen.", state=seen, ts=NOW - 31, category="expired"),
        envelope(
            "order-future-replayed", "Not yet valid, nonce seen.", state=seen, ts=NOW + 31, category="not_yet_valid"
        ),
        envelope(
            "order-replayed-full",
            "Nonce seen, guard full: the look-up comes before the test for space.",
            state=full,
            category="replayed",
            ends=False,
        ),
    ]
