"""For tests of code that uses the link: both ends in memory, on a clock that the test moves. No socket, no reactor.

:class:`LinkedPair` has a real server and a real client of the package; only what lies between their transports is
replaced. It works under trial and under pytest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from ipc_twisted.config import LOOPBACK, ExecutionIPCConfig
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.framing import LENGTH_BYTES
from ipc_twisted.factory import SecureIPCClientFactory, SecureIPCFactory
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import Handler, SecureIPCProtocol

NOW = 1_800_000_000
"""What the wall clock of both ends says, in unix seconds, when the :class:`Clock` is at 0."""

_SERVER, _CLIENT = (LOOPBACK, 40_001), (LOOPBACK, 50_000)


class MemoryTransport(StringTransport):
    """What a TCP transport does for our protocol, without a socket: an end takes effect in a later turn.

    :ivar writes: what was written, call by call.
    :ivar dataBuffer: and ``offset``, ``_tempDataLen``: what Twisted's holds; nothing, unless a test says so.
    :ivar aborted: and ``closing``, ``half_closed``: what the protocol asked for.
    :ivar lost: it is gone.
    """

    dataBuffer = b""  # noqa: N815  # Twisted's name
    offset = 0
    _tempDataLen = 0  # noqa: N815  # Twisted's name

    def __init__(self, clock: Clock, host: tuple[str, int], peer: tuple[str, int]) -> None:
        super().__init__(IPv4Address("TCP", *host), IPv4Address("TCP", *peer))
        self.clock = clock
        self.ends = host, peer
        self.protocol: SecureIPCProtocol
        self.writes: list[bytes] = []
        self.aborted = self.closing = self.half_closed = self.write_side_gone = self.lost = False
        self.unread = bytearray()

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802  # Twisted's name
        """Nothing is delayed here."""

    def write(self, data: bytes) -> None:
        if self.half_closed or self.closing or self.aborted:
            raise AssertionError("written behind the end")
        self.writes.append(bytes(data))
        self.unread += data

    def writeSomeData(self, data: memoryview) -> int:  # noqa: N802  # Twisted's name
        """What goes to the kernel at once: all of it."""
        self.write(bytes(data))
        return len(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:  # noqa: N802  # Twisted's name
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        if self.producer is not None:
            raise AssertionError("a transport with a producer never ends its writing side")
        if not self.half_closed:
            self.half_closed = True
            self.clock.callLater(0, self._write_side_gone)

    def _write_side_gone(self) -> None:
        if not self.lost:
            self.write_side_gone = True
            self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        if self.producer is not None:
            raise AssertionError("a transport with a producer never closes")
        if self.write_side_gone:
            self.lose(ConnectionDone())  # as Twisted does: at once, within this call
        elif not self.closing:
            self.closing = True
            self.clock.callLater(0, self.lose, ConnectionDone())

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """The socket is gone."""
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(reason))

    def take(self) -> bytes:
        """What was written and not yet read."""
        taken = bytes(self.unread)
        self.unread.clear()
        return taken


class Wire:
    """One direction of a connection.

    :ivar delay: seconds that pass until what is written from now on arrives; never before what was written earlier.
    :ivar frames: whole frames that were written, the handshake's too, each with its length in front.
    """

    def __init__(self, clock: Clock, receiver: MemoryTransport, handshake_messages: int) -> None:
        self.delay = 0.0
        self.frames: list[bytes] = []
        self._clock = clock
        self._receiver = receiver
        self._handshake_messages = handshake_messages
        self._cut = bytearray()
        self._last = 0.0
        self._under_way: deque[Callable[[], None]] = deque()

    @property
    def records(self) -> list[bytes]:
        """The signed records that were written: all frames behind the handshake."""
        return self.frames[self._handshake_messages :]

    def inject(self, data: bytes) -> None:
        """Let bytes arrive that the sender never wrote, behind what is under way."""
        self._carry(self._arrive, data)

    def replay(self, record: int = -1) -> None:
        """Let a record arrive again, byte for byte.

        :param record: its index in :attr:`records`.
        :raises IndexError: there is none.
        """
        self.inject(self.records[record])

    def forge(self, record: int = -1) -> None:
        """Let a record arrive again with its last byte changed, so that its signature does not hold.

        :param record: its index in :attr:`records`.
        :raises IndexError: there is none.
        """
        original = self.records[record]
        self.inject(original[:-1] + bytes([original[-1] ^ 1]))

    def _written(self, data: bytes) -> None:
        self._cut += data
        while len(self._cut) >= LENGTH_BYTES:
            size = LENGTH_BYTES + int.from_bytes(self._cut[:LENGTH_BYTES])
            if len(self._cut) < size:
                break
            self.frames.append(bytes(self._cut[:size]))
            del self._cut[:size]
        self._carry(self._arrive, data)

    def _carry(self, what: Any, *arguments: Any) -> None:
        """In order, whatever the delays."""
        self._last = max(self._last, self._clock.seconds() + self.delay)
        self._under_way.append(partial(what, *arguments))
        self._clock.callLater(self._last - self._clock.seconds(), self._next)

    def _next(self) -> None:
        """The first that is under way, not the one whose timer fired: for times that are the same, floats round."""
        self._under_way.popleft()()

    def _arrive(self, data: bytes) -> None:
        receiver = self._receiver
        if not (receiver.aborted or receiver.closing or receiver.lost):
            receiver.protocol.dataReceived(data)

    def _end_arrives(self) -> None:
        if not self._receiver.lost:
            self._receiver.protocol.readConnectionLost()

    def _reset_arrives(self) -> None:
        self._receiver.lose(ConnectionLost())


class _LinkedTransport(MemoryTransport):
    """One whose bytes and end go down a wire."""

    out: Wire

    def write(self, data: bytes) -> None:
        super().write(data)
        self.out._written(self.take())

    def _write_side_gone(self) -> None:
        if not self.lost:
            self.out._carry(self.out._end_arrives)
        super()._write_side_gone()

    def lose(self, reason: Exception) -> None:
        if not self.lost:
            if isinstance(reason, ConnectionAborted):
                self.out._carry(self.out._reset_arrives)
            elif not self.write_side_gone:
                self.out._carry(self.out._end_arrives)
        super().lose(reason)


class LinkedPair:
    """A server and a client that are connected and have proved themselves to each other, under a key of their own.

    Nothing happens until the test calls :meth:`advance`: what is sent then arrives, handlers run, timers fire.

    :param config: the server's.
    :param handler: the server's, as for :class:`ipc_twisted.ExecutionIPCService`; None: only :attr:`server_received`.
    :param client_config: what the client takes; None: the same as the server.
    :param client_handler: for what the server sends; None: only :attr:`client_received`.
    :ivar clock: of both ends.
    :ivar server: the server's end of the connection; ``client``: the other. Both send, close, and have a ``category``.
    :ivar server_factory: what outlives the connection, such as counters; ``client_factory`` likewise.
    :ivar to_server: the :class:`Wire` from the client; ``to_client``: that from the server.
    :ivar server_received: the envelopes that were handed over; ``client_received`` likewise.
    """

    server: SecureIPCProtocol
    client: SecureIPCProtocol
    to_server: Wire
    to_client: Wire

    def __init__(
        self,
        config: ExecutionIPCConfig,
        handler: Handler | None = None,
        *,
        client_config: ExecutionIPCConfig | None = None,
        client_handler: Handler | None = None,
    ) -> None:
        self.clock = Clock()
        self.server_received: list[SecureEnvelope] = []
        self.client_received: list[SecureEnvelope] = []
        keyring = Keyring.generate()
        self.server_factory = SecureIPCFactory(
            self.clock, config, keyring, _recording(self.server_received, handler), wall=self.wall
        )
        self.client_factory = SecureIPCClientFactory(
            self.clock, client_config or config, _recording(self.client_received, client_handler), wall=self.wall
        )
        self.client_factory.aim(_SERVER[1], keyring, config.service)
        self._connections = 0
        self.connect()

    def wall(self) -> float:
        """What time it is for both ends, in unix seconds."""
        return NOW + self.clock.seconds()

    def connect(self) -> None:
        """Connect anew, such as behind :meth:`cut`: other ends and other wires; factories and key are the same.

        :raises HandshakeError: they do not come together, such as for ``limits`` that do not fit.
        """
        host = (_CLIENT[0], _CLIENT[1] + self._connections)
        self._connections += 1
        server, client = (
            _LinkedTransport(self.clock, _SERVER, host),
            _LinkedTransport(self.clock, host, _SERVER),
        )
        client.out = self.to_server = Wire(self.clock, server, 2)
        server.out = self.to_client = Wire(self.clock, client, 1)
        ends = (self.server_factory.buildProtocol(None), server), (self.client_factory.buildProtocol(None), client)
        self.server, self.client = (cast(SecureIPCProtocol, protocol) for protocol, _ in ends)
        server.protocol, client.protocol = self.server, self.client
        self.server.makeConnection(cast(Any, server))
        self.client.makeConnection(cast(Any, client))
        problems: list[Failure] = []
        self.client.when_authenticated().addErrback(problems.append)
        self.advance()
        for problem in problems:
            problem.raiseException()

    def advance(self, seconds: float = 0.0) -> None:
        """Let time go by, and all that is due happen at its time; with 0, all that is due now."""
        end = self.clock.seconds() + seconds
        while (due := min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)) < end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def cut(self) -> None:
        """Break the connection at once, for both ends: what is under way is lost, and nobody says CLOSE."""
        for end in (self.server, self.client):
            cast(MemoryTransport, end.transport).lose(ConnectionLost())


def _recording(received: list[SecureEnvelope], handler: Handler | None) -> Handler:
    def handle(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        received.append(envelope)
        return None if handler is None else handler(envelope, connection)

    return handle
