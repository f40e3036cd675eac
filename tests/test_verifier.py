"""The verifier chain: its order, what each check ends in, and that nothing goes past the first that fails."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from ipc_twisted.core import codec, verifier
from ipc_twisted.core.codec import NO_SEQ, Close, Receipt
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.flow import ReceiveCredit
from ipc_twisted.core.framing import Framer
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.signing import MacKey
from ipc_twisted.core.verifier import Fault, Rejection, Verifier
from ipc_twisted.errors import Category
from tests import wire_peer as wire
from tests.core_pair import INSTANCE, KINDS, NOW

KEY = bytes(range(32))
TTL = 30
MAX_PAYLOAD = 64
FORGED = b"\x5a" * 32
ZERO = bytes(32)


Told = Callable[[Any], None]


class Chain:
    """Framer and chain of one direction; what it took, by category."""

    def __init__(
        self, *, capacity: int = 100, messages: int = 100, octets: int = 10**6, expected: int = 0, **flags: bool
    ) -> None:
        key = MacKey(KEY)
        self.guard = MemoryReplayGuard(capacity, TTL, INSTANCE)
        self.credit = ReceiveCredit(messages, octets)
        self.framer = Framer(MAX_PAYLOAD, key.new)
        self.verifier = Verifier(key, KINDS, TTL, self.guard, self.credit)
        self.verifier.expected = expected
        for name, value in flags.items():
            setattr(self.verifier, name, value)

    def verify(self, data: bytes, told: Told, *, now: int = NOW) -> None:
        """One segment.

        :param told: is told everything, in order; envelopes with the size of their frame.
        """

        def hand_over(envelope: SecureEnvelope, size: int) -> bool:
            told((envelope, size))
            return False  # its handler has not ended

        self.verifier.verify(self.framer.feed(data), now, hand_over, told, told)

    def take(self, *data: bytes, now: int = NOW) -> list[str]:
        """What one segment comes to; ends with ``!category`` for a fault, as the connection would."""
        outcomes: list[str] = []
        try:
            self.verify(b"".join(data), lambda what: outcomes.append(named(what)), now=now)
        except Fault as fault:
            return [*outcomes, f"!{fault.category}"]
        return outcomes if self.framer.fault is None else [*outcomes, f"!{self.framer.fault}"]


def named(told: tuple[SecureEnvelope, int] | Rejection | Receipt | Close) -> str:
    if isinstance(told, Rejection):
        return str(told.category)
    return type(told).__name__ if isinstance(told, Receipt | Close) else "accepted"


def fields(**changes: Any) -> list[Any]:
    plain = {"ts": NOW, "nonce": "n", "kind": "job.run", "trace_id": None, "reply_to": None, "target": None}
    return list(({**plain, "headers": {}} | changes).values())


def frame(
    payload: bytes = b"",
    *,
    seq: int = 0,
    type_: int = wire.ENVELOPE,
    header: bytes | None = None,
    sig: bytes | None = None,
    header_len: int | None = None,
    **changes: Any,
) -> bytes:
    raw = wire.pack(fields(**changes)) if header is None else header
    return wire.frame(KEY, wire.record_body(type_, seq, raw, payload, header_len=header_len), sig)


BIG = bytes(MAX_PAYLOAD + 1)
BAD = b"\xc0"  # a header that does not decode
SEEN = frame(seq=0)

PAIRS: list[tuple[str, dict[str, Any], list[bytes], bytes, str]] = [
    # both checks that fail, the chain, what came before, the record, what wins
    ("1/4 ended, forged", {"ended": True}, [], frame(sig=FORGED), ""),
    ("1/5 ended, gap", {"ended": True}, [], frame(seq=9), ""),
    ("1/10 ended, good", {"ended": True}, [], frame(), ""),
    ("2/3 length, payload", {}, [], struct.pack(">I", 43 + 65_535 + MAX_PAYLOAD + 1), "!payload_too_large"),
    ("2/4 length, forged", {}, [], struct.pack(">I", 42) + FORGED + bytes(11), "!malformed"),
    ("3/4 payload, forged", {}, [], frame(BIG, sig=FORGED), "!payload_too_large"),
    ("3/4 payload, missing", {}, [], frame(BIG, sig=ZERO), "!payload_too_large"),
    ("3/4 header beyond the frame, forged", {}, [], frame(header_len=500, sig=FORGED), "!malformed"),
    ("3/5 payload, gap", {}, [], frame(BIG, seq=9), "!payload_too_large"),
    ("4/5 forged, gap", {}, [], frame(seq=9, sig=FORGED), "!signature_invalid"),
    ("4/5 missing, gap", {}, [], frame(seq=9, sig=ZERO), "!signature_missing"),
    ("4/5 forged, repeated", {"expected": 1}, [], frame(seq=0, sig=FORGED), "!signature_invalid"),
    ("4/5 forged, credit", {"messages": 0}, [], frame(sig=FORGED), "!signature_invalid"),
    ("4/6 forged, malformed", {}, [], frame(header=BAD, sig=FORGED), "!signature_invalid"),
    ("4/6 forged, unknown type", {}, [], frame(type_=9, sig=FORGED), "!signature_invalid"),
    ("5/5 gap, credit", {"messages": 0}, [], frame(seq=1), "!sequence_gap"),
    ("5/5 repeated, credit", {"messages": 0, "expected": 1}, [], frame(seq=0), "!replayed"),
    ("5/6 gap, malformed", {}, [], frame(seq=1, header=BAD), "!sequence_gap"),
    ("5/6 repeated, malformed", {"expected": 1}, [], frame(seq=0, header=BAD), "!replayed"),
    ("5/6 gap, unknown type", {}, [], frame(seq=1, type_=9), "!sequence_gap"),
    ("5/6 message credit, malformed", {"messages": 0}, [], frame(header=BAD), "!credit_exceeded"),
    ("5/6 byte credit, malformed", {"octets": len(frame(header=BAD)) - 1}, [], frame(header=BAD), "!credit_exceeded"),
    ("5/7 credit, kind", {"messages": 0}, [], frame(kind="x"), "!credit_exceeded"),
    ("6/7 malformed, kind", {}, [], frame(nonce="", kind="x"), "!malformed"),
    ("6/7 malformed, shutting down", {"shutting_down": True}, [], frame(nonce=""), "!malformed"),
    ("6/8 malformed, expired", {}, [], frame(nonce="", ts=0), "!malformed"),
    ("7/7 kind, shutting down", {"shutting_down": True}, [], frame(kind="x"), "kind_not_allowed"),
    ("7/8 kind, expired", {}, [], frame(kind="x", ts=0), "kind_not_allowed"),
    ("7/8 kind, not yet valid", {}, [], frame(kind="x", ts=2**53 - 1), "kind_not_allowed"),
    ("7/8 shutting down, expired", {"shutting_down": True}, [], frame(ts=0), "shutting_down"),
    ("7/9 kind, nonce seen", {}, [SEEN], frame(seq=1, kind="x"), "kind_not_allowed"),
    ("8/9 expired, nonce seen", {}, [SEEN], frame(seq=1, ts=NOW - TTL - 1), "expired"),
    ("8/9 not yet valid, nonce seen", {}, [SEEN], frame(seq=1, ts=NOW + TTL + 1), "not_yet_valid"),
    ("8/9 expired, guard full", {"capacity": 1}, [SEEN], frame(seq=1, nonce="m", ts=0), "expired"),
    ("9/9 nonce seen, guard full", {"capacity": 1}, [SEEN], frame(seq=1), "replayed"),
    ("9/10 guard full", {"capacity": 1}, [SEEN], frame(seq=1, nonce="m"), "replay_cache_full"),
]


@pytest.mark.parametrize(("chain", "before", "comes", "wins"), [case[1:] for case in PAIRS], ids=[c[0] for c in PAIRS])
def test_of_two_faults_the_earlier_check_wins(
    chain: dict[str, Any], before: list[bytes], comes: bytes, wins: str
) -> None:
    one = Chain(**chain)
    assert all(outcome == "accepted" for outcome in one.take(*before))
    assert "".join(one.take(comes)) == wins


OUTCOMES: list[tuple[str, dict[str, Any], bytes, str]] = [
    ("in order", {}, frame(), "accepted"),
    ("largest payload", {}, frame(bytes(MAX_PAYLOAD)), "accepted"),
    ("last message of the credit", {"messages": 1}, frame(), "accepted"),
    ("last byte of the credit", {"octets": len(frame())}, frame(), "accepted"),
    ("one byte short", {"octets": len(frame()) - 1}, frame(), "!credit_exceeded"),
    ("oldest", {}, frame(ts=NOW - TTL), "accepted"),
    ("too old", {}, frame(ts=NOW - TTL - 1), "expired"),
    ("newest", {}, frame(ts=NOW + TTL), "accepted"),
    ("too new", {}, frame(ts=NOW + TTL + 1), "not_yet_valid"),
    ("kind in another case", {}, frame(kind="Job.run"), "kind_not_allowed"),
    ("kind with a space", {}, frame(kind="job.run "), "kind_not_allowed"),
    ("kind with a look-alike letter", {}, frame(kind="j\u043eb.run"), "kind_not_allowed"),
    ("kind empty", {}, frame(kind=""), "!malformed"),
    ("seq one too high", {}, frame(seq=1), "!sequence_gap"),
    ("seq one too low", {"expected": 7}, frame(seq=6), "!replayed"),
    ("unknown type", {}, frame(type_=0), "!malformed"),
    ("header nested beyond any stack", {}, frame(header=b"\x91" * 60_000 + b"\xc0"), "!malformed"),
    ("header not UTF-8", {}, frame(header=wire.pack(fields(trace_id=wire.Raw(b"\xa1\xff")))), "!malformed"),
    ("a receipt", {"messages": 0}, frame(type_=2, header=wire.pack([-1, [], 1, 1])), "Receipt"),
    ("a close", {"messages": 0}, frame(type_=3, header=wire.pack(["closed", -1, [], None])), "Close"),
    ("a receipt while shutting down", {"shutting_down": True}, frame(type_=2, header=b"\x94\xff\x90\1\1"), "Receipt"),
    ("a receipt while dropping", {"dropping": True}, frame(type_=2, header=b"\x94\xff\x90\1\1"), "Receipt"),
    ("an envelope while dropping", {"dropping": True}, frame(), ""),
    ("a forged envelope while dropping", {"dropping": True}, frame(sig=FORGED), "!signature_invalid"),
    ("beyond the credit while dropping", {"dropping": True, "messages": 0}, frame(), "!credit_exceeded"),
]


@pytest.mark.parametrize(("chain", "comes", "outcome"), [case[1:] for case in OUTCOMES], ids=[c[0] for c in OUTCOMES])
def test_each_outcome(chain: dict[str, Any], comes: bytes, outcome: str) -> None:
    assert "".join(Chain(**chain).take(comes)) == outcome


@pytest.mark.parametrize("problem", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), RecursionError()], ids=repr)
@pytest.mark.parametrize(
    ("module", "decoder", "type_"),
    [
        (verifier, "decode_header", wire.ENVELOPE),
        (codec, "_decode_receipt", wire.RECEIPT),
        (codec, "_decode_close", wire.CLOSE),
    ],
)
def test_a_decoder_that_fails_in_any_way_at_all_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, decoder: str, type_: int, problem: Exception
) -> None:
    """What msgspec raises beside errors of its own depends on its version: bad UTF-8 once was a UnicodeDecodeError."""

    def fail(_header: memoryview) -> None:
        raise problem

    monkeypatch.setattr(module, decoder, fail)
    assert Chain().take(frame(type_=type_)) == ["!malformed"]


@pytest.mark.contract("SEC-IPC-01")
def test_a_valid_message_is_handed_over_as_it_was_sent() -> None:
    comes = frame(b"hello", trace_id="t", reply_to="r", target=["a", "b"], headers={"x": "y"})
    one = Chain()
    told: list[Any] = []
    one.verify(comes, told.append)
    wanted = SecureEnvelope(NOW, "n", "job.run", "t", "r", ["a", "b"], {"x": "y"}, b"hello", comes[4:36].hex())
    assert told == [(wanted, len(comes))]
    assert (one.verifier.through, one.verifier.expected, one.credit.used_bytes) == (0, 1, len(comes))


@pytest.mark.contract("SEC-IPC-01b")
def test_valid_messages_are_handed_over_in_order_one_at_a_time() -> None:
    """``through`` and the guard never run ahead of the hand-over."""
    one = Chain()
    stream = b"".join(frame(bytes([seq]), seq=seq, nonce=f"n{seq}") for seq in range(5))
    seen = []
    one.verify(stream, lambda told: seen.append((told[0].payload_bytes, one.verifier.through, len(one.guard))))
    assert seen == [(bytes([at]), at, at + 1) for at in range(5)]


@pytest.mark.contract("SEC-IPC-02")
def test_no_bit_of_a_record_can_be_changed() -> None:
    """Whichever bit it is, no message comes out, and the guard and ``through`` are as before."""
    good = frame(b"payload", trace_id="t", headers={"a": "b"})
    for bit in range(32, 8 * len(good)):
        at, one = bit // 8, Chain()
        bad = good[:at] + bytes([good[at] ^ 1 << bit % 8]) + good[at + 1 :]
        outcome = one.take(bad)
        assert outcome in (["!signature_invalid"], ["!malformed"], ["!payload_too_large"]), bit
        assert (len(one.guard), one.verifier.through, one.verifier.expected) == (0, NO_SEQ, 0)


@pytest.mark.contract("SEC-IPC-02")
@pytest.mark.parametrize("bit", range(32))
def test_a_changed_length_never_lets_a_message_through(bit: int) -> None:
    good = frame(b"payload") + frame(seq=1)
    length = int.from_bytes(good[:4], "big") ^ 1 << bit
    assert "accepted" not in Chain().take(length.to_bytes(4, "big") + good[4:])


@pytest.mark.contract("SEC-IPC-02b")
@pytest.mark.parametrize("at", [None, 0, 17, 31])
def test_only_an_all_zero_signature_is_a_missing_one(at: int | None) -> None:
    sig = bytes(1 if index == at else 0 for index in range(32))
    wanted = "!signature_missing" if at is None else "!signature_invalid"
    assert Chain().take(frame(sig=sig)) == [wanted]


@pytest.mark.contract("SEC-IPC-03")
def test_an_old_message_is_rejected_and_the_next_one_is_not() -> None:
    one = Chain()
    assert one.take(frame(ts=NOW - TTL - 1), frame(seq=1)) == ["expired", "accepted"]
    assert one.verifier.rejected == [(0, Category.EXPIRED)]
    assert one.credit.in_flight == 1


@pytest.mark.contract("SEC-IPC-04")
@pytest.mark.parametrize("ts", [NOW, NOW - 5, NOW + 5])
def test_a_used_nonce_is_rejected_under_a_fresh_signature_and_any_ts(ts: int) -> None:
    assert Chain().take(frame(), frame(seq=1, ts=ts), frame(seq=2, nonce="m")) == [
        "accepted",
        "replayed",
        "accepted",
    ]


@pytest.mark.contract("SEC-IPC-04")
def test_the_same_bytes_twice_end_the_connection() -> None:
    assert Chain().take(frame(), frame(), frame(seq=1, nonce="m")) == ["accepted", "!replayed"]


@pytest.mark.contract("SEC-IPC-05")
def test_an_oversized_payload_ends_the_connection_after_47_bytes() -> None:
    """Before one byte of it is there, so before anything is buffered."""
    assert Chain().take(frame(BIG)[:47]) == ["!payload_too_large"]


@pytest.mark.contract("SEC-IPC-06")
def test_a_kind_that_is_not_allowed_is_rejected_and_the_next_message_is_not() -> None:
    one = Chain()
    assert one.take(frame(kind="job.drop"), frame(seq=1)) == ["kind_not_allowed", "accepted"]
    assert one.verifier.rejected == [(0, Category.KIND_NOT_ALLOWED)]


ENDS = {
    "malformed": frame(seq=1, header=BAD),
    "forged": frame(seq=1, sig=FORGED),
    "unsigned": frame(seq=1, sig=ZERO),
    "repeated": frame(seq=0),
    "gap": frame(seq=9),
    "too long": struct.pack(">I", 0xFFFFFFFF),
    "too short": struct.pack(">I", 1),
    "oversized": frame(BIG, seq=1),
    "unknown type": frame(seq=1, type_=77),
}


@pytest.mark.parametrize("bad", ENDS.values(), ids=ENDS)
def test_nothing_behind_the_first_record_at_fault_is_handed_over(bad: bytes) -> None:
    """Two bad ones and then good ones in one segment; the good ones would fit, had the bad ones not been there."""
    one = Chain()
    good = [frame(seq=seq, nonce=f"g{seq}") for seq in range(4)]
    first, second = one.take(good[0], bad, bad, *good[1:])
    assert first == "accepted"
    assert second.startswith("!")
    assert (len(one.guard), one.verifier.through) == (1, 0)


@pytest.mark.parametrize("comes", [frame(kind="x"), frame(ts=0), frame(ts=NOW + TTL + 1)])
def test_what_was_rejected_before_the_guard_is_not_remembered(comes: bytes) -> None:
    """Who mistypes a kind may send the same nonce again under the right one."""
    one = Chain()
    assert "accepted" not in one.take(comes)
    assert len(one.guard) == 0
    assert one.take(frame(seq=1)) == ["accepted"]


@pytest.mark.parametrize("chain", [{"messages": 0}, {"expected": 1}, {"dropping": True}, {"shutting_down": True}])
def test_what_went_no_further_than_step_7_is_not_remembered(chain: dict[str, Any]) -> None:
    one = Chain(**chain)
    assert "accepted" not in one.take(frame())
    assert len(one.guard) == 0


def test_each_rejection_gives_its_credit_back_at_once() -> None:
    """Else rejected messages would use up the window of their sender for ever."""
    one = Chain(messages=2)
    comes = frame(kind="x"), frame(seq=1, ts=0)
    assert one.take(*comes) == ["kind_not_allowed", "expired"]
    assert one.credit.in_flight == 0
    assert one.credit.tell() == (4, 10**6 + sum(map(len, comes)))


def test_a_record_that_is_no_envelope_moves_expected_on_only_once_it_was_taken() -> None:
    """While the caller judges a receipt it is that record which may be at fault, and a CLOSE must name it."""
    one = Chain()
    receipt = frame(type_=2, header=wire.pack([-1, [], 1, 1]))
    seen: list[int] = []
    one.verify(receipt + frame(seq=1), lambda _: seen.append(one.verifier.expected))
    assert seen == [0, 2]
    assert one.verifier.through == 1


@pytest.mark.parametrize("stop", ["ended", "dropping"])
def test_a_hand_over_that_ends_the_connection_leaves_the_rest_untouched(stop: str) -> None:
    """Neither handed over nor in the guard nor in ``through``: a sender may send it again elsewhere."""
    one = Chain()
    stream = b"".join(frame(seq=seq, nonce=f"n{seq}") for seq in range(4))
    one.verify(stream, lambda _: setattr(one.verifier, stop, True))
    assert (one.verifier.through, len(one.guard), one.verifier.rejected) == (0, 1, [])


def test_the_text_of_a_rejected_message_is_handed_on_for_the_log() -> None:
    one = Chain()
    told: list[Any] = []
    one.verify(frame(kind="a\nb", trace_id="\x1b[2J"), told.append)
    assert told == [Rejection(Category.KIND_NOT_ALLOWED, "a\nb", "\x1b[2J")]
