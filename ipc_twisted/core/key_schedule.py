"""From the shared secret to the keys of one connection (HKDF-SHA256, RFC 5869, with the labels of protocol version 1).

::

    PRK    = HKDF-Extract(salt="ipc_twisted/1 extract", secret)
    key_id = HKDF-Expand(PRK, "ipc_twisted/1 key id" 00 LP(service), 8)
    keys   = HKDF-Expand(PRK, "ipc_twisted/1 connection keys" 00 transcript, 128)

Raw key bytes exist only inside the functions of this module; what leaves it is a tag, a pre-keyed HMAC or an object
whose ``repr`` is redacted and which refuses to be pickled.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from ipc_twisted.core.signing import MacKey, sign_once

MIN_SECRET_BYTES = 32
KEY_ID_BYTES = 8
DIGEST_BYTES = 32

_EXTRACT_SALT = b"ipc_twisted/1 extract"
_KEY_ID_LABEL = b"ipc_twisted/1 key id\0"
_CONNECTION_LABEL = b"ipc_twisted/1 connection keys\0"
_TRANSCRIPT_LABEL = b"ipc_twisted/1 transcript"
_ENDPOINT_LENGTH, _MESSAGE_LENGTH = b"\0\x0c", b"\0\x40"  # 12 and 64 as lp() writes them, but not for each stranger


def lp(value: bytes) -> bytes:
    """Length-prefix ``value`` (u16), so that concatenated fields cannot be read in two ways."""
    return len(value).to_bytes(2, "big") + value


def transcript(service: str, endpoint: bytes, m1: bytes, m2_unsigned: bytes) -> bytes:
    """Hash everything both ends must agree on. Of each part the length is as here; it is not looked at.

    :param endpoint: 12 bytes, the server's then the client's IPv4 address and port: this is why a process that took the
        port cannot relay to the real server.
    :param m1: the 64 bytes of the client's first message.
    :param m2_unsigned: the server's answer without its tag, 64 bytes.
    """
    th = _beginning(service).copy()
    th.update(_ENDPOINT_LENGTH + endpoint + _MESSAGE_LENGTH + m1 + _MESSAGE_LENGTH + m2_unsigned)
    return th.finalize()


@lru_cache(maxsize=4)
def _beginning(service: str) -> Hash:
    """What is the same in every transcript of a service; to be copied."""
    beginning = Hash(SHA256())
    beginning.update(lp(_TRANSCRIPT_LABEL) + lp(service.encode("ascii")))
    return beginning


class ConnectionKeys(NamedTuple):
    """The four independent keys of one connection; one per direction and purpose, so nothing can be reflected."""

    server_finished: MacKey
    client_finished: MacKey
    client_to_server: MacKey
    server_to_client: MacKey


class Prk:
    """The pseudorandom key of one secret; all other keys come from it.

    :param secret: at least 32 random bytes. Not a passphrase: nothing here slows down guessing.
    :raises ValueError: the secret is too short. The message holds none of it.
    """

    __slots__ = ("_mac", "_raw")

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            del secret
            raise ValueError(f"a secret must have at least {MIN_SECRET_BYTES} bytes")
        self._raw = HKDF.extract(SHA256(), _EXTRACT_SALT, secret)
        self._mac = MacKey(self._raw)  # for server_tag()

    def key_id(self, service: str) -> bytes:
        """8 public bytes that name this secret for ``service``; another service gives another id."""
        return self._expand(_KEY_ID_LABEL + lp(service.encode("ascii")), KEY_ID_BYTES)

    def server_tag(self, th: bytes, signed: bytes) -> bytes:
        """Sign with :attr:`ConnectionKeys.server_finished`, and derive no other key: any M1 has us do this.

        It is the first block of HKDF-Expand, and that is one HMAC, whose key schedule has been run (RFC 5869, 2.3).
        """
        return sign_once(self._mac.sign(_CONNECTION_LABEL + th + b"\1"), signed)

    def connection_keys(self, th: bytes) -> ConnectionKeys:
        """:param th: the transcript hash, 32 bytes."""
        okm = self._expand(_CONNECTION_LABEL + th, 4 * DIGEST_BYTES)
        return ConnectionKeys(*(MacKey(okm[at : at + DIGEST_BYTES]) for at in range(0, len(okm), DIGEST_BYTES)))

    def _expand(self, info: bytes, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, info).derive(self._raw)

    def __repr__(self) -> str:
        return "<Prk (redacted)>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled")
