"""The handshake: both ends prove themselves or nothing comes about, and a stranger learns nothing.

That its bytes are those of the design is in ``test_frozen_vector.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipc_twisted.core.connection import State
from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.verifier import Fault
from ipc_twisted.errors import Category
from tests import wire_peer as wire
from tests.core_pair import (
    ENDPOINT,
    INSTANCE,
    LIMITS,
    NONCE_C,
    NONCE_S,
    NOW,
    SECRET,
    SERVICE,
    Side,
    client,
    server,
)
from tests.test_frozen_vector import M1, M2, M3


def server_half(
    secrets: tuple[bytes, ...] = (SECRET,),
    service: str = SERVICE,
    endpoint: Endpoint = ENDPOINT,
    nonce: bytes = NONCE_S,
    limits: Limits = LIMITS,
) -> ServerHandshake:
    prks = {prk.key_id(service): prk for prk in map(Prk, secrets)}
    return ServerHandshake(prks, service, limits, INSTANCE, endpoint, nonce)


def client_half(
    secret: bytes = SECRET,
    service: str = SERVICE,
    endpoint: Endpoint = ENDPOINT,
    nonce: bytes = NONCE_C,
    limits: Limits = LIMITS,
) -> ClientHandshake:
    return ClientHandshake(Prk(secret), service, limits, endpoint, nonce)


def refusal(half: ServerHandshake | ClientHandshake, *segments: bytes) -> Category:
    """The category in which the last of the segments ends; nothing may be answered to it."""
    *before, last = segments
    for segment in before:
        half.receive(segment)
    with pytest.raises(Fault) as caught:
        half.receive(last)
    assert half.outcome is None
    return caught.value.category


# What comes about


def test_each_side_learns_the_others_limits_and_the_keys_of_its_directions() -> None:
    ours, theirs = Limits(1, 2, 3, 4), Limits(0, 2**32 - 1, 0, 2**32 - 1)  # any limits are legal
    at_client, at_server = client_half(limits=ours), server_half(limits=theirs)
    m2, _ = at_server.receive(at_client.start())
    m3, _ = at_client.receive(m2)
    at_server.receive(m3)
    assert at_client.outcome is not None
    assert at_server.outcome is not None
    assert (at_client.outcome.limits, at_server.outcome.limits) == (theirs, ours)
    assert at_client.outcome.send_key.sign(b"m") == at_server.outcome.receive_key.sign(b"m")
    assert at_client.outcome.receive_key.sign(b"m") == at_server.outcome.send_key.sign(b"m")
    assert at_client.outcome.send_key.sign(b"m") != at_client.outcome.receive_key.sign(b"m")


@pytest.mark.parametrize("at", range(68))
def test_m1_may_come_in_any_two_segments(at: int) -> None:
    half = server_half()
    answers = [half.receive(M1[:at])[0], half.receive(M1[at:])[0]] if at else [b"", half.receive(M1)[0]]
    assert answers == [b"", M2]


@pytest.mark.attack(1)
def test_every_message_may_come_one_byte_at_a_time() -> None:
    at_client, at_server = client_half(), server_half()
    said = b"".join(at_server.receive(bytes([byte]))[0] for byte in at_client.start())
    said = b"".join(at_client.receive(bytes([byte]))[0] for byte in said)
    assert [at_server.receive(bytes([byte])) for byte in said] == [(b"", b"")] * 44
    assert at_server.outcome is not None


@pytest.mark.parametrize("rest", [b"", b"x", M1, bytes(100)])
def test_what_lies_behind_m3_is_handed_on(rest: bytes) -> None:
    """The client may send its first record in the same write."""
    half = server_half()
    half.receive(M1)
    assert half.receive(M3 + rest) == (b"", rest)


def test_an_older_key_of_the_ring_is_accepted() -> None:
    half = server_half((bytes(range(32, 64)), SECRET))
    half.receive(M1)
    half.receive(M3)
    assert half.outcome is not None
    assert half.outcome.key_id == M1[12:20]


# What is refused, and how


def put(message: bytes, at: int, value: bytes) -> bytes:
    return message[:at] + value + message[at + len(value) :]


def made(nonce: bytes = NONCE_S, service: str = SERVICE, endpoint: Endpoint = ENDPOINT, m1: bytes = M1) -> bytes:
    """An M2 of somebody who holds the secret, right for these circumstances."""
    head = wire.m2_head(INSTANCE, LIMITS, nonce)
    th = wire.transcript(service, endpoint.packed(), m1[4:], head)
    return wire.prefixed(wire.m2(head, wire.tags(wire.connection_keys(wire.prk(SECRET), th), th)[0]))


TH = wire.transcript(SERVICE, ENDPOINT.packed(), M1[4:], M2[4:68])
KEYS = wire.connection_keys(wire.prk(SECRET), TH)
TAG_S, HTTP = M2[-32:], b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
RECORD = wire.frame(SECRET, wire.envelope_body(0, b"\x90", b""))
MALFORMED, VERSION, FAILED = Category.HANDSHAKE_MALFORMED, Category.VERSION_UNSUPPORTED, Category.AUTHENTICATION_FAILED
EARLY, UNKNOWN = Category.EARLY_DATA, Category.KEY_UNKNOWN

AT_SERVER: list[tuple[str, list[bytes], Category]] = [
    ("HTTP, after 4 bytes", [HTTP[:4]], MALFORMED),
    ("TLS, after 4 bytes", [bytes.fromhex("16030102")], MALFORMED),
    ("SSH, after 4 bytes", [b"SSH-"], MALFORMED),
    ("length of the largest kind", [b"\xff\xff\xff\xff"], MALFORMED),
    ("magic, at its first letter", [M1[:4] + b"J"], MALFORMED),
    ("version, before anything behind it", [put(M1, 8, b"\2")[:9]], VERSION),
    ("version 0", [put(M1, 8, b"\0")], VERSION),
    ("magic before version", [put(M1, 7, b"t\2")], MALFORMED),
    ("version before type", [put(M1, 8, b"\2\7")], VERSION),
    ("type, before anything behind it", [put(M1, 9, b"\2")[:10]], MALFORMED),
    ("flags", [put(M1, 11, b"\1")], MALFORMED),
    ("another key", [put(M1, 12, bytes(8))], UNKNOWN),
    ("M3 first", [M3], MALFORMED),
    ("M2 first", [M2], MALFORMED),
    ("a record first", [RECORD], MALFORMED),
    ("early byte", [M1 + b"\0"], EARLY),
    ("early M3", [M1 + M3], EARLY),
    ("M1 twice", [M1, M1], MALFORMED),
    ("a record before M3", [M1, RECORD], MALFORMED),
    ("M2 reflected", [M1, M2], MALFORMED),
    ("tag_s as tag_c", [M1, put(M3, 12, TAG_S)], FAILED),
    ("tag zero", [M1, put(M3, 12, bytes(32))], FAILED),
    ("wrong tag and a record", [M1, put(M3, 12, bytes(32)) + RECORD], FAILED),
    ("M3 of another M1", [put(M1, 67, b"\0"), M3], FAILED),
]


@pytest.mark.parametrize(("segments", "category"), [case[1:] for case in AT_SERVER], ids=[c[0] for c in AT_SERVER])
def test_the_server_refuses(segments: list[bytes], category: Category) -> None:
    assert refusal(server_half(), *segments) is category


AT_CLIENT: list[tuple[str, bytes, Category]] = [
    ("HTTP, after 4 bytes", b"HTTP", MALFORMED),
    ("M1 reflected", M1, MALFORMED),
    ("M3", M3, MALFORMED),
    ("version", put(M2, 8, b"\2"), VERSION),
    ("its own nonce, with a right tag", made(nonce=NONCE_C), FAILED),
    ("another connection's M2", made(m1=put(M1, 67, b"\0")), FAILED),
    ("another service's M2", made(service="other"), FAILED),
    ("relayed from another port", made(endpoint=ENDPOINT._replace(server_port=40002)), FAILED),
    ("relayed through another client port", made(endpoint=ENDPOINT._replace(client_port=50001)), FAILED),
    ("tag zero", put(M2, 68, bytes(32)), FAILED),
    ("tag_c as tag_s", put(M2, 68, M3[-32:]), FAILED),
    ("tag_s under the client's key", put(M2, 68, wire.sign(KEYS.fin_c, b"server finished\0" + TH)), FAILED),
    ("early byte", M2 + b"\0", EARLY),
    ("early record", M2 + RECORD, EARLY),
]


@pytest.mark.parametrize(("segment", "category"), [case[1:] for case in AT_CLIENT], ids=[c[0] for c in AT_CLIENT])
def test_the_client_refuses(segment: bytes, category: Category) -> None:
    assert refusal(client_half(), segment) is category


@pytest.mark.attack(22)
@pytest.mark.parametrize(
    ("secret", "service"), [(SECRET + b"\0", SERVICE), (bytes(range(1, 33)), SERVICE), (SECRET, "other")]
)
def test_another_key_or_service_is_not_known(secret: bytes, service: str) -> None:
    assert refusal(server_half(), client_half(secret, service).start()) is UNKNOWN


def test_who_copies_a_key_id_cannot_prove_the_key() -> None:
    """Nothing but M2 is said to it, and that tells it nothing."""
    liar = client_half(bytes(32))
    half = server_half()
    m2, _ = half.receive(put(liar.start(), 12, M1[12:20]))
    assert len(m2) == 100
    with pytest.raises(Fault) as caught:
        liar.receive(m2)
    assert caught.value.category is FAILED


@pytest.mark.attack(19)
@pytest.mark.parametrize(
    "half", [server_half(nonce=b"\x52" * 32), server_half(endpoint=ENDPOINT._replace(server_port=40002))]
)
def test_a_recorded_client_is_refused_by_a_server_that_is_new_or_another(half: ServerHandshake) -> None:
    assert refusal(half, M1, M3) is FAILED


@pytest.mark.attack(18)
def test_a_squatter_that_relays_to_the_real_server_gets_neither_end() -> None:
    """The client dialled 40001; the real server has been restarted on 40002 and sees the squatter's own port."""
    victim, real = client_half(), server_half(endpoint=Endpoint("127.0.0.1", 40002, "127.0.0.1", 50001))
    m2, _ = real.receive(victim.start())
    assert refusal(victim, m2) is FAILED
    assert refusal(real, M3) is FAILED


@pytest.mark.attack(15)
@pytest.mark.parametrize("port", [1, 40001, 65_535])
def test_a_client_that_was_joined_to_itself_says_nothing(port: int) -> None:
    half = client_half(endpoint=Endpoint("127.0.0.1", port, "127.0.0.1", port))
    with pytest.raises(Fault) as caught:
        half.start()
    assert caught.value.category is Category.SELF_CONNECT


# Every bit and every byte


def damaged(which: int, change: Callable[[bytes], bytes]) -> tuple[Side, Side, list[bytes]]:
    """Client, server and all that was said, with one message changed on its way."""
    at_client, at_server = client(), server()
    said: list[bytes] = []
    sides = (at_client, at_server)
    for number in (1, 2, 3):
        message = sides[1 - number % 2].output()
        if not message:
            break
        said.append(message)
        sides[number % 2].connection.receive_data(change(message) if number == which else message, NOW)
    return at_client, at_server, said


@pytest.mark.attack(21)
@pytest.mark.parametrize(("which", "size"), [(1, 68), (2, 100), (3, 44)])
def test_every_flipped_bit_is_refused(which: int, size: int) -> None:
    """No bit of M1, M2 or M3 is without a meaning, and the server never says more than M2."""
    for bit in range(8 * size):
        at, mask = bit // 8, 1 << bit % 8
        at_client, at_server, said = damaged(which, lambda m, a=at, b=mask: put(m, a, bytes([m[a] ^ b])))  # type: ignore[misc]
        assert at_server.authenticated == 0, bit
        assert (at_client.authenticated == 1) is (which == 3), bit
        ended = at_server if which == 3 else at_client
        assert State.DEAD in (ended.state, at_server.state), bit
        assert at_server.output() == b""
        assert len(said) <= max(which, 2)


@pytest.mark.attack(21)
@pytest.mark.parametrize(("which", "size"), [(1, 68), (2, 100), (3, 44)])
def test_every_truncation_is_waited_for_and_then_refused(which: int, size: int) -> None:
    """Whoever sends half a message and goes gets no answer, and is never let in."""
    for length in range(size):
        at_client, at_server, said = damaged(which, lambda message, n=length: message[:n])  # type: ignore[misc]
        listener = at_client if which == 2 else at_server
        assert len(said) == which
        assert (listener.state, listener.authenticated) == (State.HANDSHAKE, 0)
        listener.connection.receive_eof()
        assert (listener.state, listener.authenticated, listener.output()) == (State.DEAD, 0, b"")
        wanted = Category.HANDSHAKE_REFUSED if which == 2 else Category.CONNECTION_LOST
        assert listener.connection.category is wanted
