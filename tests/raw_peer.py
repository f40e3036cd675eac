"""The roles of :class:`tests.raw_channel.Channel`: :class:`Peer` dials, :class:`Listener` gives :class:`ServerPeer`.

Each step of the handshake is a method of its own, so that a test can leave it after any of them, send something else
in its place (``send_raw``, ``read_content``) or put a record into the same write as M3. Only 127.0.0.1 is dialled and
bound.
"""

from __future__ import annotations

import secrets
import socket
from typing import Self

from tests import wire_peer as wire
from tests.raw_channel import DEFAULT_LIMITS, DEFAULT_TIMEOUT, Channel
from tests.raw_channel import PeerClosed as PeerClosed
from tests.wire_peer import Limits, WireError

HOST = "127.0.0.1"
SERVICE = "execution_ipc"


class Peer(Channel):
    """The client role.

    :ivar m1_message: M1 as it was sent, and ``server``: the fields of M2 once they were read.
    :ivar m3_frame: M3 with its length, from the moment M2 was accepted.
    """

    _directions = ("c2s", "s2c")
    m1_message: bytes
    server: wire.M2
    m3_frame: bytes

    @classmethod
    def open(cls, port: int, *, timeout: float = DEFAULT_TIMEOUT, receive_buffer: int | None = None) -> Self:
        """Connect and say nothing yet.

        :param receive_buffer: the socket's receive buffer in bytes, for peers that do not read.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(timeout)
            sock.connect((HOST, port))
        except BaseException:
            sock.close()
            raise
        peer = cls(sock, timeout)
        peer._dialled = (HOST, port)
        return peer

    @classmethod
    def connect(
        cls,
        port: int,
        secret: bytes,
        service: str = SERVICE,
        limits: Limits = DEFAULT_LIMITS,
        *,
        nonce: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        receive_buffer: int | None = None,
    ) -> Self:
        """Connect and go through the whole handshake; of a failed one the socket is closed.

        :raises PeerClosed: when the server ends the connection instead of answering.
        :raises WireError: when its M2 is malformed or its tag wrong.
        """
        peer = cls.open(port, timeout=timeout, receive_buffer=receive_buffer)
        try:
            peer.handshake(secret, service, limits, nonce=nonce)
        except BaseException:
            peer.close()
            raise
        return peer

    _dialled: tuple[str, int]
    _prk: bytes
    _service: str

    def handshake(
        self, secret: bytes, service: str = SERVICE, limits: Limits = DEFAULT_LIMITS, *, nonce: bytes | None = None
    ) -> None:
        """All three messages."""
        self.send_m1(secret, service, limits, nonce=nonce)
        self.read_m2()
        self.send_raw(self.m3_frame)

    def send_m1(
        self, secret: bytes, service: str = SERVICE, limits: Limits = DEFAULT_LIMITS, *, nonce: bytes | None = None
    ) -> None:
        """Send M1; ``nonce`` is 32 random bytes unless given."""
        self.send_raw(self.make_m1(secret, service, limits, nonce=nonce))

    def make_m1(
        self, secret: bytes, service: str = SERVICE, limits: Limits = DEFAULT_LIMITS, *, nonce: bytes | None = None
    ) -> bytes:
        """M1 with its length, to be sent by :meth:`send_raw`; what comes back is held to it."""
        self.limits, self._service, self._prk = limits, service, wire.prk(secret)
        nonce = secrets.token_bytes(32) if nonce is None else nonce
        self.m1_message = wire.m1(wire.key_id(self._prk, service), limits, nonce)
        return wire.prefixed(self.m1_message)

    def read_m2(self, timeout: float | None = None) -> None:
        """Read and check M2 and derive the keys; M3 is then in :attr:`m3_frame`, to be sent by :meth:`send_raw`.

        :raises WireError: ``handshake_malformed``, ``version_unsupported``, ``early_data``, ``authentication_failed``.
        """
        self.server = wire.parse_m2(self.read_content(timeout, limit=96))
        if self._buffer:
            raise WireError("early_data", f"{len(self._buffer)} bytes behind M2")
        if self.server.nonce == wire.parse_m1(self.m1_message).nonce:
            raise WireError("authentication_failed", "the server's nonce is the client's")
        ends = wire.endpoint(self._dialled, self.sock.getsockname())
        th = wire.transcript(self._service, ends, self.m1_message, self.server.head)
        keys = wire.connection_keys(self._prk, th)
        tag_s, tag_c = wire.tags(keys, th)
        if self.server.tag != tag_s:
            raise WireError("authentication_failed", "tag_s")
        self.m3_frame = wire.prefixed(wire.m3(tag_c))
        self._adopt(keys, self.limits, self.server.limits)


class ServerPeer(Channel):
    """The server role, on a socket that :class:`Listener` accepted.

    :ivar m1_message: M1 as it came, and ``client``: its fields, once read.
    :ivar m2_message: M2 as it was sent.
    """

    _directions = ("s2c", "c2s")
    m1_message: bytes
    m2_message: bytes
    client: wire.M1
    _tag_c: bytes
    _keys: wire.Keys

    def handshake(
        self,
        secret: bytes,
        service: str = SERVICE,
        limits: Limits = DEFAULT_LIMITS,
        *,
        instance: bytes | None = None,
        nonce: bytes | None = None,
    ) -> None:
        """All three messages.

        :raises PeerClosed: when the client ends the connection.
        :raises WireError: ``key_unknown`` for another key or service, and what the steps raise.
        """
        self.read_m1()
        if self.client.key_id != wire.key_id(wire.prk(secret), service):
            raise WireError("key_unknown", self.client.key_id.hex())
        self.send_m2(secret, service, limits, instance=instance, nonce=nonce)
        self.read_m3()

    def read_m1(self, timeout: float | None = None) -> None:
        """Read M1; its key id is not looked at.

        :raises WireError: ``handshake_malformed``, ``version_unsupported``, ``early_data``.
        """
        self.m1_message = self.read_content(timeout, limit=64)
        self.client = wire.parse_m1(self.m1_message)
        if self._buffer:
            raise WireError("early_data", f"{len(self._buffer)} bytes behind M1")

    def send_m2(
        self,
        secret: bytes,
        service: str = SERVICE,
        limits: Limits = DEFAULT_LIMITS,
        *,
        instance: bytes | None = None,
        nonce: bytes | None = None,
    ) -> None:
        """Send M2; ``instance`` (8 bytes) and ``nonce`` (32) are random unless given."""
        self.send_raw(self.make_m2(secret, service, limits, instance=instance, nonce=nonce))

    def make_m2(
        self,
        secret: bytes,
        service: str = SERVICE,
        limits: Limits = DEFAULT_LIMITS,
        *,
        instance: bytes | None = None,
        nonce: bytes | None = None,
    ) -> bytes:
        """M2 with its length, to be sent by :meth:`send_raw`."""
        head = wire.m2_head(
            secrets.token_bytes(8) if instance is None else instance,
            limits,
            secrets.token_bytes(32) if nonce is None else nonce,
        )
        ends = wire.endpoint(self.sock.getsockname(), self.sock.getpeername())
        th = wire.transcript(service, ends, self.m1_message, head)
        self.limits = limits
        self._keys = wire.connection_keys(wire.prk(secret), th)
        tag_s, self._tag_c = wire.tags(self._keys, th)
        self.m2_message = wire.m2(head, tag_s)
        return wire.prefixed(self.m2_message)

    def read_m3(self, timeout: float | None = None) -> None:
        """Read and check M3; records follow.

        :raises WireError: ``handshake_malformed``, ``version_unsupported``, ``authentication_failed``.
        """
        if wire.parse_m3(self.read_content(timeout, limit=40)) != self._tag_c:
            raise WireError("authentication_failed", "tag_c")
        self._adopt(self._keys, self.limits, self.client.limits)


class Listener:
    """A listening socket on 127.0.0.1; a context manager that closes it (and not what it accepted).

    :ivar port: the port it got; ``port=0`` asks for any. A given one may be one that was in use a moment ago.
    """

    def __init__(self, port: int = 0, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout
        self.sock = socket.create_server((HOST, port), reuse_port=False)
        self.sock.settimeout(timeout)
        self.port: int = self.sock.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self.sock.close()

    def accept_raw(self) -> ServerPeer:
        """The next connection, before any byte of its handshake."""
        sock, _ = self.sock.accept()
        return ServerPeer(sock, self.timeout)

    def accept(
        self,
        secret: bytes,
        service: str = SERVICE,
        limits: Limits = DEFAULT_LIMITS,
        *,
        instance: bytes | None = None,
        nonce: bytes | None = None,
    ) -> ServerPeer:
        """The next connection, after its handshake; see :meth:`ServerPeer.handshake`."""
        peer = self.accept_raw()
        try:
            peer.handshake(secret, service, limits, instance=instance, nonce=nonce)
        except BaseException:
            peer.close()
            raise
        return peer
