"""Metrics for others to read: over HTTP on 127.0.0.1, or in a file for the node exporter. Needs the extra ``metrics``.

The port is open to every program and web page of the host, so it is bounded in all it does: GET /metrics and nothing
else, no bodies, four connections, ten seconds each; for a fifth connection the oldest that has not asked is cut off. A
page that had its own name point here (DNS rebinding) is refused by the name in ``Host``. What it shows is no secret:
counts, no keys, no names of peers, nothing of messages.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ipc_twisted.config import LOOPBACK
from ipc_twisted.errors import BindForbidden, Category, ConfigError

MAX_CONNECTIONS = 4
DESCRIPTORS = MAX_CONNECTIONS + 3
"""What a :class:`MetricsPort` may need: its own, one for a connection that makes place, one for one that is refused."""

DEADLINE_SECONDS = 10.0
"""From accept to the end, for each connection; bytes do not extend it."""

FILE_SECONDS = 15.0
"""How often the file is written."""

PATH = b"/metrics"

_log = Logger(namespace="ipc_twisted")


class _Page(Resource):
    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render(self, request: Request) -> bytes:
        answer = self._answer(request)
        return b"" if request.method == b"HEAD" else answer  # Twisted logs each that is not empty, with its URI

    def _answer(self, request: Request) -> bytes:
        port = request.getHost().port
        hosts = [f"{name}:{port}".encode() for name in (LOOPBACK, "localhost")]
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"connection", b"close")
        given = request.requestHeaders.getRawHeaders(b"host", [])
        if len(given) != 1 or given[0].lower() not in hosts:
            request.setResponseCode(403)
            return b"the Host header must be 127.0.0.1 or localhost, and the port\n"
        if request.uri != PATH:
            request.setResponseCode(404)
            return b"there is only /metrics\n"
        if request.method != b"GET":
            request.setResponseCode(405)
            request.setHeader(b"allow", b"GET")
            return b"there is only GET\n"
        request.setHeader(b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode())
        return generate_latest(self._registry)


class _Request(Request):
    def gotLength(self, length: int | None) -> None:  # noqa: N802  # Twisted's name
        """A body would be kept, in a file if it is large."""
        super().gotLength(0)
        self.channel.persistent = False  # a header would only say so; and what is for * comes by no page
        cast(Any, self.channel.transport).has_asked = True
        if length or self.requestHeaders.hasHeader(b"transfer-encoding"):
            cast(Any, self.channel.transport).abortConnection()


class _Site(Site):
    def log(self, request: Any) -> None:
        """A line for each scrape says nothing."""


class _Bounded(ProtocolWrapper):
    """:ivar has_asked: a whole request has come."""

    has_asked = False
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        clock = cast(_Limit, self.factory).clock
        self._deadline = clock.callLater(DEADLINE_SECONDS, self._missed)

    def _missed(self) -> None:
        self._deadline = None
        cast(Any, self.transport).abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connectionLost(reason)


class _Limit(WrappingFactory):
    noisy = False
    protocol = _Bounded

    def __init__(self, clock: Any, registry: CollectorRegistry) -> None:
        site = _Site(_Page(registry), requestFactory=_Request, timeout=DEADLINE_SECONDS, reactor=clock)
        site.noisy = False
        super().__init__(site)
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper | None:  # type: ignore[override]  # as its base
        """None, which closes the socket at once, where all places are taken and nobody makes one."""
        if len(self.protocols) >= MAX_CONNECTIONS and not self._make_place():
            return None
        return super().buildProtocol(cast(IAddress, addr))

    def _make_place(self) -> bool:
        """Cut off the oldest that has not asked, however busily it writes: whoever wants the numbers asks at once."""
        if len(self.protocols) > MAX_CONNECTIONS:  # one was cut off in this turn and is gone in the next
            return False
        for protocol in self.protocols:
            if not protocol.has_asked:
                cast(Any, protocol.transport).abortConnection()
                return True
        return False


class MetricsPort(Service):
    """Serve ``http://127.0.0.1:PORT/metrics``.

    :param port: 0 for any free one.
    """

    def __init__(self, reactor: Any, registry: CollectorRegistry, port: int) -> None:
        self._reactor = reactor
        self._number = port
        self._factory = _Limit(reactor, registry)
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Bind.

        :raises BindForbidden: not on 127.0.0.1.
        :raises CannotListenError: Twisted's, such as for a port that is taken.
        """
        port = self._reactor.listenTCP(self._number, self._factory, interface=LOOPBACK)
        host = port.getHost()
        if host.host != LOOPBACK:
            maybeDeferred(port.stopListening)
            raise BindForbidden(Category.BIND_FORBIDDEN, f"the socket was bound to {host!r} instead of {LOOPBACK}")
        self._port = port
        super().startService()
        _log.info("metrics at http://{host}:{port}/metrics", event="metrics_listening", host=LOOPBACK, port=self.port)

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while it is not."""
        return 0 if self._port is None else cast(Any, self._port.getHost()).port

    def stopService(self) -> Deferred[None]:
        """Stop listening, and cut off who is connected."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._port is not None:
            port, self._port = self._port, None
            await maybeDeferred(port.stopListening)
        for protocol in list(self._factory.protocols):
            cast(Any, protocol.transport).abortConnection()


class MetricsFile(Service):
    """Write a file for the textfile collector of the node exporter, every 15 seconds, and remove it at stop.

    It is replaced atomically, and readable by all (0644): the node exporter runs under a user of its own. Of a process
    that was killed it stays; the node exporter tells its age as ``node_textfile_mtime_seconds``.

    :param path: the node exporter reads only names that end in ``.prom``.
    :raises ConfigError: another ending.
    """

    def __init__(self, reactor: Any, registry: CollectorRegistry, path: str | os.PathLike[str]) -> None:
        self._registry = registry
        self._path = Path(path)
        if self._path.suffix != ".prom":
            raise ConfigError([f"metrics file: its name must end in .prom, not {os.fspath(path)!r}"])
        self._loop = LoopingCall(self._write_again)
        self._loop.clock = reactor
        self._written: tuple[int, int] | None = None
        self._failing = False

    def startService(self) -> None:
        """Write it for the first time.

        :raises ConfigError: it cannot be written.
        """
        try:
            self._write()
        except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
            raise ConfigError([f"metrics file: {os.fspath(self._path)!r} cannot be written: {problem}"]) from None
        super().startService()
        self._loop.start(FILE_SECONDS, now=False)

    def stopService(self) -> None:
        """Remove it, unless another process has replaced it meanwhile."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        with suppress(OSError):
            if self._written == _identity(os.lstat(self._path)):
                self._path.unlink()

    def _write_again(self) -> None:
        try:
            self._write()
        except OSError as problem:
            if not self._failing:  # once, not every time
                _log.error(
                    "the metrics file {file} cannot be written: {problem}",
                    event="metrics_file_failed",
                    file=os.fspath(self._path),
                    problem=problem,
                )
            self._failing = True
        else:
            self._failing = False

    def _write(self) -> None:
        content = generate_latest(self._registry)
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)
                file.write(content)
                written = _identity(os.fstat(descriptor))
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
        self._written = written


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
