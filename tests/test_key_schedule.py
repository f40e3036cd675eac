"""The key schedule: HKDF of RFC 5869 under our labels, one key per purpose, none of them to be seen."""

from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ipc_twisted.core.handshake import Endpoint
from ipc_twisted.core.key_schedule import ConnectionKeys, Prk, lp, transcript
from tests import wire_peer as wire
from tests.core_pair import ENDPOINT, INSTANCE, LIMITS, NONCE_C, NONCE_S, SECRET, SERVICE

M1 = wire.m1(bytes.fromhex("0e693fc16244bd21"), LIMITS, NONCE_C)
M2_HEAD = wire.m2_head(INSTANCE, LIMITS, NONCE_S)
TH = "04f92a534d894f62aa8b9e060f65084e16cef8f8018ba2a7448d1c263bc490d0"
KEYS = {
    "client_to_server": "66669e29d4f58b971b7dc5dc4ce01f753675c844fb815b1c33c4c0cea64546da",
    "server_to_client": "a439b33dcc13da0c8597e760ae761aaea33e8a89b8cb5e35b774507b05a7c506",
}


def test_the_frozen_key_id() -> None:
    assert Prk(SECRET).key_id(SERVICE).hex() == "0e693fc16244bd21"


def test_the_frozen_transcript() -> None:
    assert transcript(SERVICE, ENDPOINT.packed(), M1, M2_HEAD).hex() == TH


@pytest.mark.parametrize(("name", "key"), KEYS.items())
def test_the_frozen_record_keys(name: str, key: str) -> None:
    derived = getattr(Prk(SECRET).connection_keys(bytes.fromhex(TH)), name)
    assert derived.sign(b"any message") == wire.sign(bytes.fromhex(key), b"any message")


@pytest.mark.parametrize("secret", [bytes(32), SECRET, bytes(range(100)), b"\xff" * 1_000])
@pytest.mark.parametrize("th", [bytes(32), b"\xff" * 32])
def test_all_keys_are_those_of_a_second_implementation(secret: bytes, th: bytes) -> None:
    keys = wire.connection_keys(wire.prk(secret), th)
    derived = Prk(secret).connection_keys(th)
    order = (keys.fin_s, keys.fin_c, keys.c2s, keys.s2c)
    assert [key.sign(b"m") for key in derived] == [wire.sign(key, b"m") for key in order]
    assert Prk(secret).key_id("any") == wire.key_id(wire.prk(secret), "any")


@pytest.mark.parametrize("secret", [bytes(32), SECRET, bytes(range(100))])
def test_all_keys_are_those_of_the_hkdf_of_cryptography(secret: bytes) -> None:
    def expand(label: bytes, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, label).derive(wire.prk(secret))

    th = bytes.fromhex(TH)
    okm = expand(b"ipc_twisted/1 connection keys\0" + th, 128)
    keys = [okm[at : at + 32] for at in range(0, 128, 32)]
    assert [key.sign(b"m") for key in Prk(secret).connection_keys(th)] == [wire.sign(key, b"m") for key in keys]
    assert Prk(secret).server_tag(th, b"m") == wire.sign(keys[0], b"m")
    assert Prk(secret).key_id("any") == expand(b"ipc_twisted/1 key id\0" + lp(b"any"), 8)


def test_the_four_keys_of_a_connection_are_independent() -> None:
    """Or what one side says could be sent back to it."""
    keys = Prk(SECRET).connection_keys(bytes(32))
    assert len({key.sign(b"m") for key in keys}) == len(ConnectionKeys._fields) == 4


CHANGES = {
    "service": ("other", ENDPOINT, M1, M2_HEAD),
    "server port": (SERVICE, ENDPOINT._replace(server_port=40002), M1, M2_HEAD),
    "client port": (SERVICE, ENDPOINT._replace(client_port=50001), M1, M2_HEAD),
    "server host": (SERVICE, ENDPOINT._replace(server_host="127.0.0.2"), M1, M2_HEAD),
    "client host": (SERVICE, ENDPOINT._replace(client_host="127.0.0.2"), M1, M2_HEAD),
    "ends swapped": (SERVICE, Endpoint(*ENDPOINT[2:], *ENDPOINT[:2]), M1, M2_HEAD),
    "M1": (SERVICE, ENDPOINT, M1[:-1] + b"\0", M2_HEAD),
    "M2": (SERVICE, ENDPOINT, M1, M2_HEAD[:-1] + b"\0"),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_whatever_the_ends_disagree_on_changes_every_key(changed: tuple[str, Endpoint, bytes, bytes]) -> None:
    """The addresses are why a process that took the port cannot relay to the real server."""
    service, endpoint, m1, m2 = changed
    th = transcript(service, endpoint.packed(), m1, m2)
    assert th.hex() != TH
    ours, theirs = Prk(SECRET).connection_keys(bytes.fromhex(TH)), Prk(SECRET).connection_keys(th)
    assert not {key.sign(b"m") for key in ours} & {key.sign(b"m") for key in theirs}


def test_a_length_goes_before_each_field() -> None:
    """So that ``ab`` and ``c`` are not ``a`` and ``bc``."""
    assert lp(b"abc") == b"\0\3abc"
    assert lp(b"") == b"\0\0"
    with pytest.raises(OverflowError):
        lp(bytes(65_536))


def test_another_service_has_another_key_id() -> None:
    """Or one key file would join two services."""
    assert Prk(SECRET).key_id("a") != Prk(SECRET).key_id("b")
    assert Prk(SECRET).key_id("a") != Prk(SECRET + b"\0").key_id("a")


@pytest.mark.parametrize("length", [0, 1, 16, 31])
def test_a_short_secret_is_refused(length: int) -> None:
    secret = b"swordfish-swordfish-swordfish-!"[:length]
    with pytest.raises(ValueError, match=r"^a secret must have at least 32 bytes$"):
        Prk(secret)


def test_a_secret_that_is_refused_is_not_among_the_locals_of_the_traceback() -> None:
    """Failures with locals are logged. It may be most of a real one."""
    with pytest.raises(ValueError, match="at least 32") as caught:
        Prk(b"swordfish-swordfish")
    ours = [entry for entry in caught.traceback if Path(entry.path).name == "key_schedule.py"]
    assert len(ours) == 1
    assert "swordfish" not in repr(ours[0].locals)


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_a_prk_does_not_show_itself(show: object) -> None:
    assert callable(show)
    assert show(Prk(SECRET)) == "<Prk (redacted)>"
    shown = show(Prk(SECRET).connection_keys(bytes(32)))
    derived = wire.connection_keys(wire.prk(SECRET), bytes(32))
    assert not any(key.hex() in shown or repr(key)[2:-1] in shown for key in derived)


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_prk_does_not_leave_its_object(leave: object) -> None:
    assert callable(leave)
    with pytest.raises(TypeError, match="cannot be pickled"):
        leave(Prk(SECRET))


def test_the_endpoint_is_packed_as_twelve_bytes() -> None:
    assert ENDPOINT.packed().hex() == "7f0000019c417f000001c350"
    assert len(hashlib.sha256().digest()) == 32
