"""The handshake: three messages of exact sizes; the server proves itself first, and strangers get nothing but M2.

::

    M1  C->S  64:  head | key_id[8]   | limits_c[16] | nonce_c[32]
    M2  S->C  96:  head | instance[8] | limits_s[16] | nonce_s[32] | tag_s[32]
    M3  C->S  40:  head | tag_c[32]                                               head = "IPCT" | u8 1 | u8 type | u16 0

Each travels behind a u32 length. Every byte is judged as soon as it can be: what is no handshake at all is gone after
the four bytes of its "length". Every failure is a :class:`Fault`; the caller drops the connection without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address
from struct import Struct
from typing import NamedTuple

from cryptography.hazmat.primitives.constant_time import bytes_eq

from ipc_twisted.core.key_schedule import Prk, transcript
from ipc_twisted.core.signing import SIG_BYTES, MacKey
from ipc_twisted.core.verifier import Fault
from ipc_twisted.errors import Category

VERSION = 1
NONCE_BYTES = 32
_MAGIC = b"IPCT"
_HEAD = Struct(">4sBBH")
_LIMITS = Struct(">IIII")
_ENDPOINT = Struct(">4sH4sH")
_M1, _M2, _M3 = 1, 2, 3
_SIZES = {_M1: 64, _M2: 96, _M3: 40}
_STARTS = {type_: size.to_bytes(4, "big") + _HEAD.pack(_MAGIC, VERSION, type_, 0) for type_, size in _SIZES.items()}
"""Length and head, which are the same in every message of a type."""
_SERVER_LABEL = b"server finished\0"
_CLIENT_LABEL = b"client finished\0"


class Limits(NamedTuple):
    """What one side takes; ``messages`` and ``bytes`` are its first credit. Each a u32."""

    max_payload_bytes: int
    ttl_seconds: int
    messages: int
    bytes: int


class Endpoint(NamedTuple):
    """The addresses of a connection as one side sees them. IPv4 dotted quads."""

    server_host: str
    server_port: int
    client_host: str
    client_port: int

    def packed(self) -> bytes:
        """12 bytes: the server's address and port, then the client's."""
        server_host, server_port, client_host, client_port = self
        return _ENDPOINT.pack(_ipv4(server_host), server_port, _ipv4(client_host), client_port)


@lru_cache(maxsize=16)
def _ipv4(host: str) -> bytes:
    """4 bytes of a dotted quad, almost always the same one."""
    return IPv4Address(host).packed


class Outcome(NamedTuple):
    """Both ends have proved that they hold the secret.

    :ivar instance: the server's guard, as the client was told; its own at the server.
    :ivar limits: the other side's.
    """

    key_id: bytes
    instance: bytes
    limits: Limits
    send_key: MacKey
    receive_key: MacKey


class _Inbox:
    """The one message that may come next; judged field by field as its bytes come."""

    def __init__(self, type_: int) -> None:
        self._type = type_
        self._size = 4 + _SIZES[type_]
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take ``data``; return the message, once it is whole, and what lies behind it.

        :raises Fault: ``handshake_malformed`` or ``version_unsupported``.
        """
        wanted = self._size - len(self._held)
        self._held = held = self._held + data[:wanted]
        start = _STARTS[self._type]
        head = held[: len(start)]
        if not (len(head) < 4 or start.startswith(head)):
            # Where length and magic are right and the version is not, the rest of the head can mean anything.
            other_version = head[:8] == start[:8] and head[8] != VERSION
            raise Fault(Category.VERSION_UNSUPPORTED if other_version else Category.HANDSHAKE_MALFORMED)
        return (held[4:], data[wanted:]) if len(held) == self._size else None


class ServerHandshake:
    """The server's side.

    :param prks: every accepted secret by its key id; looked at again when the client proves itself.
    :param instance: 8 bytes, the replay guard's.
    :param nonce: 32 fresh random bytes.
    :ivar outcome: set once the client has proved itself.
    """

    def __init__(
        self,
        prks: Mapping[bytes, Prk],
        service: str,
        limits: Limits,
        instance: bytes,
        endpoint: Endpoint,
        nonce: bytes,
    ) -> None:
        self.outcome: Outcome | None = None
        self._prks = prks
        self._service = service
        self._limits = limits
        self._instance = instance
        self._endpoint = endpoint
        self._nonce = nonce
        self._inbox = _Inbox(_M1)
        self._answered: tuple[bytes, bytes, bytes, bytes] | None = None  # key id, client's limits, transcript, our tag

    def start(self) -> bytes:
        """The client speaks first."""
        return b""

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Take a segment; return what to write, and the bytes behind the handshake once :attr:`outcome` is set.

        :raises Fault: drop the connection, answer nothing.
        """
        taken = self._inbox.feed(data)
        if taken is None:
            return b"", b""
        message, rest = taken
        if self._answered is None:
            if rest:
                raise Fault(Category.EARLY_DATA)
            return self._answer(message), b""
        self.outcome = self._admit(message[_HEAD.size :], *self._answered)
        return b"", rest

    def _answer(self, m1: bytes) -> bytes:
        """M2. No more is derived than it takes: most of those who stop here are no clients."""
        key_id = m1[8:16]
        prk = self._prks.get(key_id)
        if prk is None:
            raise Fault(Category.KEY_UNKNOWN)
        unsigned = _STARTS[_M2] + self._instance + _LIMITS.pack(*self._limits) + self._nonce
        th = transcript(self._service, self._endpoint.packed(), m1, unsigned[4:])
        tag = prk.server_tag(th, _SERVER_LABEL + th)
        self._answered = key_id, m1[16:32], th, tag
        self._inbox = _Inbox(_M3)
        return unsigned + tag

    def _admit(self, proof: bytes, key_id: bytes, limits: bytes, th: bytes, tag: bytes) -> Outcome:
        prk = self._prks.get(key_id)
        if prk is None:  # withdrawn since M1
            raise Fault(Category.KEY_UNKNOWN)
        keys = prk.connection_keys(th)
        if not keys.client_finished.verifies(proof, _CLIENT_LABEL, th, tag):
            raise Fault(Category.AUTHENTICATION_FAILED)
        limits_c = Limits(*_LIMITS.unpack(limits))
        return Outcome(key_id, self._instance, limits_c, keys.server_to_client, keys.client_to_server)


class ClientHandshake:
    """The client's side.

    :param endpoint: the server part is the address that was dialled, not what the socket says.
    :param nonce: 32 fresh random bytes.
    :ivar outcome: set once the server has proved itself.
    """

    def __init__(self, prk: Prk, service: str, limits: Limits, endpoint: Endpoint, nonce: bytes) -> None:
        self.outcome: Outcome | None = None
        self._prk = prk
        self._service = service
        self._endpoint = endpoint
        self._nonce = nonce
        self._key_id = prk.key_id(service)
        self._m1 = _STARTS[_M1] + self._key_id + _LIMITS.pack(*limits) + nonce
        self._inbox = _Inbox(_M2)

    def start(self) -> bytes:
        """M1.

        :raises Fault: ``self_connect``: the kernel joined our socket to itself, which happens on a dead ephemeral port.
        """
        server_host, server_port, client_host, client_port = self._endpoint
        if (server_host, server_port) == (client_host, client_port):
            raise Fault(Category.SELF_CONNECT)
        return self._m1

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """As :meth:`ServerHandshake.receive`; what lies behind M2 before M3 is sent is ``early_data``."""
        taken = self._inbox.feed(data)
        if taken is None:
            return b"", b""
        m2, rest = taken
        if rest:
            raise Fault(Category.EARLY_DATA)
        unsigned, tag = m2[:-SIG_BYTES], m2[-SIG_BYTES:]
        if bytes_eq(unsigned[-NONCE_BYTES:], self._nonce):  # our own message come back
            raise Fault(Category.AUTHENTICATION_FAILED)
        th = transcript(self._service, self._endpoint.packed(), self._m1[4:], unsigned)
        keys = self._prk.connection_keys(th)
        if not keys.server_finished.verifies(tag, _SERVER_LABEL, th):
            raise Fault(Category.AUTHENTICATION_FAILED)
        limits = Limits(*_LIMITS.unpack(m2[16:32]))
        self.outcome = Outcome(self._key_id, m2[8:16], limits, keys.client_to_server, keys.server_to_client)
        return _STARTS[_M3] + keys.client_finished.sign(_CLIENT_LABEL, th, tag), b""
