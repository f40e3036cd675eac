"""The second implementation against the design's frozen vector, the frozen cases, and itself over TCP."""

from __future__ import annotations

import ast
import json
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import wire_peer as wire
from tests.raw_peer import Listener, Peer, PeerClosed, ServerPeer
from tests.tiny_msgpack import MAX_DEPTH, Raw, pack, unpack
from tests.vectors import make_vectors, reference
from tests.wire_peer import WireError

SECRET = bytes(range(32))
VECTORS = Path(__file__).parent / "vectors"

# --- the frozen vector of section 4.4, copied from the design by hand -------------------------------------------------

FROZEN = {
    "prk": "4d0d02778f844db02399411df7716737d1adc765bd41ec8e7dbb0c54f9bd8400",
    "key_id": "0e693fc16244bd21",
    "th": "04f92a534d894f62aa8b9e060f65084e16cef8f8018ba2a7448d1c263bc490d0",
    "k_c2s": "66669e29d4f58b971b7dc5dc4ce01f753675c844fb815b1c33c4c0cea64546da",
    "k_s2c": "a439b33dcc13da0c8597e760ae761aaea33e8a89b8cb5e35b774507b05a7c506",
    "m1": "49504354010100000e693fc16244bd21010000000000001e0000040004000000" + "c1" * 32,
    "m2": "4950435401020000a1a2a3a4a5a6a7a8010000000000001e0000040004000000"
    + "51" * 32
    + "81f6a9fc9ce576567e446ba974d70df6c37b2510da89142a9e0644574a2ba2b3",
    "m3": "4950435401030000aa5c1fc3a7daf0c07fe8675c7ca19146e56ce341f136073b6cd42ab0558d5d62",
}
FROZEN_FRAMES = {
    "envelope-frozen": "0000008a8b98f9d71351f6657c25a487e588c165743729d305af10770f6bf1744214a8730100000000000000"
    "00005a97ce6922fa60b8303030313032303330343035303630373038303930613062a76a6f622e72756ea774726163652d31c092a5706172"
    "7365a573636f726582a161a162ac636f6e74656e742d74797065aa746578742f706c61696e68656c6c6f",
    "receipt-frozen": "00000053f35736a47725d2148982ce42d435c70a4cde9a8e439965119e90de384de8e4940200000000000000000028"
    "9403929201a7657870697265649202b06b696e645f6e6f745f616c6c6f776564cd0404ce0400027c",
    "close-frozen": "00000041f1c242e778d19c5e82528210aa4a58748695651012532c065949ab791bcddc1c0300000000000000010016"
    "94b17061796c6f61645f746f6f5f6c617267650390"
    "04",
}


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_bytes())
    return loaded


HANDSHAKE_ACCEPT = _load("handshake_accept")["cases"]
HANDSHAKE_REJECT = _load("handshake_reject")["cases"]
RECORDS_ACCEPT = _load("records_accept")["cases"]
RECORDS_REJECT = _load("records_reject")["cases"]
KEYS = _load("records_accept")["keys"]


def _by_id(case: dict[str, Any]) -> str:
    return str(case["id"])


def test_the_handshake_of_the_design_is_reproduced_to_the_byte() -> None:
    limits = (16_777_216, 30, 1_024, 67_108_864)
    prk = wire.prk(SECRET)
    m1 = wire.m1(wire.key_id(prk, "execution_ipc"), limits, b"\xc1" * 32)
    head = wire.m2_head(bytes.fromhex("a1a2a3a4a5a6a7a8"), limits, b"\x51" * 32)
    ends = wire.endpoint(("127.0.0.1", 40001), ("127.0.0.1", 50000))
    th = wire.transcript("execution_ipc", ends, m1, head)
    keys = wire.connection_keys(prk, th)
    tag_s, tag_c = wire.tags(keys, th)
    found = {"prk": prk, "key_id": wire.key_id(prk, "execution_ipc"), "th": th, "k_c2s": keys.c2s, "k_s2c": keys.s2c}
    found |= {"m1": m1, "m2": wire.m2(head, tag_s), "m3": wire.m3(tag_c)}
    assert {name: value.hex() for name, value in found.items()} == FROZEN


def test_the_records_of_the_design_are_reproduced_to_the_byte() -> None:
    c2s, s2c = bytes.fromhex(FROZEN["k_c2s"]), bytes.fromhex(FROZEN["k_s2c"])
    headers = {"content-type": "text/plain", "a": "b"}
    fields = [1_763_900_000, "000102030405060708090a0b", "job.run", "trace-1", None, ["parse", "score"], headers]
    rejected = [(1, "expired"), (2, "kind_not_allowed")]
    found = {
        "envelope-frozen": wire.frame(c2s, wire.envelope_body(0, fields, b"hello")),
        "receipt-frozen": wire.frame(s2c, wire.receipt_body(0, 3, rejected, 1_028, 67_109_500)),
        "close-frozen": wire.frame(s2c, wire.close_body(1, "payload_too_large", 3, [], 4)),
    }
    assert {name: frame.hex() for name, frame in found.items()} == FROZEN_FRAMES


def test_the_frozen_cases_hold_the_vector_of_the_design() -> None:
    case = next(case for case in HANDSHAKE_ACCEPT if case["id"] == "handshake-frozen")
    assert {name: case[name] for name in FROZEN} == FROZEN
    frames = {case["id"]: case["frame"] for case in RECORDS_ACCEPT}
    assert {name: frames[name] for name in FROZEN_FRAMES} == FROZEN_FRAMES


# --- the frozen cases -------------------------------------------------------------------------------------------------


def test_the_checked_in_cases_are_what_the_generator_writes() -> None:
    assert make_vectors.differing() == {}


def test_check_fails_and_writes_nothing_when_a_file_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_vectors, "FOLDER", tmp_path)
    assert make_vectors.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert make_vectors.main([]) == 0
    assert make_vectors.main(["--check"]) == 0
    (tmp_path / "records_reject.json").write_text("{}")
    assert make_vectors.main(["--check"]) == 1
    assert "records_reject.json differs" in capsys.readouterr().err
    assert make_vectors.main(["--verify"]) == 2


@pytest.mark.parametrize("cases", [HANDSHAKE_ACCEPT, HANDSHAKE_REJECT, RECORDS_ACCEPT, RECORDS_REJECT])
def test_every_case_has_an_id_of_its_own(cases: list[dict[str, Any]]) -> None:
    assert len({case["id"] for case in cases}) == len(cases)


def test_there_are_more_cases_to_refuse_than_to_accept() -> None:
    accepted, refused = len(HANDSHAKE_ACCEPT) + len(RECORDS_ACCEPT), len(HANDSHAKE_REJECT) + len(RECORDS_REJECT)
    assert accepted >= 35
    assert refused >= 2 * accepted


def _judged(case: dict[str, Any]) -> object:
    """What the reference receiver reads out of a record, else the category of its refusal."""
    try:
        return reference.judge_record(case, KEYS)
    except WireError as error:
        return error.category


def test_every_record_to_accept_passes_every_check_and_reads_as_stated() -> None:
    found = {case["id"]: _judged(case) for case in RECORDS_ACCEPT}
    assert found == {case["id"]: case["expect"] for case in RECORDS_ACCEPT}


def test_every_record_to_refuse_is_refused_with_its_category() -> None:
    found = {case["id"]: _judged(case) for case in RECORDS_REJECT}
    assert found == {case["id"]: case["category"] for case in RECORDS_REJECT}


def test_every_handshake_to_refuse_is_refused_with_its_category() -> None:
    found = {case["id"]: reference.judge_handshake(case) for case in HANDSHAKE_REJECT}
    assert found == {case["id"]: case["category"] for case in HANDSHAKE_REJECT}


@pytest.mark.parametrize("case", HANDSHAKE_ACCEPT, ids=_by_id)
def test_a_handshake_to_accept_ends_well_on_both_sides(case: dict[str, Any]) -> None:
    m1, m2, m3 = (wire.prefixed(bytes.fromhex(case[name])) for name in ("m1", "m2", "m3"))
    client = case | {
        "role": "client",
        "secrets": [case["client_secret"]],
        "own": {"limits": case["limits_c"], "nonce": case["nonce_c"]},
        "steps": [{"send": m1.hex()}, {"receive": m2.hex()}, {"send": m3.hex()}],
    }
    behind = bytes.fromhex(case["first_record"] or "")
    server = case | {
        "role": "server",
        "secrets": case["server_secrets"],
        "own": {"limits": case["limits_s"], "nonce": case["nonce_s"], "instance": case["instance"]},
        "steps": [{"receive": m1.hex()}, {"send": m2.hex()}, {"receive": (m3 + behind).hex()}],
    }
    reference.complete_handshake(client)
    reference.complete_handshake(server)
    if behind:
        (content,), rest = wire.split_frames(behind)
        assert (wire.open_content(bytes.fromhex(case["k_c2s"]), content).payload, rest) == (b"hello", b"")


def test_the_second_implementation_imports_nothing_of_the_package() -> None:
    here = Path(__file__).parent
    own = ["tiny_msgpack", "wire_peer", "raw_channel", "raw_peer"]
    files = [here / f"{name}.py" for name in own] + sorted(VECTORS.glob("*.py"))
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                root = name.partition(".")[0]
                assert root == "tests" or root in sys.stdlib_module_names, f"{file.name} imports {name}"


# --- MessagePack ------------------------------------------------------------------------------------------------------


def _some_value(source: random.Random, depth: int = 0) -> Any:
    """Any value that MessagePack holds; containers up to three deep."""
    match source.randrange(8 if depth < 3 else 6):
        case 0:
            return source.choice([None, True, False])
        case 1:
            return source.getrandbits(source.randrange(1, 65))
        case 2:
            return -source.getrandbits(source.randrange(1, 64))
        case 3:
            return source.uniform(-1e300, 1e300)
        case 4:
            return "".join(source.choices("ab\x00\u00e9\u4e2d\U0001f600", k=source.randrange(100)))
        case 5:
            return source.randbytes(source.randrange(300))
        case 6:
            return [_some_value(source, depth + 1) for _ in range(source.randrange(20))]
        case _:
            return {
                f"{source.getrandbits(12):x}\u00e9": _some_value(source, depth + 1) for _ in range(source.randrange(20))
            }


def test_msgpack_is_written_and_read_as_by_msgspec() -> None:
    for seed in range(100):
        value = _some_value(random.Random(seed))
        raw = pack(value)
        assert raw == msgspec.msgpack.encode(value, order="deterministic"), seed
        assert unpack(raw) == msgspec.msgpack.decode(raw) == value, seed


@pytest.mark.parametrize("edge", [0, 31, 32, 33, 127, 128, 255, 256, 32768, 65535, 65536, 2**31, 2**32 - 1, 2**32])
def test_msgpack_numbers_take_the_shortest_form(edge: int) -> None:
    for value in (edge, -edge):
        assert pack(value) == msgspec.msgpack.encode(value)
        assert unpack(pack(value)) == value


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_msgpack_lengths_take_the_shortest_form(size: int) -> None:
    for value in ("x" * size, b"x" * size, [None] * size):
        assert pack(value) == msgspec.msgpack.encode(value)
        assert unpack(pack(value)) == value


@pytest.mark.parametrize("size", [0, 15, 16, 65536])
def test_msgpack_maps_take_the_shortest_form(size: int) -> None:
    items = dict.fromkeys(range(size))
    assert pack(items) == msgspec.msgpack.encode(items)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\xd4\x01\x00", b"\xc0\xc0", b"\xa1\xff", b"\xcd\x00", b"\xdf\xff\xff\xff\xff", b"\x81\x90\xc0"],
    ids=bytes.hex,
)
def test_msgpack_that_does_not_belong_here_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any of them, UnicodeDecodeError too
        unpack(raw)


def test_msgpack_nested_too_deep_is_a_value_error_and_no_recursion_error() -> None:
    assert unpack(b"\x91" * MAX_DEPTH + b"\xc0")
    with pytest.raises(ValueError, match="deep"):
        unpack(b"\x91" * 100_000)


def test_msgpack_reads_floats_of_both_sizes_and_refuses_what_it_cannot_write() -> None:
    assert unpack(b"\xca\x3f\x80\x00\x00") == 1.0
    assert math.isnan(unpack(pack(math.nan)))
    assert pack([Raw(b"\xcc\x01")]) == b"\x91\xcc\x01"
    with pytest.raises(TypeError):
        pack(object())
    for value in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="integer"):
            pack(value)


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_frames_are_split_at_any_place() -> None:
    frames = [bytes.fromhex(frame) for frame in FROZEN_FRAMES.values()]
    stream = b"".join(frames)
    for cut in range(len(stream) + 1):
        contents, rest = wire.split_frames(stream[:cut])
        more, end = wire.split_frames(rest + stream[cut:])
        assert [wire.prefixed(content) for content in contents + more] == frames
        assert end == b""


def test_no_byte_of_a_record_can_change_unnoticed() -> None:
    frozen = bytes.fromhex(FROZEN_FRAMES["receipt-frozen"])[4:]
    for at in range(len(frozen)):
        content = bytearray(frozen)
        content[at] ^= 0x40
        with pytest.raises(WireError) as caught:
            wire.open_content(bytes.fromhex(FROZEN["k_s2c"]), bytes(content))
        # header_len is the one field whose value is looked at before the signature.
        assert caught.value.category == ("malformed" if at in (41, 42) else "signature_invalid")


# --- sockets ----------------------------------------------------------------------------------------------------------


@contextmanager
def _pair(**client: Any) -> Iterator[tuple[Peer, ServerPeer]]:
    """A client and a server after their handshake, in one thread: each step's bytes fit the socket's buffers."""
    with Listener() as listener, Peer.open(listener.port) as peer, listener.accept_raw() as server:
        peer.send_m1(SECRET, **client)
        server.read_m1()
        server.send_m2(SECRET)
        peer.read_m2()
        peer.send_raw(peer.m3_frame)
        server.read_m3()
        yield peer, server


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_two_peers_exchange_envelopes_receipts_and_closes() -> None:
    with _pair() as (peer, server):
        first = peer.send_envelope("job.run", b"one", trace_id="t", target=["a", "b"], headers={"h": "v"})
        second = peer.send_envelope("job.run", b"two", ts=1)
        assert (first, second) == (0, 1)
        what, fields = server.read_record()
        assert (what, fields["seq"], fields["payload"], fields["target"]) == ("envelope", 0, b"one", ["a", "b"])
        assert len(fields["sig"]) == 64
        assert server.read_envelope()["ts"] == 1
        server.send_envelope("job.done", b"reply", reply_to="t")
        server.send_receipt(1, [(1, "expired")], credit=(1_026, 67_108_864))
        assert peer.receipt_for(second) == "expired"
        assert peer.receipt_for(first) == "accepted"
        assert peer.credit == (1_026, 67_108_864)
        assert peer.aside[0]["payload"] == b"reply"
        assert peer.read_envelope()["reply_to"] == "t"
        peer.send_receipt()
        peer.send_close()
        assert server.receipt_for(0) == "accepted"
        assert server.read_until_close()["category"] == "closed"
        server.send_close("closed", 1)
        assert peer.read_until_close() == {"seq": 2, "category": "closed", "through": 1, "rejected": [], "cause": None}
        server.end_writing()
        assert peer.wait_eof() == b""


def test_connect_and_accept_do_the_whole_handshake() -> None:
    limits = (64, 5, 2, 65_646)
    with Listener() as listener:
        accepted: list[ServerPeer] = []
        thread = _in_thread(lambda: accepted.append(listener.accept(SECRET, "other", instance=b"instance")))
        with Peer.connect(listener.port, SECRET, "other", limits) as peer:
            thread.join()
            with accepted[0] as server:
                assert server.peer_limits == limits
                assert peer.server.instance == b"instance"
                assert server.keys == peer.keys


def test_a_key_of_another_service_is_unknown() -> None:
    with Listener() as listener, Peer.open(listener.port) as peer, listener.accept_raw() as server:
        peer.send_m1(SECRET, "other")
        with pytest.raises(WireError, match="key_unknown"):
            server.handshake(SECRET)


def test_a_server_without_the_secret_is_refused() -> None:
    with Listener() as listener, Peer.open(listener.port) as peer, listener.accept_raw() as server:
        peer.send_m1(SECRET)
        server.read_m1()
        server.send_m2(bytes(32))
        with pytest.raises(WireError, match="authentication_failed"):
            peer.read_m2()


def test_a_client_without_the_secret_is_refused() -> None:
    with Listener() as listener, Peer.open(listener.port) as peer, listener.accept_raw() as server:
        peer.send_m1(SECRET)
        server.read_m1()
        server.send_m2(SECRET)
        peer.read_m2()
        peer.send_raw(wire.prefixed(wire.m3(peer.server.tag)))
        with pytest.raises(WireError, match="authentication_failed"):
            server.read_m3()


def test_a_relay_between_two_honest_ends_is_noticed() -> None:
    with Listener() as trap, Listener() as real, Peer.open(trap.port) as peer, trap.accept_raw() as towards_client:
        peer.send_m1(SECRET)
        with Peer.open(real.port) as towards_server, real.accept_raw() as server:
            towards_server.send_raw(wire.prefixed(towards_client.read_content()))
            server.read_m1()
            server.send_m2(SECRET)
            towards_client.send_raw(wire.prefixed(towards_server.read_content()))
            with pytest.raises(WireError, match="authentication_failed"):
                peer.read_m2()


def test_the_first_record_may_come_with_m3() -> None:
    with Listener() as listener, Peer.open(listener.port) as peer, listener.accept_raw() as server:
        peer.send_m1(SECRET)
        server.read_m1()
        server.send_m2(SECRET)
        peer.read_m2()
        peer.send_raw(peer.m3_frame + peer.envelope_frame("job.run", b"early")[1])
        server.read_m3()
        assert server.read_envelope()["payload"] == b"early"


def test_a_server_that_says_nothing_is_a_closed_peer() -> None:
    with Listener() as listener, Peer.open(listener.port) as peer:
        listener.accept_raw().close()
        with pytest.raises(PeerClosed):
            peer.read_m2()


@pytest.mark.parametrize(
    ("forgery", "category"),
    [
        ({"sig": bytes(32)}, "signature_missing"),
        ({"sig": b"\x01" * 32}, "signature_invalid"),
        ({"seq": 5}, "sequence_gap"),
        ({"header": b"\xc0"}, "malformed"),
        ({"headers": Raw(b"\xde\x00\x00")}, "malformed"),
    ],
    ids=["zero", "wrong", "seq", "header", "not-canonical"],
)
def test_a_forged_envelope_goes_out_as_asked_and_is_noticed(forgery: dict[str, Any], category: str) -> None:
    with _pair() as (peer, server):
        peer.send_envelope("job.run", b"x", **forgery)
        with pytest.raises(WireError) as caught:
            server.read_record()
        assert caught.value.category == category


@pytest.mark.parametrize(
    ("through", "rejected", "credit"),
    [(1, [], None), (-2, [], None), (0, [(0, "expired"), (0, "expired")], None), (0, [], (1_023, 67_108_864))],
    ids=str,
)
def test_a_receipt_that_lies_is_noticed(through: int, rejected: list[Any], credit: tuple[int, int] | None) -> None:
    with _pair() as (peer, server):
        peer.send_envelope("job.run")
        server.send_receipt(through, rejected, credit=credit)
        with pytest.raises(WireError, match="malformed"):
            peer.receipt_for(0)


def test_an_envelope_beyond_our_credit_is_noticed() -> None:
    with _pair(limits=(64, 30, 1, 65_646)) as (peer, server):
        for _ in range(2):
            server.send_envelope("job.done")
        peer.read_envelope()
        with pytest.raises(WireError, match="credit_exceeded"):
            peer.read_envelope()


def test_a_close_leaves_what_is_beyond_through_open() -> None:
    with _pair() as (peer, server):
        peer.send_envelope("job.run")
        server.send_close("shutting_down", -1)
        with pytest.raises(PeerClosed) as caught:
            peer.receipt_for(0)
        assert caught.value.close is not None
        assert caught.value.close["category"] == "shutting_down"


def test_an_end_within_a_frame_says_what_was_left() -> None:
    with _pair() as (peer, server):
        _, frame = server.envelope_frame("job.done", b"payload")
        server.send_raw(frame[:50])
        server.close()
        with pytest.raises(PeerClosed) as caught:
            peer.read_record()
        assert caught.value.left_over == frame[4:50]


def test_a_reset_counts_as_the_end_of_the_stream() -> None:
    with _pair() as (peer, server):
        server.abort()
        assert peer.wait_eof() == b""
        assert peer.reset


def test_nothing_waits_beyond_its_deadline() -> None:
    with _pair() as (peer, _):
        with pytest.raises(TimeoutError):
            peer.read_record(0)
        with pytest.raises(TimeoutError):
            peer.wait_eof(0.001)
