"""What outlives a connection: :class:`SecureIPCFactory` for the server, :class:`SecureIPCClientFactory` for who dials.

Both hold the replay guard, the limits, the counters and the log; the server's also who is pending and who is in.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from ipc_twisted.config import LOOPBACK, SPARE_DESCRIPTORS, ExecutionIPCConfig
from ipc_twisted.core.connection import Connection, Policy
from ipc_twisted.core.handshake import NONCE_BYTES, ClientHandshake, Endpoint, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.core.replay import MemoryReplayGuard, ReplayGuard
from ipc_twisted.core.verifier import Rejection
from ipc_twisted.deadline import Deadlines
from ipc_twisted.errors import Category, ConfigError, HandshakeError
from ipc_twisted.keys import Keyring
from ipc_twisted.log_limit import LogLimit
from ipc_twisted.protocol import Handler, SecureIPCProtocol
from ipc_twisted.strangers import Strangers

INSTANCE_BYTES = 8

ACCEPTS_PER_TURN = 1
"""Twisted would accept a hundred in one turn, and more at each turn that was full, until all pending places turn over
between two looks at what has arrived on them. What is not accepted yet waits in the kernel."""

_log = Logger(namespace="ipc_twisted")


def _handshake_missed(protocol: SecureIPCProtocol) -> None:
    protocol.abandon(Category.HANDSHAKE_TIMEOUT)


class SharedFactory(Factory[SecureIPCProtocol]):
    """What both sides have.

    :param clock: the reactor: time for deadlines.
    :param config: checked.
    :param handler: called with each envelope that passed the chain, and its connection.
    :param wall: wall-clock time in unix seconds, for ``ts``.
    :param random: ``random(n)`` gives n random bytes.
    :ivar connections: those that are authenticated and not ending.
    :ivar pending: the server's strangers: those that have not proved themselves.
    :ivar transports: all whose transport is not gone, strangers and those that are ending too.
    :ivar accepted: envelopes handed over.
    :ivar handlers: those of them whose handlers have not ended, also of connections that have.
    :ivar bytes_received: in total; ``bytes_sent`` likewise.
    :ivar sent: what became of our messages: how many were ``accepted``, and how many ended in each other category.
    :ivar counters: how often each category occurred, by where: ``("rejected", category)``, ``("ended", category)`` …
    """

    noisy = False
    listening = False
    """The next connection may come any time."""

    kept_outboxes: tuple[Outbox, ...] = ()
    """Those that outlive a connection."""

    def __init__(
        self,
        clock: IReactorTime,
        config: ExecutionIPCConfig,
        handler: Handler,
        *,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.clock = clock
        self.config = config
        self.handler = handler
        self.wall = wall
        self.random = random
        self.guard = self._new_guard()
        self.accepted = self.handlers = 0
        self.bytes_received = self.bytes_sent = 0
        self.sent: Counter[str] = Counter()
        self.counters: Counter[tuple[str, str]] = Counter()
        self.connections: set[SecureIPCProtocol] = set()
        self.transports: set[SecureIPCProtocol] = set()
        self.pending = Strangers(config.limits.max_pending_handshakes)
        self._handshakes = Deadlines(clock, config.limits.handshake_timeout_seconds, _handshake_missed)
        self._limit = LogLimit(clock)
        self._policy = Policy(frozenset(config.allowed_kinds), config.wire_limits)
        self._handlers_ended: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> SecureIPCProtocol | None:
        protocol = SecureIPCProtocol(self)
        protocol.factory = self
        return protocol

    def make_connection(self, protocol: SecureIPCProtocol) -> Connection:
        """The core's part of a new connection; each side has its own."""
        raise NotImplementedError

    def make_outbox(self, peer: str) -> Outbox:
        """For the messages to the peer at this address."""
        return Outbox(self.config.limits.send_buffer_bytes, self.sent, partial(self.delivery_unclaimed, peer))

    def now(self) -> int:
        """Wall-clock time, whole unix seconds.

        If it fell behind what the guard has forgotten, everything begins anew with a new guard: fresh keys make that
        safe, and all messages would be rejected otherwise.
        """
        now = int(self.wall())
        if self.guard.floor > now + 1:
            _log.warn(
                "the clock was set back behind the replay window: all connections begin anew ({category})",
                event="clock_stepped",
                category=Category.CLOCK_STEPPED,
            )
            self.guard = self._new_guard()
            for protocol in list(self.transports):  # strangers too: their handshake began under the old guard
                protocol.end(Category.CLOCK_STEPPED)
        return now

    def _new_guard(self) -> ReplayGuard:
        auth = self.config.auth
        return MemoryReplayGuard(auth.nonce_cache_size, auth.ttl_seconds, self.random(INSTANCE_BYTES))

    # What connections tell

    def connection_made(self, protocol: SecureIPCProtocol) -> None:
        """Nothing is known of the peer, and its time for the handshake runs."""
        self.transports.add(protocol)
        self._handshakes.start(protocol)

    def _handshake_over(self, protocol: SecureIPCProtocol) -> None:
        self._handshakes.stop(protocol)
        if not self.listening:
            self._handshakes.rest()

    def handshake_answered(self, protocol: SecureIPCProtocol) -> None:
        """The other side's first message was in order, and ours is out."""

    def connection_authenticated(self, protocol: SecureIPCProtocol) -> None:
        """It is in."""
        self._handshake_over(protocol)
        self.connections.add(protocol)
        self.counters["handshake", "authenticated"] += 1
        self._say(
            LogLevel.debug,
            None,
            "connection with {peer} authenticated",
            event="connection_authenticated",
            peer=protocol,
        )

    def connection_ending(self, protocol: SecureIPCProtocol) -> None:
        """It is over but for its transport."""
        self._handshake_over(protocol)
        self.connections.discard(protocol)
        category = protocol.category or Category.CONNECTION_LOST
        authenticated = protocol.authenticated
        self.counters["ended" if authenticated else "handshake", category] += 1
        if authenticated:
            self._say(
                LogLevel.debug if category in (Category.CLOSED, Category.SHUTTING_DOWN) else LogLevel.warn,
                category,
                "connection with {peer} ended: {category}",
                event="connection_ended",
                peer=protocol,
            )
        else:
            self._say(
                LogLevel.warn,
                category,
                "handshake with {peer} failed: {category}",
                event="handshake_failed",
                peer=protocol,
            )

    def connection_ended(self, protocol: SecureIPCProtocol) -> None:
        """Its transport is gone."""
        self.transports.discard(protocol)

    def handshake_error(self, category: Category) -> HandshakeError:
        """For who waits for the handshake."""
        return HandshakeError(category, "the handshake failed")

    def envelope_rejected(self, protocol: SecureIPCProtocol, rejection: Rejection) -> None:
        """Count it and say so; what the peer wrote is escaped. What comes while we stop is nobody's fault."""
        self.counters["rejected", rejection.category] += 1
        self._say(
            LogLevel.info if rejection.category is Category.SHUTTING_DOWN else LogLevel.warn,
            rejection.category,
            "rejected an envelope from {peer}: {category} kind={kind!r} trace_id={trace_id!r}",
            event="envelope_rejected",
            peer=protocol,
            kind=rejection.kind,
            trace_id=rejection.trace_id,
        )

    def delivery_unclaimed(self, peer: str, delivery: Delivery) -> None:
        """Nobody awaits it: count it and say so."""
        error = delivery.exception()
        if error is not None:
            self.counters["unclaimed", error.category] += 1
            self._say(
                LogLevel.warn,
                error.category,
                "a message to {peer} was not accepted: {category} kind={kind!r} trace_id={trace_id!r}",
                event="delivery_unclaimed",
                peer=peer,
                kind=delivery.kind,
                trace_id=delivery.trace_id,
            )

    def handler_failed(self, failure: Failure, trace_id: str | None) -> None:
        """Ours to log: a handler is the application's code. But a peer can make it fail again and again."""
        self.counters["handler", "failed"] += 1
        left_out = self._limit.admit(f"handler {failure.type}")
        if left_out is not None:
            more = f" (and {left_out} more like it, left out)" if left_out else ""
            _log.failure(
                "a handler failed: trace_id={trace_id!r}" + more,
                failure,
                event="handler_failed",
                trace_id=trace_id,
                left_out=left_out,
            )

    def handler_ended(self) -> None:
        """Tell who waits for all of them."""
        self.handlers -= 1
        if not self.handlers:
            waiting, self._handlers_ended = self._handlers_ended, []
            for deferred in waiting:
                deferred.callback(None)

    def when_handlers_end(self) -> Deferred[None]:
        """Wait until no handler runs, of whichever connection."""
        if not self.handlers:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._handlers_ended.append(waiting)
        return waiting

    def _say(
        self, level: Any, category: Category | None, message: str, peer: SecureIPCProtocol | str, **fields: object
    ) -> None:
        """A line that a peer can cause: bounded per message and category.

        :param peer: its address, or the connection, which is asked for it only where the line is written.
        """
        left_out = self._limit.admit((message, category))
        if left_out is None:
            return
        if left_out:
            message += " (and {left_out} more like it, left out)"
        if category is not None:
            fields["category"] = str(category)
        address = peer if isinstance(peer, str) else peer.peer_address
        _log.emit(level, message, left_out=left_out, peer=address, **fields)


class SecureIPCFactory(SharedFactory):
    """The server's side: admits connections, bounded before and after they have proved themselves.

    :param keyring: whose holders may connect.
    :param clock: the reactor.
    :param handler: called with each envelope that passed the chain, and its connection.
    :param more: ``wall()``, wall-clock time in unix seconds; ``random(n)``, n random bytes.
    :raises ConfigError: ``config`` or ``keyring`` is something else.
    """

    def __init__(
        self, clock: IReactorTime, config: ExecutionIPCConfig, keyring: Keyring, handler: Handler, **more: Any
    ) -> None:
        if not isinstance(config, ExecutionIPCConfig) or not isinstance(keyring, Keyring):
            raise ConfigError(["config and keyring: must be an ExecutionIPCConfig and a Keyring"])
        super().__init__(clock, config, handler, **more)
        self._prks: dict[bytes, Prk] = keyring.by_id(config.service)
        self.ports: list[Any] = []
        self._most_transports = config.descriptors - SPARE_DESCRIPTORS // 2

    def startFactory(self) -> None:
        """The first port is there."""
        self.listening = True

    def stopFactory(self) -> None:
        """The last port is gone."""
        self.listening = False
        self._handshakes.rest()

    def use_keyring(self, keyring: Keyring) -> None:
        """Accept these keys from now on, and no others: connections under a key that is not among them are ended
        with ``key_unknown``, and handshakes under one will fail."""
        kept = keyring.by_id(self.config.service)
        self._prks.clear()  # the one that pending handshakes look into, too
        self._prks.update(kept)
        for protocol in list(self.connections):
            if protocol.key_id not in kept:
                protocol.end(Category.KEY_UNKNOWN)

    def make_connection(self, protocol: SecureIPCProtocol) -> Connection:
        host, peer = protocol.transport.getHost(), protocol.transport.getPeer()
        handshake = ServerHandshake(
            self._prks,
            self.config.service,
            self._policy.limits,
            self.guard.instance,
            Endpoint(host.host, host.port, peer.host, peer.port),
            self.random(NONCE_BYTES),
        )
        return Connection(handshake, self._policy, self.guard, protocol)

    def buildProtocol(self, addr: IAddress | None) -> SecureIPCProtocol | None:
        """None, which closes the socket at once: descriptors must not run out, also where many that were given up
        wait for the next turn to be closed."""
        for port in self.ports:
            port.numberAccepts = 0  # not the number it accepts in this turn, so behind it Twisted does not raise that
        if len(self.transports) >= self._most_transports:
            self.counters["handshake", "refused"] += 1
            return None
        return super().buildProtocol(addr)

    def connection_made(self, protocol: SecureIPCProtocol) -> None:
        """A newcomer waits with the other strangers."""
        super().connection_made(protocol)
        self.pending.add(protocol)

    def handshake_answered(self, protocol: SecureIPCProtocol) -> None:
        """It named a key that we have."""
        self.pending.named_a_key(protocol)

    def connection_authenticated(self, protocol: SecureIPCProtocol) -> None:
        """It has proved itself; only now can it be told that there is no place."""
        self.pending.discard(protocol)
        full = len(self.connections) >= self.config.limits.max_connections
        super().connection_authenticated(protocol)
        if full:
            protocol.end(Category.TOO_MANY_CONNECTIONS)

    def connection_ending(self, protocol: SecureIPCProtocol) -> None:
        self.pending.discard(protocol)
        super().connection_ending(protocol)


class SecureIPCClientFactory(SharedFactory):
    """The dialling side; :meth:`aim` it before each connection."""

    _port: int
    _keyring: Keyring
    _service: str
    _hint: str

    def aim(self, port: int, keyring: Keyring, service: str, hint: str = "") -> None:
        """Say whom the next connection is dialled to.

        :param hint: what is known of the server, for the errors: a sentence or nothing.
        """
        self._port, self._keyring, self._service, self._hint = port, keyring, service, hint

    def make_connection(self, protocol: SecureIPCProtocol) -> Connection:
        own = protocol.transport.getHost()
        handshake = ClientHandshake(
            self._keyring.current,
            self._service,
            self._policy.limits,
            Endpoint(LOOPBACK, self._port, own.host, own.port),  # what was dialled, not what the socket says
            self.random(NONCE_BYTES),
        )
        return Connection(handshake, self._policy, self.guard, protocol)

    def handshake_error(self, category: Category) -> HandshakeError:
        """What it can be, as far as a side that gets no answer can tell."""
        key_id = self._keyring.current.key_id(self._service).hex()
        ours = f"ours is key id {key_id} for service {self._service!r}"
        candidates = {
            Category.HANDSHAKE_REFUSED: f"the server ended the handshake without an answer. It can be: another key, or "
            f"another service name ({ours}); another protocol version; too many pending connections; or no ipc_twisted "
            "server at all",
            Category.AUTHENTICATION_FAILED: f"the server could not prove that it holds the key ({ours}): another "
            "program has taken the port, or the connection is being relayed",
            Category.HANDSHAKE_TIMEOUT: "the server did not finish the handshake in "
            f"{self.config.limits.handshake_timeout_seconds} s: it is stopped or blocked, or no server of ours",
            Category.HANDSHAKE_MALFORMED: "what listens there is no ipc_twisted server",
            Category.VERSION_UNSUPPORTED: "it speaks another protocol version; install one release on both sides",
            Category.EARLY_DATA: "what listens there speaks out of turn; it is no ipc_twisted server",
            Category.SELF_CONNECT: "nobody listens there: the kernel connected this socket to itself",
        }
        where = f"127.0.0.1:{self._port}: "
        return HandshakeError(category, where + self._hint + candidates.get(category, "the connection ended"))
