"""Whoever has not proved itself gets nothing but M2, is gone as soon as it is recognised, and disturbs nobody.

Attacks 5, 8, 10, 12, 13 and 14 to 22 of the catalogue, on real sockets.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted

from ipc_twisted import Category, HandshakeError, Keyring, connect
from tests import wire_peer as wire
from tests.memory_link import SECRET
from tests.raw_channel import DEFAULT_LIMITS, PeerClosed
from tests.raw_peer import Listener, Peer, ServerPeer
from tests.serving import Server, in_thread, serving, within
from tests.twistd_child import TwistdChild, assert_serves

M2_BYTES = 100
SERVICE = "execution_ipc"


@pytest.fixture(scope="module")
def child() -> Iterator[TwistdChild]:
    with TwistdChild() as child:
        yield child
        assert "Traceback" not in child.log
        assert child.records == []


@pytest.fixture
def alive(child: TwistdChild) -> Iterator[None]:
    """An honest connection made before and one made after still send and get receipts."""
    with child.peer() as honest:
        yield
        assert_serves(child, honest)


def m1(secret: bytes, nonce: bytes = bytes(range(32)), service: str = SERVICE) -> bytes:
    return wire.prefixed(wire.m1(wire.key_id(wire.prk(secret), service), DEFAULT_LIMITS, nonce))


def answer(port: int, *said: bytes, end: bool = False) -> bytes:
    """All that a server says to someone who says this."""
    with Peer.open(port) as peer:
        for part in said:
            with suppress(ConnectionError):  # it has ended the connection meanwhile
                peer.send_raw(part)
        if end:
            with suppress(OSError):
                peer.end_writing()
        return peer.wait_eof()


# --- 14: other protocols ----------------------------------------------------------------------------------------------

_HTTP = b"%s /%s HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI")
FOREIGN = {
    **{f"HTTP {method.decode()}": _HTTP % (method, b"") for method in _METHODS},
    "a browser's WebSocket": _UPGRADE,
    "HTTP with a handshake in its path": _HTTP % (b"GET", m1(SECRET)),
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(158),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "ZMTP": bytes.fromhex("ff00000000000000017f0300") + b"NULL" + bytes(48),
    "STUN": bytes.fromhex("000100002112a442") + bytes(12),
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "an X11 client": bytes.fromhex("6c000b0000000000000000"),
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "our own magic": b"IPCT\1\1\0\0",
}


@pytest.mark.attack(14)
@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
def test_another_protocol_is_ended_after_four_bytes_and_nothing_is_answered(child: TwistdChild, said: bytes) -> None:
    """The four bytes alone are enough, and all of it at once makes no difference."""
    assert answer(child.port, said[:4]) == b""
    assert answer(child.port, said) == b""


@pytest.mark.attack(14)
@pytest.mark.usefixtures("alive")
def test_a_post_whose_body_holds_a_handshake_is_not_listened_to(child: TwistdChild) -> None:
    body = m1(child.key)
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert answer(child.port, head + body) == b""
    assert answer(child.port, head, body) == b""


@pytest.mark.attack(3)
@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("length", [0, 1, 42, 63, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_is_not_m1s_is_ended_after_four_bytes(child: TwistdChild, length: int) -> None:
    assert answer(child.port, struct.pack(">I", length)) == b""


@pytest.mark.attack(21)
@pytest.mark.usefixtures("alive")
def test_every_single_bit_flip_of_m1s_head_is_refused_with_the_same_nothing(child: TwistdChild) -> None:
    """Length, magic, version, type, flags and key id; what the rest of M1 says only M3 can prove."""
    message = m1(child.key)
    for bit in range(8 * 20):
        flipped = bytearray(message)
        flipped[bit // 8] ^= 0x80 >> bit % 8
        assert answer(child.port, bytes(flipped)) == b"", f"bit {bit}"


@pytest.mark.attack(21)
@pytest.mark.usefixtures("alive")
def test_every_truncation_of_m1_is_answered_with_nothing(child: TwistdChild) -> None:
    message = m1(child.key)
    for length in range(len(message)):
        assert answer(child.port, message[:length], end=True) == b""


@pytest.mark.attack(21)
@pytest.mark.usefixtures("alive")
def test_every_single_bit_flip_of_m3_is_refused_with_the_same_nothing(child: TwistdChild) -> None:
    for bit in range(8 * 44):
        with Peer.open(child.port) as peer:
            peer.send_m1(child.key)
            peer.read_m2()
            flipped = bytearray(peer.m3_frame)
            flipped[bit // 8] ^= 0x80 >> bit % 8
            peer.send_raw(bytes(flipped))
            assert peer.wait_eof() == b"", f"bit {bit}"


# --- 16: our own messages, at the wrong time or place -----------------------------------------------------------------


@pytest.mark.attack(16)
@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(wire.m2(wire.m2_head(bytes(8), DEFAULT_LIMITS, bytes(32)), bytes(32)), id="M2"),
        pytest.param(wire.m3(bytes(32)), id="M3"),
        pytest.param(bytes(32) + wire.receipt_body(0, -1, [], 1, 1), id="a record"),
        pytest.param(m1(SECRET)[4:] + b"!", id="M1 and a byte within its length"),
    ],
)
def test_nothing_but_m1_may_come_first(child: TwistdChild, said: bytes) -> None:
    assert answer(child.port, wire.prefixed(said)) == b""


SECOND: dict[str, Callable[[Peer], bytes]] = {
    "M1 again": lambda peer: wire.prefixed(peer.m1_message),
    "M2 sent back": lambda peer: wire.prefixed(peer.server.head + peer.server.tag),
    "tag_s sent back as tag_c": lambda peer: wire.prefixed(wire.m3(peer.server.tag)),
    "zeros for a tag": lambda peer: wire.prefixed(wire.m3(bytes(32))),
    "an empty record": lambda peer: bytes(4),
    "a record": lambda peer: peer.envelope_frame("job.run", b"")[1],
    "M3 twice its length": lambda peer: wire.prefixed(peer.m3_frame[4:] * 2),
}


@pytest.mark.attack(16)
@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("said", SECOND.values(), ids=SECOND)
def test_nothing_but_the_right_m3_may_come_second(child: TwistdChild, said: Callable[[Peer], bytes]) -> None:
    with Peer.open(child.port) as peer:
        peer.send_m1(child.key)
        peer.read_m2()
        peer.send_raw(said(peer))
        assert peer.wait_eof() == b""


@pytest.mark.attack(16)
@pytest.mark.usefixtures("alive")
def test_m1_and_m3_in_one_write_are_early_data(child: TwistdChild) -> None:
    assert answer(child.port, m1(child.key) + wire.prefixed(wire.m3(bytes(32)))) == b""


@pytest.mark.attack(16)
@pytest.mark.usefixtures("alive")
def test_a_proof_for_another_connection_is_refused(child: TwistdChild) -> None:
    with Peer.open(child.port) as one, Peer.open(child.port) as other:
        for peer in (one, other):
            peer.send_m1(child.key)
            peer.read_m2()
        other.send_raw(one.m3_frame)
        assert other.wait_eof() == b""
        one.send_raw(one.m3_frame)
        assert one.receipt_for(one.send_envelope("job.run", target="alive")) == "accepted"


# --- 8: who only lets us work -----------------------------------------------------------------------------------------


@pytest.mark.attack(8)
@pytest.mark.usefixtures("alive")
def test_first_messages_in_a_loop_are_answered_with_a_hundred_bytes(child: TwistdChild) -> None:
    for number in range(20):
        message = m1(child.key, number.to_bytes(32, "big"))
        with Peer.open(child.port, receive_buffer=2_048) as peer:
            peer.send_raw(message)
            got = peer.read_exactly(M2_BYTES)
            peer.send_raw(message * 20)
            assert len(got + peer.wait_eof()) == M2_BYTES


# --- 5, 10, 12, 13: who only takes up room ----------------------------------------------------------------------------


@pytest.mark.attack(5)
@pytest_twisted.ensureDeferred
async def test_slow_strangers_are_gone_at_the_deadline_and_honest_clients_get_in_meanwhile() -> None:
    def play() -> list[int]:
        message = m1(SECRET)
        silent, slow, half = peers = [server.open() for _ in range(3)]
        half.send_raw(message)
        for byte in message:
            server.assert_serves()
            try:
                slow.send_raw(bytes([byte]))
            except ConnectionError:
                break
        answered = [len(peer.wait_eof()) for peer in (silent, slow, half)]
        for peer in peers:
            peer.close()
        return answered

    async with serving({"handshake_timeout_seconds": 0.1}) as server:
        silent, slow, half = await in_thread(play)
        assert (silent, half) == (0, M2_BYTES)
        assert slow in (0, M2_BYTES)  # on a fast machine it got through M1 in time
        assert server.counters["handshake", "handshake_timeout"] == 3


@pytest.mark.attack(10)
@pytest_twisted.ensureDeferred
async def test_a_flood_of_idle_connects_does_not_keep_honest_clients_out() -> None:
    """The oldest pending one goes, never the newcomer: an honest client is no longer pending when its turn would be."""

    def play() -> int:
        flood: list[Peer] = []
        for _ in range(30):
            flood += [server.open() for _ in range(10)]
            with server.open() as honest:
                honest.send_m1(SECRET)
                flood += [server.open() for _ in range(10)]
                honest.read_m2()
                honest.send_raw(honest.m3_frame)
                assert honest.receipt_for(honest.send_envelope("job.run")) == "accepted"
        for peer in flood:
            peer.close()
        return len(flood)

    async with serving({"max_pending_handshakes": 16}) as server:
        flood = await in_thread(play)
        assert server.counters["handshake", "authenticated"] == 30
        assert server.counters["handshake", "evicted"] >= flood - 16 - 30
        assert server.counters["ended", "evicted"] == 0


def _at_each_stage(server: Server, number: int) -> Peer:
    """A peer that came this far."""
    stage = number % 6
    if stage < 3:
        peer = server.open()
        if stage == 1:
            peer.send_raw(m1(SECRET)[:30])
        elif stage == 2:
            peer.send_m1(SECRET)
            peer.read_m2()
        return peer
    peer = server.peer()
    if stage == 4:
        peer.send_raw(peer.envelope_frame("job.run", b"x" * 100)[1][:70])
    elif stage == 5:
        peer.send_envelope("job.run")
    return peer


@pytest.mark.attack(12)
@pytest_twisted.ensureDeferred
async def test_hundreds_of_connects_and_resets_leave_nothing_behind() -> None:
    def play() -> None:
        for number in range(240):
            _at_each_stage(server, number).abort()

    async with serving() as server:
        descriptors = len(os.listdir("/dev/fd"))
        await in_thread(play)
        await in_thread(server.assert_serves)
        assert [*server.factory.pending] == []
        assert server.factory.connections == set()
        assert server.factory.transports == set()
        assert len(os.listdir("/dev/fd")) == descriptors
        assert sum(server.counters["ended", category] for category in Category) == 240 / 2 + 1


@pytest.mark.attack(13)
@pytest.mark.parametrize("end", [Peer.abort, Peer.end_writing, Peer.close])
@pytest.mark.parametrize("stage", range(6))
@pytest_twisted.ensureDeferred
async def test_no_end_without_close_is_taken_for_success(stage: int, end: Callable[[Peer], None]) -> None:
    """Half-close, close and reset at each stage, within a record and between two."""

    def play() -> None:
        with _at_each_stage(server, stage) as peer:
            end(peer)
            if end is Peer.end_writing:
                while peer.wait_eof():
                    pass
        server.assert_serves()

    async with serving() as server:
        await in_thread(play)
        where = "handshake" if stage < 3 else "ended"
        assert server.counters[where, "connection_lost"] == 1
        assert server.counters["ended", "closed"] == 1  # the honest client


# --- 15, 17, 18, 20: a squatter has taken the port --------------------------------------------------------------------


@pytest.fixture
def squatter() -> Iterator[Listener]:
    with Listener() as squatter:
        yield squatter


async def _refuse(port: int, *, secret: bytes = SECRET) -> HandshakeError:
    """An honest client is not taken in."""
    from twisted.internet import reactor

    with pytest.raises(HandshakeError) as raised:
        await within(connect(reactor, port, Keyring([secret])))
    return raised.value


def _relay(client: ServerPeer, server: Peer) -> bytes:
    """Pass M1 on, the answer back, and return what the client says then."""
    server.send_raw(wire.prefixed(client.read_content(limit=64)))
    client.send_raw(wire.prefixed(server.read_content(limit=96)))
    return client.wait_eof()


@pytest.mark.attack(18)
@pytest_twisted.ensureDeferred
async def test_a_squatter_that_relays_to_the_real_server_sees_nothing_but_m1(
    child: TwistdChild, squatter: Listener
) -> None:
    """On another port than the server's, which is all that one who took the port of a server that moved can have."""

    def play() -> bytes:
        with squatter.accept_raw() as client, Peer.open(child.port) as server:
            said = _relay(client, server)
            server.end_writing()
            assert server.wait_eof() == b""
            return said

    playing = in_thread(play)
    error = await _refuse(squatter.port, secret=child.key)
    assert error.category == Category.AUTHENTICATION_FAILED
    assert "the connection is being relayed" in str(error)
    assert await playing == b""
    await in_thread(assert_serves, child)


@pytest.mark.attack(18)
@pytest_twisted.ensureDeferred
async def test_a_squatter_on_the_port_of_a_server_that_came_back_elsewhere_sees_nothing_but_m1() -> None:
    async with serving() as before:
        port = before.port

    def play(listener: Listener, server_port: int) -> bytes:
        with listener.accept_raw() as client, Peer.open(server_port) as server:
            return _relay(client, server)

    async with serving() as after:
        assert after.port != port
        with Listener(port) as squatter:
            playing = in_thread(play, squatter, after.port)
            assert (await _refuse(port)).category == Category.AUTHENTICATION_FAILED
            assert await playing == b""
        assert after.received == []


@pytest.mark.attack(17)
@pytest_twisted.ensureDeferred
async def test_a_second_client_is_no_oracle_for_a_squatter(squatter: Listener) -> None:
    """It has two clients and no key: nothing that one of them says convinces the other."""

    def play() -> list[bytes]:
        with squatter.accept_raw() as one, squatter.accept_raw() as other:
            messages = [peer.read_content(limit=64) for peer in (one, other)]
            for peer, message in zip((one, other), reversed(messages), strict=True):
                # Its fields in the place of M2's, and 32 bytes of the client's own for a tag.
                head = wire.m2_head(message[8:16], DEFAULT_LIMITS, message[32:])
                peer.send_raw(wire.prefixed(wire.m2(head, message[32:])))
            return [peer.wait_eof() for peer in (one, other)]

    playing = in_thread(play)
    refusals = [within(_refuse(squatter.port)) for _ in range(2)]
    assert [(await refusal).category for refusal in refusals] == [Category.AUTHENTICATION_FAILED] * 2
    assert await playing == [b"", b""]


def _m2_of_another_connection(peer: ServerPeer) -> None:
    """A true M2, only not for this connection: its M1 was another one."""
    peer.m1_message = m1(SECRET)[4:]
    peer.send_m2(SECRET)


def _half_of_m2(peer: ServerPeer) -> None:
    peer.send_raw(b"\0\0\0\x60IPCT\1\2")
    peer.end_writing()


SERVED: dict[str, tuple[Callable[[ServerPeer], object], Category]] = {
    "M1 reflected": (lambda peer: peer.send_raw(wire.prefixed(peer.m1_message)), Category.HANDSHAKE_MALFORMED),
    "the client's own nonce": (lambda peer: peer.send_m2(SECRET, nonce=peer.client.nonce),
                               Category.AUTHENTICATION_FAILED),
    "M2 of another connection": (_m2_of_another_connection, Category.AUTHENTICATION_FAILED),
    "M2 under another key": (lambda peer: peer.send_m2(bytes(range(32))), Category.AUTHENTICATION_FAILED),
    "M2 for another service": (lambda peer: peer.send_m2(SECRET, "other"), Category.AUTHENTICATION_FAILED),
    "M3": (lambda peer: peer.send_raw(wire.prefixed(wire.m3(bytes(32)))), Category.HANDSHAKE_MALFORMED),
    "a record": (lambda peer: peer.send_raw(wire.frame(bytes(32), wire.receipt_body(0, -1, [], 1, 1))),
                 Category.HANDSHAKE_MALFORMED),
    "another version": (lambda peer: peer.send_raw(b"\0\0\0\x60IPCT\2"), Category.VERSION_UNSUPPORTED),
    "HTTP": (lambda peer: peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Category.HANDSHAKE_MALFORMED),
    "nothing, and it ends": (lambda peer: peer.end_writing(), Category.HANDSHAKE_REFUSED),
    "half of M2, and it ends": (_half_of_m2, Category.HANDSHAKE_REFUSED),
}  # fmt: skip


@pytest.mark.attack(16, 17, 22)
@pytest.mark.parametrize(("serve", "category"), SERVED.values(), ids=SERVED)
@pytest_twisted.ensureDeferred
async def test_a_client_says_nothing_but_m1_to_what_does_not_prove_itself(
    squatter: Listener, serve: Callable[[ServerPeer], object], category: Category
) -> None:
    def play() -> bytes:
        with squatter.accept_raw() as client:
            client.read_m1()
            serve(client)
            return client.wait_eof()

    playing = in_thread(play)
    assert (await _refuse(squatter.port)).category == category
    assert await playing == b""


@pytest.mark.attack(20)
@pytest_twisted.ensureDeferred
async def test_a_recorded_server_side_convinces_no_client(squatter: Listener) -> None:
    """What a server said to one client, word for word, said to the next one on the same port."""

    def play() -> list[bytes]:
        with squatter.accept(SECRET) as first:
            recorded = wire.prefixed(first.m2_message)
            close = first.read_until_close()
            assert close["category"] == "closed"
            first.send_close()
        with squatter.accept_raw() as second:
            second.read_m1()
            second.send_raw(recorded)
            return [second.wait_eof()]

    from twisted.internet import reactor

    playing = in_thread(play)
    connection = await within(connect(reactor, squatter.port, Keyring([SECRET])))
    await within(connection.close())
    assert (await _refuse(squatter.port)).category == Category.AUTHENTICATION_FAILED
    assert await playing == [b""]


# --- 19: a recorded client side ---------------------------------------------------------------------------------------


def _record(port: int, key: bytes) -> list[bytes]:
    """All that an honest client says, by write: M1, M3, one message."""
    with Peer.connect(port, key) as peer:
        seq, frame = peer.envelope_frame("job.run", b"recorded", target="alive")
        peer.send_raw(frame)
        assert peer.receipt_for(seq) == "accepted"
        return [wire.prefixed(peer.m1_message), peer.m3_frame, frame]


def _replay(port: int, recorded: list[bytes]) -> bytes:
    """What a server says to it."""
    first, *rest = recorded
    with Peer.open(port) as peer:
        peer.send_raw(first)
        peer.read_exactly(M2_BYTES)
        peer.send_raw(b"".join(rest))
        return peer.wait_eof()


@pytest.mark.attack(19)
@pytest.mark.usefixtures("alive")
def test_a_recorded_client_is_refused_by_the_same_server(child: TwistdChild) -> None:
    recorded = _record(child.port, child.key)
    assert _replay(child.port, recorded) == b""
    child.wait_for("failed: authentication_failed")


@pytest.mark.attack(19)
def test_a_recorded_client_is_refused_by_a_restarted_server_and_by_another_one(tmp_path: Path) -> None:
    """The restarted one has the same key and the same port; the other one the same key."""
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(SECRET.hex())
    with TwistdChild("--key-file", str(key_file)) as first, TwistdChild("--key-file", str(key_file)) as other:
        port = first.port
        recorded = _record(port, SECRET)
        assert _replay(other.port, recorded) == b""
        first.terminate()
        with TwistdChild("--key-file", str(key_file), "--listen", f"tcp:{port}:interface=127.0.0.1") as restarted:
            assert _replay(port, recorded) == b""
            assert restarted.records == []
            with Peer.connect(port, SECRET) as honest:
                assert honest.receipt_for(honest.send_envelope("job.run", target="alive")) == "accepted"


# --- 22: nearly the right key -----------------------------------------------------------------------------------------


@pytest.mark.attack(22)
@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("change", ["a zero byte appended", "one bit", "backwards", "its hex digits", "doubled"])
def test_nearly_the_right_key_is_as_wrong_as_any(child: TwistdChild, change: str) -> None:
    key = child.key
    secret = {
        "a zero byte appended": key + b"\0",
        "one bit": bytes([key[0] ^ 1]) + key[1:],
        "backwards": key[::-1],
        "its hex digits": key.hex().encode(),
        "doubled": key * 2,
    }[change]
    with Peer.open(child.port) as peer:
        peer.send_m1(secret)
        with pytest.raises(PeerClosed):
            peer.read_m2()
    # The right key id, but keys of another secret: M2 comes, and is no use.
    with Peer.open(child.port) as peer:
        peer.send_raw(m1(child.key))
        peer.m1_message, peer.limits = m1(child.key)[4:], DEFAULT_LIMITS
        peer._prk, peer._service = wire.prk(secret), SERVICE
        with pytest.raises(wire.WireError, match="authentication_failed"):
            peer.read_m2()
