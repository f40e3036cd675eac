"""The client as a Twisted service: connects again, and keeps what has no outcome until it is known."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ipc_twisted.config import ExecutionIPCConfig
from ipc_twisted.core.resend import ResendingOutbox
from ipc_twisted.delivery import Delivery, when_drained
from ipc_twisted.dialling import Dialler, KeySource
from ipc_twisted.draining import ended, grace
from ipc_twisted.errors import Category, IPCError, NotConnected
from ipc_twisted.factory import SecureIPCClientFactory
from ipc_twisted.origin import Origin
from ipc_twisted.protocol import Handler, SecureIPCProtocol
from ipc_twisted.statistics import Statistics, statistics

_log = Logger(namespace="ipc_twisted")

RETRY_MAX_SECONDS = 1.5
"""No two attempts lie further apart, so a client is back that soon after the server's connection file."""

TICK_SECONDS = 1.0
"""How often what waits is looked at: messages expire, and those that were put off go again."""

_SPREAD_SECONDS = 0.5  # so that all clients of a server that was started again do not come at once
_retry_delay = backoffPolicy(
    initialDelay=0.1,
    maxDelay=RETRY_MAX_SECONDS - _SPREAD_SECONDS,
    factor=2.0,
    jitter=lambda: random.uniform(0, _SPREAD_SECONDS),  # noqa: S311  # spreads load, guards nothing
)


class LinkState(NamedTuple):
    """How the link of a client service is.

    :ivar connected_since: unix seconds; None: not connected.
    :ivar attempts: to connect, since it was last connected or started; 0 while connected.
    :ivar last_error: why the last attempt failed or the last connection ended, with its ``category``; None: nothing
        has happened yet. It stays when the link is well again.
    :ivar unsettled: messages without an outcome.
    :ivar buffered: bytes they count for, out of ``limits.send_buffer_bytes``.
    """

    connected_since: float | None
    attempts: int
    last_error: IPCError | None
    unsettled: int
    buffered: int


class _Factory(SecureIPCClientFactory):
    """All of its connections, one after the other, write from one outbox."""

    def __init__(self, clock: Any, config: ExecutionIPCConfig, handler: Handler) -> None:
        super().__init__(clock, config, handler)
        unclaimed = partial(self.delivery_unclaimed, "the server")
        self.outbox = ResendingOutbox(config.limits.send_buffer_bytes, self.sent, unclaimed)
        self.kept_outboxes = (self.outbox,)

    def make_outbox(self, peer: str) -> ResendingOutbox:
        return self.outbox


class ExecutionIPCClientService(Service):
    """Stay connected to a server on this host, whatever port and key it has after a restart.

    :meth:`send` works while there is no connection, too: what has no outcome is kept, within
    ``limits.send_buffer_bytes``, and sent again where that cannot hand it over twice. For what the server sends,
    ``handler`` is called as for :func:`ipc_twisted.connect`.

    :param reactor: Twisted's.
    :param where: the server's connection file, read anew for every attempt; or its port.
    :param keyring: the shared secret, or the key file it is in, which is read anew for every attempt; None: the
        generated key that the connection file names.
    :param allowed_kinds: and ``handler``, ``service``, ``config``: as for :func:`ipc_twisted.connect`.
    :raises ConfigError: a wrong argument.
    """

    name = "ipc_twisted client"

    def __init__(
        self,
        reactor: Any,
        where: str | os.PathLike[str] | int,
        keyring: KeySource | None = None,
        *,
        allowed_kinds: Iterable[str] = (),
        handler: Handler | None = None,
        service: str | None = None,
        config: ExecutionIPCConfig | None = None,
    ) -> None:
        self._dialler = Dialler(reactor, where, keyring, allowed_kinds, handler, service, config)
        self._clock = reactor
        self._limits = self._dialler.config.limits
        self._ttl = self._dialler.config.auth.ttl_seconds
        self._factory = _Factory(reactor, self._dialler.config, self._dialler.handler)
        self._outbox = self._factory.outbox
        self._origin: Origin | None = None
        self._connection: SecureIPCProtocol | None = None
        self._connected_since: float | None = None
        self._attempts = 0
        self._last_error: IPCError | None = None
        self._waiting: list[tuple[Deferred[SecureIPCProtocol], int | None]] = []
        self._tick: IDelayedCall
        self._loop: Deferred[None] | None = None
        self._cut_off = False
        self._idle: Deferred[None] | None = None  # while it stops: fires once nothing is under way

    # What applications use

    def send(
        self,
        kind: str,
        payload_bytes: bytes,
        *,
        trace_id: str | None = None,
        reply_to: str | None = None,
        target: str | list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Delivery:
        """Queue one message, connected or not; ``await`` the returned :class:`Delivery` for its outcome.

        Parameters and errors are those of :meth:`SecureIPCProtocol.send`, but without a connection the server's own
        limits are not known: what it can never take then ends rejected, ``payload_too_large``.

        :raises NotConnected: the service was not started, or is stopping.
        """
        if self._origin is None or self._idle is not None:
            raise NotConnected(Category.NOT_CONNECTED, "the client service is not running: start it, or send earlier")
        if self._connection is not None and self._connection.is_open:
            return self._connection.send(
                kind, payload_bytes, trace_id=trace_id, reply_to=reply_to, target=target, headers=headers
            )
        delivery = self._origin.message(kind, payload_bytes, trace_id, reply_to, target, headers)
        self._outbox.add(delivery)
        return delivery

    def drained(self) -> Deferred[None]:
        """Wait until at least half of ``limits.send_buffer_bytes`` is free. Waiters go on in order, one at a time."""
        return when_drained(self._outbox)

    def whenConnected(self, failAfterFailures: int | None = None) -> Deferred[SecureIPCProtocol]:
        """Wait for the connection there is, or the next one. As Twisted's ``ClientService`` has it.

        :param failAfterFailures: give up after so many failed attempts, with the error of the last; None: never.
        :raises CancelledError: on the Deferred: the service was stopped.
        """
        if self._connection is not None and self._connection.is_open:
            return succeed(self._connection)
        if self._loop is None:
            return fail(CancelledError())
        waiting: Deferred[SecureIPCProtocol] = Deferred()
        self._waiting.append((waiting, failAfterFailures))
        return waiting

    @property
    def state(self) -> LinkState:
        """How the link is now."""
        return LinkState(
            self._connected_since, self._attempts, self._last_error, self._outbox.unsettled, self._outbox.buffered
        )

    def statistics(self) -> Statistics:
        """What was counted since the service was made."""
        return statistics(self._factory)

    def use_keyring(self, keyring: KeySource) -> None:
        """Go over to another key: the connection there is ends in order, the next one is made with it."""
        self._dialler.use_keys(keyring)
        if self._connection is not None:
            self._connection.end(Category.CLOSED)

    # What Twisted calls

    def startService(self) -> None:
        """Begin to connect.

        :raises RuntimeError: it runs, or has not stopped yet: await :meth:`stopService`.
        """
        if self._loop is not None:
            raise RuntimeError("the client service has not stopped: await stopService() before it is started again")
        super().startService()
        self._origin = Origin(time.time)
        self._idle = None
        self._cut_off = False
        self._tick = self._clock.callLater(TICK_SECONDS, self._look)
        self._loop = Deferred.fromCoroutine(self._stay_connected())

    def stopService(self) -> Deferred[None]:
        """Take no more messages, let those without an outcome learn it and handlers end, within
        ``limits.drain_seconds``; connect again for it if need be. What is left then ends rejected, or unknown."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    # How it goes

    async def _stay_connected(self) -> None:
        """Not by :class:`twisted.application.internet.ClientService`: that logs an unhandled error for every connection
        that ends while it is prepared, which each refused handshake does."""
        while True:
            self._attempts += 1
            try:
                connection = await self._dialler.dial(self._factory)
            except IPCError as problem:
                self._failed(problem)
            except Exception:
                if not self._cut_off:
                    _log.failure("an attempt to connect failed in a way that it should not have", event="attempt_error")
            else:
                self._connected(connection)
                category = await connection.wait_closed()
                self._connection = self._connected_since = None
                self._last_error = NotConnected(category, "the connection ended")
            if self._cut_off or self._is_done():
                return
            await deferLater(self._clock, _retry_delay(self._attempts))

    def _connected(self, connection: SecureIPCProtocol) -> None:
        self._connection = connection
        self._connected_since = time.time()
        self._attempts = 0
        if connection.peer_limits is not None:
            self._ttl = connection.peer_limits.ttl_seconds
        waiting, self._waiting = self._waiting, []
        for deferred, _ in waiting:
            deferred.callback(connection)
        if self._idle is not None:
            connection.drain(Category.SHUTTING_DOWN)
        connection.flush()

    def _failed(self, problem: IPCError) -> None:
        if self._last_error is None or str(problem) != str(self._last_error):  # once, not at every attempt
            _log.info("not connected: {problem}", event="not_connected", problem=problem)
        self._last_error = problem
        waiting, self._waiting = self._waiting, []
        for deferred, failures in waiting:
            if failures is None or failures > 1:
                self._waiting.append((deferred, None if failures is None else failures - 1))
            else:
                deferred.errback(problem)

    def _look(self) -> None:
        """Once a second. Not by :class:`twisted.internet.task.LoopingCall`, which installs the global reactor."""
        self._tick = self._clock.callLater(TICK_SECONDS, self._look)
        self._outbox.expire(self._factory.now() - self._ttl)
        self._outbox.requeue()
        if self._connection is not None:
            self._connection.flush()
        self._is_done()

    def _is_done(self) -> bool:
        """It is stopping, and nothing is under way."""
        if self._idle is None or self._connection is not None or self._outbox.buffered or self._factory.handlers:
            return False
        if not self._idle.called:
            self._idle.callback(None)
        return True

    async def _stop(self) -> None:
        if self._loop is None or self._idle is not None:
            return
        self._idle = Deferred()
        seconds = self._limits.drain_seconds
        last = grace(seconds)
        if self._connection is not None:
            self._connection.drain(Category.SHUTTING_DOWN)
        self._is_done()
        if not await ended([self._idle], self._clock, seconds - last):
            for connection in list(self._factory.transports):
                connection.end(Category.SHUTTING_DOWN)
            await ended([connection.wait_closed() for connection in list(self._factory.transports)], self._clock, last)
        loop, self._loop = self._loop, None
        self._cut_off = True
        loop.addErrback(lambda failure: failure.trap(CancelledError))
        loop.cancel()
        for connection in list(self._factory.transports):
            connection.abandon(Category.SHUTTING_DOWN)
            await connection.wait_closed()
        self._tick.cancel()
        self._connection = self._connected_since = None
        self._outbox.give_up(Category.SHUTTING_DOWN)
        waiting, self._waiting = self._waiting, []
        for deferred, _ in waiting:
            deferred.errback(CancelledError())
