"""RECEIPTs and CLOSEs from the server, as the client judges them, and records of no known type."""

from __future__ import annotations

import struct
from typing import Any

from tests.vectors.common import KEYS, Case, close, envelope, receipt, receiver, record_case, sender, signed
from tests.wire_peer import RECEIPT, Raw, pack

_FIRST = {"messages": 1_024, "bytes": 67_108_864}
_RAISED = {"messages": 1_028, "bytes": 67_109_500}
#: Envelopes and RECEIPTs sent in turns; the last receipt decided the records up to 2.
_MIXED = sender(sent="EREERE", through=2, credit=_FIRST)
_SENT = sender(sent="EEEE")


def receipt_accept() -> list[Case]:
    """RECEIPTs and CLOSEs that a receiver must take; the first of each is that of section 4.4."""
    thousand = [[seq, "expired"] for seq in range(1_000)]
    return [
        receipt(
            "receipt-frozen",
            "The RECEIPT of section 4.4.",
            3,
            [[1, "expired"], [2, "kind_not_allowed"]],
            1_028,
            67_109_500,
            outgoing=sender(sent="EEEEE"),
        ),
        receipt("receipt-nothing-new", "The first RECEIPT may say nothing: through −1, the credit as granted."),
        receipt("receipt-credit-only", "through as before, more credit.", 2, [], 1_030, 67_200_000, outgoing=_MIXED),
        receipt("receipt-all-accepted", "Nothing rejected up to the last record sent.", 3, [], outgoing=_SENT),
        receipt(
            "receipt-all-rejected",
            "Every envelope up to through was rejected.",
            3,
            [[0, "expired"], [1, "not_yet_valid"], [2, "replayed"], [3, "outside_replay_window"]],
            outgoing=_SENT,
        ),
        receipt("receipt-through-a-receipt", "through may name a record that is no envelope.", 4, [], outgoing=_MIXED),
        receipt(
            "receipt-over-receipts",
            "Rejections on both sides of a record that is no envelope.",
            5,
            [[3, "replay_cache_full"], [5, "shutting_down"]],
            outgoing=_MIXED,
        ),
        receipt(
            "receipt-1000-rejections",
            "As many rejections as one RECEIPT may hold.",
            999,
            thousand,
            outgoing=sender(sent="E" * 1_000),
        ),
        receipt(
            "receipt-credit-beyond-32-bits", "Credit is a total and outgrows 32 bits.", -1, [], 2**32 + 1, 2**40 + 1
        ),
        receipt(
            "receipt-needs-no-credit",
            "No credit is left for envelopes; a RECEIPT needs none.",
            state=receiver(credit={"messages": 1, "bytes": 69}, used={"messages": 1, "bytes": 69}),
        ),
        receipt(
            "receipt-while-shutting-down",
            "A RECEIPT is read while shutting down.",
            0,
            [],
            state=receiver(shutting_down=True, expected_seq=5),
            outgoing=_SENT,
        ),
        receipt(
            "receipt-other-spelling",
            "Every number in the widest form there is; not canonical, but signed.",
            header=b"\xdc\x00\x04" + struct.pack(">BqBIBQBQ", 0xD3, -1, 0xDD, 0, 0xCF, 1_024, 0xCF, 67_108_864),
        ),
        close(
            "close-frozen",
            "The CLOSE of section 4.4, behind its RECEIPT.",
            "payload_too_large",
            3,
            [],
            4,
            state=receiver(expected_seq=1),
            outgoing=sender(sent="EEEEE", through=3, credit=_RAISED),
        ),
        close("close-orderly", "An orderly end before anything was sent."),
        close("close-first-record", "The first record was at fault.", "signature_invalid", -1, [], 0, outgoing=_SENT),
        close(
            "close-with-rejections",
            "The last RECEIPT, too: rejections that no other told.",
            "shutting_down",
            3,
            [[1, "shutting_down"], [3, "shutting_down"]],
            outgoing=_SENT,
        ),
        close("close-behind-a-receipt", "through as in the RECEIPT before.", "closed", 2, [], outgoing=_MIXED),
    ]


def receipt_reject() -> list[Case]:
    """All of them end the connection as ``malformed`` but for the last few."""
    return [*_lies(), *_malformed(), *_unknown_types(), *_order()]


def _lies() -> list[Case]:
    thousand_and_one = [[seq, "expired"] for seq in range(1_001)]
    cases: list[tuple[str, str, dict[str, Any], object, object]] = [
        ("through-falls", "through below the one before.", _MIXED, 1, []),
        ("through-falls-to-none", "through −1 after 2.", _MIXED, -1, []),
        ("through-below-none", "through −2.", _SENT, -2, []),
        ("through-unsent", "through one beyond the last record sent.", _SENT, 4, []),
        ("through-nothing-sent", "through 0, and nothing was sent.", sender(), 0, []),
        ("through-2-64", "through 2**64 − 1.", _SENT, 2**64 - 1, []),
        ("rejected-falling", "Rejections out of order.", _SENT, 3, [[2, "expired"], [1, "expired"]]),
        ("rejected-twice", "The same seq twice.", _SENT, 3, [[1, "expired"], [1, "expired"]]),
        ("rejected-at-previous", "Rejects the record that the previous one ended at.", _MIXED, 5, [[2, "expired"]]),
        ("rejected-below-previous", "Rejects what the previous one accepted.", _MIXED, 5, [[0, "expired"]]),
        ("rejected-above-through", "Rejects a record beyond through.", _SENT, 2, [[3, "expired"]]),
        ("rejected-unsent", "Rejects a record that was never sent.", _SENT, 3, [[4, "expired"]]),
        ("rejected-receipt", "Rejects a RECEIPT.", _MIXED, 5, [[4, "expired"]]),
        ("rejected-negative", "Rejects −1.", _SENT, 3, [[-1, "expired"]]),
    ]
    found = [
        receipt(f"receipt-{name}", text, through, rejected, outgoing=outgoing, category="malformed")
        for name, text, outgoing, through, rejected in cases
    ]
    found += [
        close(
            f"close-{name}", f"In a CLOSE: {text}", "closed", through, rejected, outgoing=outgoing, category="malformed"
        )
        for name, text, outgoing, through, rejected in cases
    ]
    raised = sender(sent="EEEE", through=3, credit=_RAISED)
    return [
        *found,
        receipt(
            "receipt-1001-rejections",
            "One rejection more than a RECEIPT may hold.",
            1_000,
            thousand_and_one,
            outgoing=sender(sent="E" * 1_001),
            category="malformed",
        ),
        receipt(
            "receipt-messages-fall",
            "The message credit falls by one.",
            3,
            [],
            1_027,
            67_109_500,
            outgoing=raised,
            category="malformed",
        ),
        receipt(
            "receipt-bytes-fall",
            "The byte credit falls by one, while the other rises.",
            3,
            [],
            1_029,
            67_109_499,
            outgoing=raised,
            category="malformed",
        ),
        receipt(
            "receipt-below-first-credit",
            "Credit below that of the handshake.",
            -1,
            [],
            1_023,
            67_108_864,
            category="malformed",
        ),
    ]


def _malformed() -> list[Case]:
    receipts: list[tuple[str, str, object]] = [
        ("three-elements", "The bytes are missing.", [-1, [], 1_024]),
        ("five-elements", "An element too many.", [-1, [], 1_024, 67_108_864, None]),
        ("through-nil", "through nil.", [None, [], 1_024, 67_108_864]),
        ("through-true", "through true.", [True, [], 1_024, 67_108_864]),
        ("through-float", "through as a float.", [0.0, [], 1_024, 67_108_864]),
        ("rejected-nil", "nil in place of no rejections.", [0, None, 1_024, 67_108_864]),
        ("rejected-map", "Rejections as a map.", [0, {"0": "expired"}, 1_024, 67_108_864]),
        ("rejected-one-element", "A rejection without its category.", [0, [[0]], 1_024, 67_108_864]),
        ("rejected-three-elements", "A rejection of three elements.", [0, [[0, "expired", 1]], 1_024, 67_108_864]),
        ("rejected-category-int", "A category as a number.", [0, [[0, 1]], 1_024, 67_108_864]),
        (
            "rejected-category-local",
            "A category that only its own side finds.",
            [0, [[0, "delivery_unknown"]], 1_024, 67_108_864],
        ),
        ("rejected-category-record", "A category that ends a connection.", [0, [[0, "malformed"]], 1_024, 67_108_864]),
        ("rejected-seq-true", "A rejected seq true.", [1, [[True, "expired"]], 1_024, 67_108_864]),
        ("messages-nil", "Message credit nil.", [-1, [], None, 67_108_864]),
        ("messages-float", "Message credit as a float.", [-1, [], 2_048.0, 67_108_864]),
        ("bytes-text", "Byte credit as text.", [-1, [], 1_024, "67108864"]),
        ("header-map", "A map in place of the array.", {"through": -1}),
        ("header-claims-2-32", "Rejections that claim 2**32 − 1 items.", Raw(b"\x94\xff\xdd\xff\xff\xff\xff")),
    ]
    closes: list[tuple[str, str, object]] = [
        ("three-elements", "The cause is missing.", ["closed", -1, []]),
        ("five-elements", "An element too many.", ["closed", -1, [], None, None]),
        ("category-nil", "No category.", [None, -1, [], None]),
        ("category-bin", "The category as bytes.", [b"closed", -1, [], None]),
        ("category-lost", "A category that no CLOSE tells, since there is none.", ["connection_lost", -1, [], None]),
        ("category-envelope", "A category of one message.", ["expired", -1, [], None]),
        ("category-handshake", "A category that is never told.", ["evicted", -1, [], None]),
        (
            "rejected-category-local",
            "A rejection that only its own side finds.",
            ["closed", 0, [[0, "not_connected"]], None],
        ),
        ("cause-text", "The cause as text.", ["closed", -1, [], "0"]),
        ("cause-true", "The cause true.", ["closed", -1, [], True]),
        ("cause-negative", "The cause −1; none is nil.", ["closed", -1, [], -1]),
    ]
    good = pack([-1, [], 1_024, 67_108_864])
    bad = "malformed"
    return [
        *(receipt(f"receipt-{n}", t, header=pack(h), outgoing=_SENT, category=bad) for n, t, h in receipts),
        *(close(f"close-{n}", t, header=pack(h), outgoing=_SENT, category=bad) for n, t, h in closes),
        receipt("receipt-trailing-byte", "A byte behind the array.", header=good + b"\xc0", category=bad),
        receipt("receipt-empty-header", "No header at all.", header=b"", category=bad),
        receipt("receipt-payload", "A RECEIPT with a payload.", payload=b"x", category=bad),
        close("close-payload", "A CLOSE with a payload.", payload=b"x", category=bad),
    ]


def _unknown_types() -> list[Case]:
    return [
        record_case(f"type-{number}", "A type that is not known.", signed(number, b"\x90"), category="malformed")
        for number in (0, 4, 255)
    ]


def _order() -> list[Case]:
    """Order of the checks where no envelope is involved."""
    used_up = receiver(credit={"messages": 0, "bytes": 0})
    lie = pack([4, [], 1_024, 67_108_864])
    bad: dict[str, Any] = {"outgoing": _SENT, "header": lie}
    forged = {"sig": b"\x5a" * 32}
    return [
        receipt("order-receipt-forged", "A lie, forged.", **bad, wire=forged, category="signature_invalid"),
        receipt("order-receipt-reflected", "Our own key.", wire={"key": KEYS.c2s}, category="signature_invalid"),
        receipt("order-receipt-gap", "A lie, seq too high.", **bad, seq=1, category="sequence_gap"),
        receipt(
            "order-receipt-low",
            "A lie, seq too low.",
            **bad,
            state=receiver(expected_seq=1),
            seq=0,
            category="replayed",
        ),
        record_case(
            "order-type-gap", "An unknown type, seq too high.", signed(9, b"\x90", seq=1), category="sequence_gap"
        ),
        record_case(
            "order-type-no-credit",
            "An unknown type and no credit: only envelopes need any.",
            signed(9, b"\x90"),
            state=used_up,
            category="malformed",
        ),
        receipt(
            "order-receipt-oversized",
            "A RECEIPT with a payload beyond max_payload_bytes: the length comes first.",
            payload=bytes(65),
            state=receiver(max_payload_bytes=64),
            category="payload_too_large",
        ),
        envelope(
            "order-envelope-as-receipt",
            "The header of a RECEIPT in an ENVELOPE.",
            header=pack([-1, [], 1_024, 67_108_864]),
            category="malformed",
        ),
        record_case(
            "order-receipt-as-envelope",
            "An envelope's header in a RECEIPT.",
            signed(RECEIPT, pack([1_763_900_000, "n", "job.run", None, None, None, {}])),
            category="malformed",
        ),
    ]
