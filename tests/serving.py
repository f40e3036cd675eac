"""Servers of the package inside the test's own reactor, on real sockets; raw peers go against them from threads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.threads import deferToThread

from ipc_twisted import Category, Keyring, SecureEnvelope, SecureIPCFactory, SecureIPCProtocol, connect, listen
from tests.honest import exchange
from tests.memory_link import SECRET, config
from tests.raw_peer import Peer

TIMEOUT = 20.0

P = ParamSpec("P")
T = TypeVar("T")


def within(awaitable: Deferred[T] | Coroutine[Deferred[Any], Any, T], seconds: float = TIMEOUT) -> Deferred[T]:
    """The same, but it fails instead of waiting for ever."""
    from twisted.internet import reactor

    deferred = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
    return deferred.addTimeout(seconds, reactor)


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run blocking code of a raw peer, while our side lives in the reactor."""
    return within(deferToThread(function, *args, **kwargs))


class Server:
    """What a test sees of one.

    :ivar handler: what becomes of envelopes; may be replaced.
    :ivar received: those that were handed over.
    """

    def __init__(self, factory: SecureIPCFactory, port: int) -> None:
        self.factory = factory
        self.port = port
        self.handler: Callable[[SecureEnvelope, SecureIPCProtocol], Any] | None = None
        self.received: list[SecureEnvelope] = []

    @property
    def counters(self) -> dict[tuple[str, str], int]:
        return self.factory.counters

    def peer(self, **options: Any) -> Peer:
        """A raw peer that has proved itself; for threads only."""
        return Peer.connect(self.port, SECRET, **options)

    def open(self) -> Peer:
        """A raw peer that has said nothing; for threads only."""
        return Peer.open(self.port)

    async def connect(self, **options: Any) -> SecureIPCProtocol:
        """The package's own client."""
        from twisted.internet import reactor

        return await within(connect(reactor, self.port, Keyring([SECRET]), **options))

    def assert_serves(self, *peers: Peer) -> None:
        """An honest newcomer and the connections that were there before get receipts; for threads only."""
        with self.peer() as newcomer:
            exchange(newcomer, *peers, ts=int(self.factory.wall()))


@asynccontextmanager
async def serving(
    limits: Mapping[str, Any] | None = None,
    auth: Mapping[str, Any] | None = None,
    *,
    wall: Callable[[], float] = time.time,
    **more: Any,
) -> AsyncIterator[Server]:
    """A server on a free port; behind the block nothing of it is left."""
    from twisted.internet import reactor

    def handle(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        server.received.append(envelope)
        return None if server.handler is None else server.handler(envelope, connection)

    factory = SecureIPCFactory(reactor, config(limits, auth, **more), Keyring([SECRET]), handle, wall=wall)
    listening = await within(listen(reactor, factory))
    server = Server(factory, cast(IPv4Address, listening.getHost()).port)
    try:
        yield server
    finally:
        await within(maybeDeferred(listening.stopListening))
        left = list(factory.transports)
        for protocol in left:
            protocol.abandon(Category.SHUTTING_DOWN)
        await within(DeferredList([protocol.wait_closed() for protocol in left]))
