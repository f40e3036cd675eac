"""Envelopes that a receiver must hand over."""

from __future__ import annotations

import struct

from tests.vectors.common import NOW, Case, envelope, receiver
from tests.wire_peer import MAX_HEADER, Raw, pack


def _widest_headers() -> dict[str, str]:
    """Headers that bring the header of :func:`~tests.vectors.common.fields` to exactly 65,535 bytes."""
    rest = len(pack([NOW, "n-1", "job.run", None, None, None, {"pad": "x" * 60_000}])) - 60_000
    return {"pad": "x" * (MAX_HEADER - rest)}


def envelope_accept() -> list[Case]:
    """The cases in the order of the file; the frozen one of section 4.4 comes first."""
    small = receiver(max_payload_bytes=64)
    emoji_kind = "\u00e9\u4e2d\U0001f600a" * 32
    frozen_header = {"a": "b", "content-type": "text/plain"}
    return [
        envelope(
            "envelope-frozen",
            "The envelope of section 4.4.",
            payload=b"hello",
            nonce="000102030405060708090a0b",
            trace_id="trace-1",
            target=["parse", "score"],
            headers=frozen_header,
        ),
        envelope("envelope-plainest", "Nothing optional, no headers, a payload of 0 bytes."),
        envelope("envelope-s2c", "The same from the server, under the other key.", direction="s2c"),
        envelope("payload-at-limit", "A payload of exactly max_payload_bytes.", state=small, payload=b"p" * 64),
        envelope(
            "largest-frame",
            "A header of 65,535 bytes and a payload at the limit: the largest frame there is. Headers have no limit of "
            "their own but this one and their number.",
            state=small,
            payload=bytes(64),
            headers=_widest_headers(),
        ),
        envelope("kind-128", "The longest kind.", state=receiver(allowed_kinds=["k" * 128]), kind="k" * 128),
        envelope(
            "kind-128-non-ascii",
            "128 characters of 1 to 4 bytes each. A character is a code point: neither a byte nor a UTF-16 unit.",
            state=receiver(allowed_kinds=["job.run", emoji_kind]),
            kind=emoji_kind,
        ),
        envelope("nonce-1", "The shortest nonce.", nonce="n"),
        envelope("nonce-64-non-ascii", "The longest nonce, in 4-byte characters.", nonce="\U0001f600" * 64),
        envelope("trace-id-256-non-ascii", "The longest trace_id, 512 bytes.", trace_id="\u00e9" * 256),
        envelope("reply-to-256", "The longest reply_to.", reply_to="r" * 256),
        envelope("trace-id-and-reply-to-1", "The shortest trace_id and reply_to.", trace_id="t", reply_to="r"),
        envelope(
            "control-characters",
            "NUL, newline and an escape sequence are legal in text; logs escape them.",
            trace_id="\x00\n\x1b[31m",
            headers={"\r\n": "\x1b]0;x\x07"},
        ),
        envelope("target-256", "The longest single target.", target="t" * 256),
        envelope("target-list-1", "The shortest list, which is not the same as its one item.", target=["t"]),
        envelope(
            "target-list-64",
            "The longest list; an item of 256 characters, and the same item twice.",
            target=["\u00e9" * 256, "twice", "twice", *(f"t{n}" for n in range(61))],
        ),
        envelope("headers-64", "As many headers as there may be.", headers={f"h{n:02}": str(n) for n in range(64)}),
        envelope("headers-empty-text", "An empty name and an empty value.", headers={"": ""}),
        envelope("ts-oldest", "ts is now - ttl: still in time.", ts=NOW - 30),
        envelope("ts-newest", "ts is now + ttl: already in time.", ts=NOW + 30),
        envelope("ts-zero", "The smallest ts.", state=receiver(now=30), ts=0),
        envelope("ts-largest", "The largest ts, 2**53 - 1.", state=receiver(now=2**53 - 1), ts=2**53 - 1),
        envelope("seq-beyond-32-bits", "seq has 64 bits.", state=receiver(expected_seq=2**32)),
        envelope(
            "credit-last-message",
            "The last message that the credit covers.",
            state=receiver(credit={"messages": 8, "bytes": 67_108_864}, used={"messages": 7, "bytes": 700}),
        ),
        envelope(
            "credit-last-byte",
            "The credit is used up to the last byte by this frame of 69 bytes, its length field included.",
            state=receiver(credit={"messages": 8, "bytes": 1_069}, used={"messages": 7, "bytes": 1_000}),
        ),
        envelope(
            "nonce-compared-exactly",
            "A nonce that differs from a remembered one in case only.",
            state=receiver(accepted_before=[["N-1", NOW]]),
        ),
        envelope(
            "guard-forgets-oldest-second",
            "The guard is full; it forgets its oldest second, and floor rises to one past that.",
            state=receiver(nonce_cache_size=3, accepted_before=[["a", NOW - 5], ["b", NOW - 1], ["c", NOW]]),
            reads={"floor_after": NOW - 4},
        ),
        *_other_spellings(),
    ]


def _other_spellings() -> list[Case]:
    """Legal MessagePack that no encoder of this protocol writes. It is signed, so it is taken."""
    return [
        envelope(
            "spelling-ts-uint64",
            "ts in the widest unsigned form.",
            ts=Raw(struct.pack(">BQ", 0xCF, NOW)),
            reads={"ts": NOW},
        ),
        envelope(
            "spelling-ts-int64",
            "ts in the widest signed form.",
            ts=Raw(struct.pack(">Bq", 0xD3, NOW)),
            reads={"ts": NOW},
        ),
        envelope(
            "spelling-str-8-16-32",
            "Text with longer lengths than it needs.",
            nonce=Raw(b"\xd9\x03n-1"),
            kind=Raw(b"\xda\x00\x07job.run"),
            trace_id=Raw(b"\xdb\x00\x00\x00\x01t"),
            reads={"nonce": "n-1", "kind": "job.run", "trace_id": "t"},
        ),
        envelope(
            "spelling-array-16-32",
            "The header as array 32, the target as array 16.",
            header=b"\xdd\x00\x00\x00\x07"
            + b"".join(map(pack, [NOW, "n-1", "job.run", None, None, Raw(b"\xdc\x00\x01\xa1t"), {}])),
            reads={"target": ["t"]},
        ),
        envelope(
            "spelling-map-32-unsorted",
            "The headers as map 32, their names not in order.",
            headers=Raw(b"\xdf\x00\x00\x00\x02\xa1b\xa12\xa1a\xa11"),
            reads={"headers": {"a": "1", "b": "2"}},
        ),
        envelope(
            "headers-repeated-name",
            "The same name three times: the last one counts.",
            headers=Raw(b"\x83\xa1a\xa5first\xa1a\xa6second\xa1a\xa4last"),
            reads={"headers": {"a": "last"}},
        ),
        envelope(
            "headers-repeated-64",
            "64 headers of one name: as many as there may be.",
            headers=Raw(b"\xde\x00\x40" + 63 * b"\xa1a\xa0" + b"\xa1a\xa4last"),
            reads={"headers": {"a": "last"}},
        ),
    ]
