"""One connection in memory, on a :class:`~twisted.internet.task.Clock`: ours at one end, a raw peer at the other.

The transport acts as Twisted's does: an abort or a close takes effect in a later turn, and what was written is the
test's to read. The peer's socket is the other face of it: what it sends is received at once, what it reads is what was
written. Turns go by only when the test says so (:meth:`MemoryLink.turn`) or a peer waits for something.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from twisted.internet.error import ConnectionLost as ConnectionReset
from twisted.internet.task import Clock

from ipc_twisted import ExecutionIPCConfig, Keyring, SecureEnvelope, SecureIPCFactory, SecureIPCProtocol
from ipc_twisted.factory import SecureIPCClientFactory
from ipc_twisted.testing import NOW, MemoryTransport
from tests import wire_peer as wire
from tests.raw_channel import DEFAULT_LIMITS
from tests.raw_peer import HOST, Peer, ServerPeer

SECRET = bytes.fromhex("8d1f0c6a94b3e7725a1e66d0c3f2984bd7407ae915bc2638f0659ae2d31b7c84")
SERVER, CLIENT = ("127.0.0.1", 40_001), ("127.0.0.1", 50_000)


def config(limits: Mapping[str, Any] | None = None, auth: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """A checked configuration that takes ``job.run``."""
    section = {"allowed_kinds": ["job.run"], "limits": limits or {}, "auth": auth or {}}
    return ExecutionIPCConfig.from_mapping({**section, **more})


class MemorySocket:
    """The other end, with as much of a blocking socket as :class:`tests.raw_channel.Channel` needs."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def settimeout(self, _seconds: float) -> None:
        """Nothing blocks here."""

    def sendall(self, data: bytes) -> None:
        transport = self.transport
        if not (transport.aborted or transport.closing or transport.lost):
            transport.protocol.dataReceived(bytes(data))

    def recv(self, _count: int) -> bytes:
        transport = self.transport
        if not transport.unread:
            transport.clock.advance(0)
        if transport.unread:
            return transport.take()
        if transport.aborted or transport.closing or transport.half_closed or transport.lost:
            return b""
        raise TimeoutError("nothing was written")

    def shutdown(self, _how: int) -> None:
        self.transport.protocol.readConnectionLost()

    def setsockopt(self, _level: int, option: int, _value: object) -> None:
        if option == socket.SO_LINGER:  # what comes next is a close(), which resets
            self.transport.lose(ConnectionReset())

    def close(self) -> None:
        """Our end is told by a test, not by the garbage collector."""

    def getsockname(self) -> tuple[str, int]:
        return self.transport.ends[1]

    def getpeername(self) -> tuple[str, int]:
        return self.transport.ends[0]


class MemoryServer:
    """A :class:`SecureIPCFactory` on a clock.

    :ivar received: the envelopes that were handed over, with their connections.
    :ivar handler: what becomes of them; may be replaced.
    :ivar skew: seconds that the wall clock is off the other one.
    """

    def __init__(
        self,
        limits: Mapping[str, Any] | None = None,
        auth: Mapping[str, Any] | None = None,
        handler: Callable[[SecureEnvelope, SecureIPCProtocol], Any] | None = None,
        **more: Any,
    ) -> None:
        self.clock = Clock()
        self.skew = 0.0
        self.received: list[tuple[SecureEnvelope, SecureIPCProtocol]] = []
        self.handler = handler
        self.factory = SecureIPCFactory(
            self.clock, config(limits, auth, **more), Keyring([SECRET]), self._handle, wall=self.wall
        )
        self._clients = 0

    def wall(self) -> float:
        return NOW + self.clock.seconds() + self.skew

    def _handle(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        self.received.append((envelope, connection))
        return None if self.handler is None else self.handler(envelope, connection)

    def accept(self) -> MemoryLink:
        """A new connection of which nothing is known."""
        transport = MemoryTransport(self.clock, SERVER, (CLIENT[0], CLIENT[1] + self._clients))
        self._clients += 1
        return MemoryLink(self, transport, cast(SecureIPCProtocol, self.factory.buildProtocol(None)))

    def connect(self, limits: wire.Limits = DEFAULT_LIMITS) -> MemoryLink:
        """A new connection that is authenticated."""
        link = self.accept()
        link.peer.handshake(SECRET, limits=limits)
        return link

    def turn(self, seconds: float = 0) -> None:
        """Let a turn of the reactor go by."""
        self.clock.advance(seconds)


class MemoryLink:
    """One connection to a :class:`MemoryServer`: our protocol, its transport, and the raw peer."""

    def __init__(self, server: MemoryServer, transport: MemoryTransport, protocol: SecureIPCProtocol) -> None:
        self.server = server
        self.transport = transport
        self.protocol = protocol
        transport.protocol = protocol
        self.peer = Peer(cast(Any, MemorySocket(transport)), 1.0)
        self.peer._dialled = SERVER
        protocol.makeConnection(cast(Any, transport))

    def send(self, payload: bytes = b"", **overrides: Any) -> int:
        """An envelope of the peer's, now by our wall clock."""
        return self.peer.send_envelope("job.run", payload, **{"ts": int(self.server.wall()), **overrides})

    def frame(self, payload: bytes = b"", **overrides: Any) -> bytes:
        """As :meth:`send`, but only made."""
        return self.peer.envelope_frame("job.run", payload, **{"ts": int(self.server.wall()), **overrides})[1]


class MemoryClient:
    """The dialling side on a clock, and a raw peer that serves it.

    :param peer: where the socket says that it is connected to; it dials :data:`SERVER`.
    """

    def __init__(
        self, limits: Mapping[str, Any] | None = None, handler: Any = None, *, peer: tuple[str, int] = SERVER
    ) -> None:
        self.clock = Clock()
        self.received: list[SecureEnvelope] = []
        self.factory = SecureIPCClientFactory(
            self.clock,
            config(limits),
            handler or (lambda envelope, _connection: self.received.append(envelope)),
            wall=lambda: NOW + self.clock.seconds(),
        )
        self.factory.aim(SERVER[1], Keyring([SECRET]), "execution_ipc")
        self.protocol = protocol = cast(SecureIPCProtocol, self.factory.buildProtocol(None))
        self.transport = MemoryTransport(self.clock, CLIENT, peer)
        self.transport.protocol = protocol
        self.peer = ServerPeer(cast(Any, MemorySocket(self.transport)), 1.0)
        self.protocol.makeConnection(cast(Any, self.transport))


__all__ = ["HOST", "NOW", "SECRET", "SERVER", "MemoryClient", "MemoryLink", "MemoryServer", "MemoryTransport", "config"]
