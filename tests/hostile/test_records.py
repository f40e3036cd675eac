"""A key holder that is hostile or broken, against a real server. Attacks 23 to 33 of the catalogue.

Most of it is in ``tests/test_contract_cases.py``; here is what only the vectors, or a server that has answered, can
show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests import wire_peer as wire
from tests.child_handlers import ALIVE
from tests.hostile.victim import KIND, Victim, ended_as, unharmed, until, vectors
from tests.raw_peer import Peer

pytestmark = pytest.mark.usefixtures("honest")

MALFORMED = {
    case["id"]: bytes.fromhex(case["frame"])[36:]
    for case in vectors("records_reject")
    if case["category"] == "malformed" and case["direction"] == "c2s" and len(case["frame"]) > 2 * 47
}


@pytest.mark.attack(29)
def test_every_malformed_body_of_the_vectors_is_malformed_to_a_real_server_too(victim: Victim) -> None:
    """Signed with the right key, at the right place of the stream; what is at fault is only what is within."""
    before = len(victim.records)
    for name, body in MALFORMED.items():
        with victim.peer() as peer:
            assert peer.keys is not None
            peer.send_raw(wire.frame(peer.keys.c2s, body[:1] + bytes(8) + body[9:]))
            assert ended_as(peer) == "malformed", name
            assert peer.through == -1
    assert len(MALFORMED) > 60
    assert len(victim.records) == before


def _seven(last: bytes) -> bytes:
    """A header whose last element is these bytes."""
    return b"\x97" + wire.pack([int(time.time()), "n", KIND, None, None, None])[1:] + last


HUGE = {
    "2^32 - 1 headers": _seven(b"\xdf\xff\xff\xff\xff"),
    "65,535 headers": _seven(b"\xde\xff\xff"),
    "as many headers as fit": _seven(b"\xde\x50\x00" + b"".join(b"\xa3%03x\xa0" % n for n in range(4_096)) * 2),
    "a text of 2^32 - 1 bytes": _seven(b"\x81\xa1a\xdb\xff\xff\xff\xff"),
    "a list of 2^32 - 1 items": b"\xdd\xff\xff\xff\xff",
    "bytes of 2^32 - 1": b"\x97\xc6\xff\xff\xff\xff",
    "an extension of 2^32 - 1 bytes": b"\x97\xc9\xff\xff\xff\xff\1",
    "lists within lists": b"\x97" + b"\x91" * 60_000,
    "maps within maps": _seven(b"\x81\xa1a" * 20_000),
    "nothing but zeros": bytes(65_535),
    "nothing but nil": b"\xc0" * 65_535,
}


@pytest.mark.attack(29)
@pytest.mark.parametrize("header", HUGE.values(), ids=HUGE)
def test_a_header_that_claims_more_than_it_has_or_nests_without_end_is_malformed(victim: Victim, header: bytes) -> None:
    with victim.peer() as peer:
        peer.send_raw(peer.record_frame(wire.ENVELOPE, header[:65_535])[1])
        assert ended_as(peer) == "malformed"


@pytest.mark.attack(29)
def test_no_header_of_a_mebibyte_can_be_said_and_as_much_payload_is_no_header(victim: Victim) -> None:
    """The length of a header has 16 bits; what lies behind that is payload, and the header then ends early."""
    whole = wire.pack([int(time.time()), "n", KIND, None, None, None, {f"{n}": "x" * 1_000 for n in range(1_000)}])
    assert len(whole) > 1_000_000
    with victim.peer() as peer:
        peer.send_raw(peer.record_frame(wire.ENVELOPE, whole[:65_535], whole[65_535:])[1])
        assert ended_as(peer) == "malformed"


def _receipt(*fields: object) -> Callable[[Peer], bytes]:
    return lambda peer: peer.record_frame(wire.RECEIPT, list(fields))[1]


def _close(*fields: object) -> Callable[[Peer], bytes]:
    return lambda peer: peer.record_frame(wire.CLOSE, list(fields))[1]


# The server has sent one RECEIPT (0) and one envelope, the echo (1), and was granted 1,024 messages and 64 MiB.
M, B = 1_024, 67_108_864
LIES: dict[str, Callable[[Peer], bytes]] = {
    "beyond what was sent": _receipt(2, [], M, B),
    "far beyond": _receipt(2**64 - 1, [], M, B),
    "below nothing": _receipt(-2, [], M, B),
    "credit for messages that falls": _receipt(1, [], M - 1, B),
    "credit for bytes that falls": _receipt(1, [], M, B - 1),
    "negative credit": _receipt(1, [], -1, B),
    "a record that was no envelope": _receipt(1, [[0, "expired"]], M, B),
    "a record beyond through": _receipt(0, [[1, "expired"]], M, B),
    "one twice": _receipt(1, [[1, "expired"], [1, "expired"]], M, B),
    "one that was never sent": _receipt(1, [[5, "expired"]], M, B),
    "a category that no receipt tells": _receipt(1, [[1, "bind_forbidden"]], M, B),
    "a category that is none": _receipt(1, [[1, "because"]], M, B),
    "through that falls": lambda peer: _receipt(1, [], M, B)(peer) + _receipt(0, [], M, B)(peer),
    "true and false for numbers": _receipt(True, [], M, B),
    "fractions for numbers": _receipt(1.0, [], M, B),
    "text for numbers": _receipt("1", [], M, B),
    "a payload": lambda peer: peer.record_frame(wire.RECEIPT, [1, [], M, B], b"!")[1],
    "a close beyond what was sent": _close("closed", 9, [], None),
    "a close that rejects no envelope": _close("closed", 1, [[0, "expired"]], None),
    "a close with a category that no close tells": _close("evicted", 1, [], None),
    "a close with no category": _close(None, 1, [], None),
    "a close caused by text": _close("malformed", 1, [], "1"),
    "a close with a payload": lambda peer: peer.record_frame(wire.CLOSE, ["closed", 1, [], None], b"!")[1],
    "a record of no type": lambda peer: peer.record_frame(0, [])[1],
    "a record of another type": lambda peer: peer.record_frame(4, [])[1],
}


@pytest.mark.attack(32)
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_receipt_or_close_that_lies_ends_the_connection_as_malformed(
    victim: Victim, lie: Callable[[Peer], bytes]
) -> None:
    with victim.peer() as peer:
        peer.send_envelope(KIND, b"answer me")
        assert peer.read_envelope()["seq"] == 1
        peer.send_raw(lie(peer))
        assert ended_as(peer) == "malformed"
        assert peer.close_record is not None
        assert peer.close_record["cause"] in (1, 2)


@pytest.mark.attack(32)
def test_messages_and_receipts_in_any_number_from_both_sides_never_lock_a_server_up() -> None:
    """The smallest credit, each message echoed, and the echo's receipt only once the next one has come."""
    with Victim(limits={"max_inflight": 1}) as victim, unharmed(victim):  # noqa: SIM117  # the peer ends first
        with victim.peer(limits=(1_000, 30, 1, 100_000)) as peer:
            for number in range(50):
                seq = peer.send_envelope(KIND, b"%d" % number)
                assert peer.receipt_for(seq) == "accepted"
                assert peer.read_envelope()["payload"] == b"%d" % number
                messages, octets = peer.granted
                peer.send_receipt(credit=(messages + 1, octets + 1_000))
                while peer.credit[0] <= number + 1:
                    peer.read_record()


@pytest.mark.attack(28)
def test_a_full_guard_shrinks_the_window_and_lets_nothing_in_a_second_time() -> None:
    """Twice as much as it remembers, oldest first: the oldest seconds leave, and what was of them stays out."""
    with Victim(config={"auth": {"nonce_cache_size": 200}}) as victim, unharmed(victim):
        now = int(time.time())
        messages = [(f"{age}-{number}", now - age) for age in range(24, 4, -1) for number in range(20)]
        with victim.peer() as peer:

            def say(nonce: str, ts: int) -> str:
                return peer.receipt_for(peer.send_envelope(KIND, nonce=nonce, ts=ts, target=ALIVE))

            assert {say(*message) for message in messages} == {"accepted"}
            assert {say(*message) for message in messages} == {"outside_replay_window", "replayed"}
            assert say("never seen", now - 24) == "outside_replay_window"
            assert say("never seen", now) == "accepted"


@pytest.mark.attack(28)
def test_a_guard_that_is_full_within_two_seconds_says_so_and_takes_messages_again_later() -> None:
    with Victim(config={"auth": {"nonce_cache_size": 100, "ttl_seconds": 1}}) as victim:
        with victim.peer() as peer:
            said = set()
            for number in range(600):
                said.add(peer.receipt_for(peer.send_envelope(KIND, nonce=f"{number}", target=ALIVE)))
                if "replay_cache_full" in said:
                    break
            assert said == {"accepted", "replay_cache_full"}
            until(int(time.time()) + 2)
            assert peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"
        victim.assert_unharmed()


TEXTS: dict[str, Any] = {
    "a line of a log": "x\n2026-01-01T00:00:00+0000 [ipc_twisted#info] listening on 127.0.0.1:1, connection file /x",
    "an escape sequence": "\x1b[2J\x1b]0;title\x07",
    "carriage returns": "\rlistening\r\n",
    "line separators of Unicode": "a\u2028b\u2029c\x85d\x0b\x0c",
    "right to left": "\u202edelpmas\u202c",
    "a format string": "{category} %s {0} {kind!r}",
    "a null": "a\0b",
}


@pytest.mark.attack(33)
def test_no_text_of_a_peer_makes_or_breaks_a_line_of_the_log(victim: Victim) -> None:
    """Two kinds of lines, since only so many of each are written."""
    before = len(victim.log.splitlines())
    with victim.peer() as peer:
        for number, text in enumerate(TEXTS.values()):
            fields: dict[str, Any] = {"trace_id": text, "reply_to": text, "target": text, "headers": {text: text}}
            if number % 2:
                assert peer.receipt_for(peer.send_envelope(text, **fields)) == "kind_not_allowed"
            else:
                assert peer.receipt_for(peer.send_envelope(KIND, ts=0, **fields)) == "expired"
        victim.wait_for("rejected an envelope from", times=len(TEXTS))
    lines = [line for line in victim.log.split("\n")[before:] if line and "#debug]" not in line]
    assert len(lines) == len(TEXTS)
    for line in lines:
        assert "[ipc_twisted#warn] rejected an envelope from 127.0.0.1:" in line
        assert line.isprintable()
