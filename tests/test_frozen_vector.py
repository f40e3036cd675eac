"""Section 4.4 of the design, byte for byte; the nonces are handed in."""

from __future__ import annotations

import pytest

from ipc_twisted.core.codec import Close, Receipt, serialize_close, serialize_receipt
from ipc_twisted.core.handshake import ClientHandshake, Outcome, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery
from ipc_twisted.errors import Category
from tests import core_pair
from tests import wire_peer as wire
from tests.core_pair import ENDPOINT, INSTANCE, LIMITS, NONCE_C, NONCE_S, NOW, SECRET, SERVICE, Pair, client, server

M1 = bytes.fromhex(
    "0000004049504354010100000e693fc16244bd21010000000000001e0000040004000000"
    "c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1"
)
M2 = bytes.fromhex(
    "000000604950435401020000a1a2a3a4a5a6a7a8010000000000001e0000040004000000"
    "5151515151515151515151515151515151515151515151515151515151515151"
    "81f6a9fc9ce576567e446ba974d70df6c37b2510da89142a9e0644574a2ba2b3"
)
M3 = bytes.fromhex("000000284950435401030000aa5c1fc3a7daf0c07fe8675c7ca19146e56ce341f136073b6cd42ab0558d5d62")
ENVELOPE = bytes.fromhex(
    "0000008a8b98f9d71351f6657c25a487e588c165743729d305af10770f6bf1744214a873010000000000000000005a97ce69"
    "22fa60b8303030313032303330343035303630373038303930613062a76a6f622e72756ea774726163652d31c092a5706172"
    "7365a573636f726582a161a162ac636f6e74656e742d74797065aa746578742f706c61696e68656c6c6f"
)
RECEIPT = bytes.fromhex(
    "00000053f35736a47725d2148982ce42d435c70a4cde9a8e439965119e90de384de8e4940200000000000000000028940392"
    "9201a7657870697265649202b06b696e645f6e6f745f616c6c6f776564cd0404ce0400027c"
)
CLOSE = bytes.fromhex(
    "00000041f1c242e778d19c5e82528210aa4a58748695651012532c065949ab791bcddc1c030000000000000001001694b170"
    "61796c6f61645f746f6f5f6c61726765039004"
)
FIELDS = (1_763_900_000, "000102030405060708090a0b", "job.run", "trace-1", None, ["parse", "score"])
HEADERS = {"content-type": "text/plain", "a": "b"}


def server_half() -> ServerHandshake:
    prk = Prk(SECRET)
    return ServerHandshake({prk.key_id(SERVICE): prk}, SERVICE, LIMITS, INSTANCE, ENDPOINT, NONCE_S)


def client_half() -> ClientHandshake:
    return ClientHandshake(Prk(SECRET), SERVICE, LIMITS, ENDPOINT, NONCE_C)


def test_the_frozen_handshake_byte_for_byte() -> None:
    at_client, at_server = client_half(), server_half()
    assert (at_server.start(), at_client.start()) == (b"", M1)
    assert at_server.receive(M1) == (M2, b"")
    assert at_client.receive(M2) == (M3, b"")
    assert at_server.receive(M3) == (b"", b"")
    assert isinstance(at_client.outcome, Outcome)
    assert isinstance(at_server.outcome, Outcome)
    assert at_client.outcome[:3] == at_server.outcome[:3] == (bytes.fromhex("0e693fc16244bd21"), INSTANCE, LIMITS)


def test_the_frozen_envelope_byte_for_byte() -> None:
    both = Pair(client(), server())
    both.settle()
    both.client.connection.send(core_pair.message(Delivery, (*FIELDS, HEADERS), b"hello"))
    frame = both.client.output()
    assert frame == ENVELOPE
    both.server.connection.receive_data(frame, NOW)
    (envelope,) = both.server.handed
    assert (envelope.payload_bytes, envelope.sig, envelope.headers) == (b"hello", frame[4:36].hex(), HEADERS)


@pytest.mark.parametrize(
    ("body", "frame"),
    [
        (
            serialize_receipt(
                Receipt(3, [(1, Category.EXPIRED), (2, Category.KIND_NOT_ALLOWED)], 1_028, 67_109_500), seq=0
            ),
            RECEIPT,
        ),
        (serialize_close(Close(Category.PAYLOAD_TOO_LARGE, 3, [], 4), seq=1), CLOSE),
    ],
    ids=["receipt", "close"],
)
def test_the_frozen_receipt_and_close_byte_for_byte(body: bytes, frame: bytes) -> None:
    half = server_half()
    half.receive(M1)
    half.receive(M3)
    assert half.outcome is not None
    assert wire.prefixed(half.outcome.send_key.sign(body) + body) == frame
