"""The contract's cases, each against a real ``twistd ipc``, by a peer that shares no code with the package.

Of each: what the sender was told, whether its connection goes on, that nothing was handed over, that the server's log
has the category and no traceback, and that honest clients are served as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests import wire_peer as wire
from tests.child_handlers import ALIVE, RAISED
from tests.leaks import search
from tests.raw_peer import Peer
from tests.twistd_child import TwistdChild, assert_serves, run_to_its_end

KIND = "job.run"
TTL = 30
LARGEST = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def child() -> Iterator[TwistdChild]:
    with TwistdChild(config={"allowed_kinds": [KIND]}) as child:
        yield child


@pytest.fixture
def peer(child: TwistdChild) -> Iterator[Peer]:
    """A key holder that has had one message accepted; around it, an honest client is served before and after."""
    with child.peer() as honest:
        assert_serves(child, honest)
        with child.peer() as peer:
            assert peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"
            handed_over = len(child.records)
            yield peer
        assert_serves(child, honest)
    assert child.records[handed_over:] == []
    assert "Traceback" not in child.log


def assert_rejected(child: TwistdChild, peer: Peer, seq: int, category: str) -> None:
    """A RECEIPT said so, nothing was handed over, and the connection goes on."""
    before = len(child.records)
    assert peer.receipt_for(seq) == category
    child.wait_for(rf"ipc_twisted#warn\].* rejected an envelope from 127\.0\.0\.1:\d+: {category} kind=")
    assert len(child.records) == before
    assert peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"


def assert_ended(child: TwistdChild, peer: Peer, category: str, cause: int = 1) -> None:
    """A CLOSE said so, and the connection has ended with it."""
    close = peer.read_until_close()
    assert (close["category"], close["through"], close["rejected"], close["cause"]) == (category, 0, [], cause)
    with suppress(OSError):  # it waits no more than a second for it
        peer.end_writing()
    assert peer.wait_eof() == b""
    child.wait_for(rf"ipc_twisted#warn\] connection with 127\.0\.0\.1:\d+ ended: {category}")


# --- SEC-IPC-02: a signature that does not hold -----------------------------------------------------------------------


def _flipped(byte: int, bit: int) -> Callable[[bytes], bytes]:
    def flip(frame: bytes) -> bytes:
        changed = bytearray(frame)
        changed[byte] ^= 1 << bit
        return bytes(changed)

    return flip


@pytest.mark.attack(24)
@pytest.mark.contract("SEC-IPC-02")
@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(_flipped(4, 0), id="the first byte of the signature"),
        pytest.param(_flipped(35, 7), id="its last byte"),
        pytest.param(_flipped(36, 1), id="the type"),
        pytest.param(_flipped(44, 0), id="the sequence number"),
        pytest.param(_flipped(50, 0), id="the header"),
        pytest.param(_flipped(-1, 0), id="the payload"),
        pytest.param(lambda frame: frame[:4] + frame[36:68] + frame[36:], id="some other bytes"),
        pytest.param(lambda frame: frame[:4] + frame[4:36][::-1] + frame[36:], id="the signature backwards"),
    ],
)
def test_a_record_that_was_tampered_with_ends_the_connection(
    child: TwistdChild, peer: Peer, tamper: Callable[[bytes], bytes]
) -> None:
    peer.send_raw(tamper(peer.envelope_frame(KIND, b"payload")[1]))
    assert_ended(child, peer, "signature_invalid")


@pytest.mark.attack(24)
@pytest.mark.contract("SEC-IPC-02")
@pytest.mark.parametrize("whose", ["the other direction", "another connection", "the secret itself", "another secret"])
def test_a_record_signed_with_another_key_ends_the_connection(child: TwistdChild, peer: Peer, whose: str) -> None:
    with child.peer() as other:
        assert peer.keys is not None
        assert other.keys is not None
        key = {
            "the other direction": peer.keys.s2c,
            "another connection": other.keys.c2s,
            "the secret itself": child.key,
            "another secret": bytes(range(32)),
        }[whose]
        _, frame = peer.envelope_frame(KIND, b"payload")
        peer.send_raw(wire.frame(key, frame[36:]))
        assert_ended(child, peer, "signature_invalid")


@pytest.mark.attack(24)
@pytest.mark.contract("SEC-IPC-02")
@pytest.mark.parametrize("record_type", [wire.RECEIPT, wire.CLOSE, 0, 4, 255])
def test_it_is_so_for_every_type_of_record(child: TwistdChild, peer: Peer, record_type: int) -> None:
    """Nothing is looked at before the signature holds: not even whether the type exists."""
    peer.send_raw(peer.record_frame(record_type, b"\xc1 no header", sig=b"\1" * 32)[1])
    assert_ended(child, peer, "signature_invalid")


@pytest.mark.attack(4)
@pytest.mark.contract("SEC-IPC-02")
def test_nothing_behind_a_forged_record_is_handed_over(child: TwistdChild, peer: Peer) -> None:
    forged = peer.envelope_frame(KIND, b"forged", sig=b"\1" * 32, seq=1)[1]
    good = [peer.envelope_frame(KIND, b"good")[1] for _ in range(3)]
    peer.send_raw(forged + b"".join(good))
    assert_ended(child, peer, "signature_invalid")


@pytest.mark.attack(24)
@pytest.mark.contract("SEC-IPC-02b")
def test_a_record_without_a_signature_ends_the_connection(child: TwistdChild, peer: Peer) -> None:
    peer.send_envelope(KIND, b"payload", sig=bytes(32))
    assert_ended(child, peer, "signature_missing")


@pytest.mark.attack(24)
@pytest.mark.contract("SEC-IPC-02b")
def test_a_record_too_short_for_one_ends_the_connection(child: TwistdChild, peer: Peer) -> None:
    body = peer.envelope_frame(KIND, b"")[1][36:]
    peer.send_raw(wire.prefixed(body[:42]))
    assert_ended(child, peer, "malformed")


# --- SEC-IPC-03: freshness --------------------------------------------------------------------------------------------


@pytest.mark.attack(26)
@pytest.mark.contract("SEC-IPC-03")
@pytest.mark.parametrize("age", [TTL + 2, 3_600, 10**9])
def test_an_old_message_is_rejected_and_the_connection_goes_on(child: TwistdChild, peer: Peer, age: int) -> None:
    seq = peer.send_envelope(KIND, b"old", ts=int(time.time()) - age)
    assert_rejected(child, peer, seq, "expired")


@pytest.mark.attack(26)
@pytest.mark.contract("SEC-IPC-03")
def test_one_of_the_year_1970_is_too(child: TwistdChild, peer: Peer) -> None:
    assert_rejected(child, peer, peer.send_envelope(KIND, b"old", ts=0), "expired")


@pytest.mark.attack(26)
@pytest.mark.contract("SEC-IPC-03")
@pytest.mark.parametrize("ts", [3_600, 10**9, 2**53 - 1 - 10**10])
def test_a_message_of_the_future_is_rejected_and_the_connection_goes_on(
    child: TwistdChild, peer: Peer, ts: int
) -> None:
    seq = peer.send_envelope(KIND, b"early", ts=int(time.time()) + ts)
    assert_rejected(child, peer, seq, "not_yet_valid")


@pytest.mark.attack(26)
@pytest.mark.contract("SEC-IPC-03")
@pytest.mark.parametrize(
    "ts", [-1, 2**53, 2**64 - 1, True, 1.0, float("nan"), "1763900000", b"1", [1], {}], ids=lambda ts: f"{ts!r}"
)
def test_a_time_that_is_none_ends_the_connection(child: TwistdChild, peer: Peer, ts: Any) -> None:
    fields = [ts, "nonce", KIND, None, None, None, {}]
    peer.send_envelope(KIND, b"", header=wire.pack(fields))
    assert_ended(child, peer, "malformed")


@pytest.mark.contract("SEC-IPC-03")
def test_a_message_within_the_ttl_is_accepted(child: TwistdChild) -> None:
    with child.peer() as peer:
        for age in (0, TTL - 10, 10 - TTL):
            seq = peer.send_envelope(KIND, b"", ts=int(time.time()) - age, target="keep")
            assert peer.receipt_for(seq) == "accepted"


# --- SEC-IPC-04: replay -----------------------------------------------------------------------------------------------


@pytest.mark.attack(25)
@pytest.mark.contract("SEC-IPC-04")
@pytest.mark.parametrize("later", [0, 1, -5])
@pytest.mark.parametrize("kind", [KIND])
def test_a_used_nonce_signed_anew_is_rejected_and_the_connection_goes_on(
    child: TwistdChild, kind: str, later: int
) -> None:
    """Whatever its ``ts`` and payload; on the same connection and on another one."""
    nonce, now = f"once-{later}", int(time.time())
    with child.peer() as peer, child.peer() as other:
        first = peer.send_envelope(kind, b"first", nonce=nonce, ts=now, target="keep")
        assert peer.receipt_for(first) == "accepted"
        for again in (peer, other):
            seq = again.send_envelope(kind, b"again", nonce=nonce, ts=now + later, target="keep")
            assert_rejected(child, again, seq, "replayed")
        assert_serves(child, peer, other)


@pytest.mark.attack(23)
@pytest.mark.contract("SEC-IPC-04")
def test_the_same_bytes_twice_end_the_connection(child: TwistdChild, peer: Peer) -> None:
    _, frame = peer.envelope_frame(KIND, b"", nonce="twice", target="keep", ts=0)
    peer.send_raw(frame)
    assert peer.receipt_for(1) == "expired"
    peer.send_raw(frame)
    close = peer.read_until_close()
    assert (close["category"], close["through"], close["cause"]) == ("replayed", 1, 2)
    child.wait_for(r"connection with 127\.0\.0\.1:\d+ ended: replayed")


@pytest.mark.attack(23)
@pytest.mark.contract("SEC-IPC-04")
def test_the_same_bytes_on_another_connection_end_that(child: TwistdChild, peer: Peer) -> None:
    with child.peer() as recorded:
        _, frame = recorded.envelope_frame(KIND, b"", target="keep", seq=1)
    peer.send_raw(frame)
    assert_ended(child, peer, "signature_invalid")


@pytest.mark.attack(23)
@pytest.mark.contract("SEC-IPC-04")
def test_a_message_that_was_taken_out_of_the_stream_ends_the_connection(child: TwistdChild, peer: Peer) -> None:
    peer.envelope_frame(KIND, b"deleted")
    peer.send_envelope(KIND, b"behind it")
    assert_ended(child, peer, "sequence_gap")


@pytest.mark.attack(23)
@pytest.mark.contract("SEC-IPC-04")
def test_messages_that_were_swapped_end_the_connection(child: TwistdChild, peer: Peer) -> None:
    frames = [peer.envelope_frame(KIND, b"")[1] for _ in range(2)]
    peer.send_raw(b"".join(reversed(frames)))
    assert_ended(child, peer, "sequence_gap")


@pytest.mark.attack(23)
@pytest.mark.contract("SEC-IPC-04")
def test_a_message_that_is_sent_back_to_its_sender_ends_the_connection(child: TwistdChild, peer: Peer) -> None:
    """The server's own first record, word for word."""
    with child.peer() as other:
        other.send_envelope(KIND, target=ALIVE)
        receipt = other.read_content()
        other.received += 1
        assert receipt[32] == wire.RECEIPT
        other.send_raw(wire.prefixed(receipt))
        assert other.read_until_close()["category"] == "signature_invalid"
    peer.send_raw(wire.prefixed(receipt))
    assert_ended(child, peer, "signature_invalid")


# --- SEC-IPC-05: size -------------------------------------------------------------------------------------------------


def _head(length: int, header_len: int = 0, seq: int = 1) -> bytes:
    """The first 47 bytes of a record, unsigned."""
    return length.to_bytes(4, "big") + bytes(32) + b"\1" + seq.to_bytes(8, "big") + header_len.to_bytes(2, "big")


@pytest.mark.attack(31)
@pytest.mark.contract("SEC-IPC-05")
@pytest.mark.parametrize("piece", [47, 1])
def test_a_payload_one_byte_too_large_ends_the_connection_before_any_of_it_is_sent(
    child: TwistdChild, peer: Peer, piece: int
) -> None:
    """The 47 bytes that announce it, at once or in pieces, are all that the server gets: it needs no body to decide."""
    head = _head(43 + LARGEST + 1)
    for at in range(0, len(head), piece):
        peer.send_raw(head[at : at + piece])
    assert_ended(child, peer, "payload_too_large")


@pytest.mark.attack(3)
@pytest.mark.contract("SEC-IPC-05")
@pytest.mark.parametrize("length", [43 + 65_535 + LARGEST + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_no_record_can_have_ends_it_after_four_bytes(child: TwistdChild, peer: Peer, length: int) -> None:
    peer.send_raw(length.to_bytes(4, "big"))
    assert_ended(child, peer, "payload_too_large")


@pytest.mark.attack(3)
@pytest.mark.contract("SEC-IPC-05")
@pytest.mark.parametrize("length", [0, 1, 42])
def test_a_length_below_any_records_ends_it_after_four_bytes(child: TwistdChild, peer: Peer, length: int) -> None:
    peer.send_raw(length.to_bytes(4, "big"))
    assert_ended(child, peer, "malformed")


@pytest.mark.attack(29)
@pytest.mark.contract("SEC-IPC-05")
def test_a_header_longer_than_its_record_ends_the_connection(child: TwistdChild, peer: Peer) -> None:
    peer.send_raw(_head(43 + 100, header_len=101))
    assert_ended(child, peer, "malformed")


@pytest.mark.contract("SEC-IPC-05")
def test_who_goes_on_writing_a_record_that_was_refused_still_reads_why(child: TwistdChild, peer: Peer) -> None:
    _, frame = peer.envelope_frame(KIND, bytes(LARGEST + 1))
    peer.send_raw(frame)
    assert_ended(child, peer, "payload_too_large")


@pytest.mark.attack(31)
@pytest.mark.contract("SEC-IPC-05")
def test_the_largest_payload_is_accepted(child: TwistdChild) -> None:
    with child.peer() as peer:
        assert peer.server.limits[0] == LARGEST
        assert peer.receipt_for(peer.send_envelope(KIND, bytes(LARGEST), target="keep")) == "accepted"


# --- SEC-IPC-06: kind -------------------------------------------------------------------------------------------------


@pytest.mark.attack(30)
@pytest.mark.contract("SEC-IPC-06")
@pytest.mark.parametrize(
    "kind",
    [
        "job.drop",
        "JOB.RUN",
        "job.run ",
        " job.run",
        "job.run\0",
        "job.run\n",
        "job.ru",
        "job.run.x",
        "job․run",
        "jоb.run",
        "*",
        "x" * 128,
    ],
    ids=ascii,
)
def test_a_kind_that_is_not_allowed_is_rejected_and_the_connection_goes_on(
    child: TwistdChild, peer: Peer, kind: str
) -> None:
    assert_rejected(child, peer, peer.send_envelope(kind, b""), "kind_not_allowed")


@pytest.mark.attack(30)
@pytest.mark.contract("SEC-IPC-06")
@pytest.mark.parametrize("kind", ["", "x" * 129, None, 1, b"job.run", ["job.run"]], ids=lambda kind: f"{kind!r:.20}")
def test_a_kind_that_is_none_ends_the_connection(child: TwistdChild, peer: Peer, kind: Any) -> None:
    peer.send_envelope(KIND, b"", header=wire.pack([int(time.time()), "nonce", kind, None, None, None, {}]))
    assert_ended(child, peer, "malformed")


@pytest.mark.contract("SEC-IPC-06")
def test_a_rejected_kind_does_not_use_up_its_nonce(child: TwistdChild) -> None:
    with child.peer() as peer:
        assert peer.receipt_for(peer.send_envelope("job.drop", b"", nonce="kept")) == "kind_not_allowed"
        assert peer.receipt_for(peer.send_envelope(KIND, b"", nonce="kept", target="keep")) == "accepted"


# --- SEC-IPC-07: where it listens -------------------------------------------------------------------------------------


@pytest.mark.attack(34)
@pytest.mark.contract("SEC-IPC-07")
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        pytest.param(["--listen", "tcp:0:interface=0.0.0.0"], {}, id="--listen"),
        pytest.param(["--listen", "tcp:0"], {}, id="--listen without an interface"),
        pytest.param([], {"config": {"bind_host": "0.0.0.0"}}, id="bind_host"),
    ],
)
def test_no_server_starts_anywhere_but_on_127_0_0_1(options: list[str], arguments: dict[str, Any]) -> None:
    code, output = run_to_its_end(*options, **arguments)
    assert code == 1
    assert "bind_forbidden" in output
    assert "Traceback" not in output
    assert "listening" not in output


@pytest.mark.attack(34)
@pytest.mark.contract("SEC-IPC-07b")
def test_no_server_starts_on_a_port_that_does_not_exist() -> None:
    code, output = run_to_its_end(config={"bind_port": 65_536})
    assert code == 1
    assert "runtime.platform.execution_ipc.bind_port: must be an int from 0 to 65535" in output
    assert "config_invalid" in output
    assert "Traceback" not in output


# --- SEC-IPC-08: what is not told -------------------------------------------------------------------------------------


@pytest.mark.attack(37)
@pytest.mark.contract("SEC-IPC-08")
def test_no_secret_and_no_payload_is_in_the_log_or_in_what_a_stranger_gets(child: TwistdChild) -> None:
    """The log of all cases above; every other output of the suite is searched at its end."""
    payload = b"a payload that no log may show"
    with child.peer() as peer:
        assert peer.keys is not None
        for kind in (KIND, "job.drop"):
            peer.receipt_for(peer.send_envelope(kind, payload, target="keep"))
        peer.send_envelope(KIND, payload, sig=b"\1" * 32)
        peer.read_until_close()
        secrets = [child.key, wire.prk(child.key), *peer.keys, payload, RAISED.encode()]
    child.wait_for("signature_invalid")
    assert search([child.log.encode()], secrets) == []


@pytest.mark.contract("SEC-IPC-08")
def test_a_stranger_gets_nothing_and_the_log_says_why(child: TwistdChild) -> None:
    for secret, service in ((bytes(range(32)), "execution_ipc"), (child.key, "other")):
        with Peer.open(child.port) as peer:
            peer.send_m1(secret, service)
            assert peer.wait_eof() == b""
    child.wait_for(r"ipc_twisted#warn\] handshake with 127\.0\.0\.1:\d+ failed: key_unknown")
    assert_serves(child)
