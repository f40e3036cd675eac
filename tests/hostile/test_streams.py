"""However a stream is cut, and whatever is wrong in it: the same end. Attacks 1 to 4 and 21 of the catalogue."""

from __future__ import annotations

import secrets

import pytest
import pytest_twisted

from ipc_twisted import Category, HandshakeError, Keyring, connect
from tests import wire_peer as wire
from tests.child_handlers import ALIVE
from tests.hostile.victim import KIND, LARGEST, Victim, ended_as
from tests.memory_link import SECRET
from tests.raw_peer import Listener, Peer
from tests.serving import in_thread, within

pytestmark = pytest.mark.usefixtures("honest")


def records(peer: Peer) -> bytes:
    """Three of them, one that is rejected among them."""
    kinds = (KIND, "job.drop", KIND)
    return b"".join(peer.envelope_frame(kind, b"payload", target=ALIVE)[1] for kind in kinds)


def outcomes(peer: Peer) -> list[str]:
    return [peer.receipt_for(seq) for seq in range(3)]


AS_ALWAYS = ["accepted", "kind_not_allowed", "accepted"]


@pytest.mark.attack(1)
def test_every_two_way_split_of_the_first_message_is_the_same_as_one_write(victim: Victim) -> None:
    for cut in range(1, 68):
        with Peer.open(victim.port) as peer:
            message = peer.make_m1(victim.key)
            peer.send_raw(message[:cut])
            peer.send_raw(message[cut:])
            peer.read_m2()
            peer.send_raw(peer.m3_frame + records(peer))
            assert outcomes(peer) == AS_ALWAYS, cut


@pytest.mark.attack(1)
def test_every_two_way_split_of_the_proof_and_three_records_is_the_same_as_one_write(victim: Victim) -> None:
    cut, length = 0, 1
    while cut < length:
        with Peer.open(victim.port) as peer:
            peer.send_m1(victim.key)
            peer.read_m2()
            said = peer.m3_frame + records(peer)
            length = len(said)
            peer.send_raw(said[:cut])
            peer.send_raw(said[cut:])
            assert outcomes(peer) == AS_ALWAYS, cut
        cut += 1
    assert length > 250


@pytest.mark.attack(2)
@pytest.mark.parametrize("piece", [100, 1_460, 4_096, 65_536, 1 << 20])
def test_a_record_of_a_mebibyte_comes_back_as_it_was_whatever_pieces_it_came_in(victim: Victim, piece: int) -> None:
    payload = secrets.token_bytes(1 << 20)
    with victim.peer() as peer:
        seq, frame = peer.envelope_frame(KIND, payload, target="echo it")
        for at in range(0, len(frame), piece):
            peer.send_raw(frame[at : at + piece])
        assert peer.receipt_for(seq) == "accepted"
        assert peer.read_envelope()["payload"] == payload


@pytest.mark.attack(3)
@pytest.mark.parametrize("length", [0, 1, 42, 43 + 65_535 + LARGEST + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_no_record_has_ends_the_connection_at_any_place_of_the_stream(
    victim: Victim, length: int
) -> None:
    """Behind a record in the same segment, and in four segments."""
    category = "malformed" if length < 43 else "payload_too_large"
    said = length.to_bytes(4, "big")
    for pieces in (1, 4):
        with victim.peer() as peer:
            before = peer.envelope_frame(KIND, target=ALIVE)[1] if pieces == 1 else b""
            for at in range(pieces):
                peer.send_raw(before + (said if pieces == 1 else said[at : at + 1]))
            assert ended_as(peer) == category
            assert peer.through == (0 if pieces == 1 else -1)


BAD_ENDS = {"signature_invalid", "signature_missing", "sequence_gap", "malformed", "payload_too_large"}
BAD = {
    "a forged record": lambda peer: peer.envelope_frame(KIND, sig=b"\1" * 32, seq=0)[1],
    "no signature": lambda peer: peer.envelope_frame(KIND, sig=bytes(32), seq=0)[1],
    "a gap": lambda peer: peer.envelope_frame(KIND, seq=7)[1],
    "a header that is none": lambda peer: peer.envelope_frame(KIND, header=b"\xc1", seq=0)[1],
    "a receipt that lies": lambda peer: peer.record_frame(wire.RECEIPT, [9, [], 1, 1], seq=0)[1],
    "an unknown type": lambda peer: peer.record_frame(9, [], seq=0)[1],
    "a length of nothing": lambda peer: bytes(4),
    "a length of everything": lambda peer: b"\xff" * 4,
}


@pytest.mark.attack(4)
@pytest.mark.parametrize("second", BAD)
@pytest.mark.parametrize("first", BAD)
def test_nothing_behind_two_bad_frames_in_one_chunk_is_handed_over(victim: Victim, first: str, second: str) -> None:
    before = len(victim.records)
    with victim.peer() as peer:
        bad = BAD[first](peer) + BAD[second](peer)
        good = b"".join(peer.envelope_frame(KIND, b"behind it", target="keep")[1] for _ in range(3))
        peer.send_raw(bad + good)
        assert ended_as(peer) in {
            "signature_invalid",
            "signature_missing",
            "sequence_gap",
            "malformed",
            "payload_too_large",
        }
        assert peer.through == -1
    assert len(victim.records) == before


@pytest.mark.attack(21)
def test_every_truncation_of_the_proof_is_answered_with_nothing(victim: Victim) -> None:
    for length in range(44):
        with Peer.open(victim.port) as peer:
            peer.send_m1(victim.key)
            peer.read_m2()
            peer.send_raw(peer.m3_frame[:length])
            peer.end_writing()
            assert peer.wait_eof() == b"", length


@pytest.mark.attack(21)
def test_no_change_of_the_first_message_can_be_proved_afterwards(victim: Victim) -> None:
    """Every bit of its limits and nonce: the server answers what it was told, and the true proof does not fit."""
    for bit in range(8 * 20, 8 * 68):
        with Peer.open(victim.port) as peer:
            changed = bytearray(peer.make_m1(victim.key))
            changed[bit // 8] ^= 0x80 >> bit % 8
            peer.send_raw(bytes(changed))
            with pytest.raises(wire.WireError, match="authentication_failed"):
                peer.read_m2()
            peer.end_writing()
            assert peer.wait_eof() == b""


@pytest.mark.attack(21)
@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_every_single_bit_flip_of_the_answer_is_refused_by_a_real_client_that_says_nothing_more() -> None:
    from twisted.internet import reactor

    def play(bit: int) -> bytes:
        with squatter.accept_raw() as client:
            client.read_m1()
            changed = bytearray(client.make_m2(SECRET))
            changed[bit // 8] ^= 0x80 >> bit % 8
            client.send_raw(bytes(changed))
            return client.wait_eof()

    with Listener() as squatter:
        for bit in range(8 * 100):
            playing = in_thread(play, bit)
            with pytest.raises(HandshakeError) as raised:
                await within(connect(reactor, squatter.port, Keyring([SECRET])))
            assert raised.value.category in {
                Category.HANDSHAKE_MALFORMED,
                Category.VERSION_UNSUPPORTED,
                Category.AUTHENTICATION_FAILED,
            }
            assert await playing == b"", bit
