"""Where is listened and dialled: 127.0.0.1 and nothing else."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IListeningPort

from ipc_twisted import connection_file
from ipc_twisted.config import LOOPBACK, ExecutionIPCConfig
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.errors import BindForbidden, Category, ConfigError, ConnectionFileError, NotConnected
from ipc_twisted.factory import SecureIPCClientFactory, SecureIPCFactory
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import Handler, SecureIPCProtocol

# \Z and ASCII digits, nothing around: a second "interface=" would win, and "٣" is a digit to int().
_DESCRIPTION = re.compile(r"tcp:(0|[1-9][0-9]{0,4}):interface=127\.0\.0\.1\Z")
DEFAULT_DESCRIPTION = f"tcp:0:interface={LOOPBACK}"
MAX_PORT = 65_535


def check_description(description: object) -> int:
    """Enforce the one form of an endpoint description, ``tcp:PORT:interface=127.0.0.1``.

    :returns: the port; 0 for any free one.
    :raises BindForbidden: for anything else.
    """
    match = _DESCRIPTION.match(description) if isinstance(description, str) else None
    if match is None or int(match[1]) > MAX_PORT:
        raise BindForbidden(
            Category.BIND_FORBIDDEN,
            f"the endpoint must be tcp:PORT:interface=127.0.0.1 with a port from 0 to {MAX_PORT}, not {description!r}",
        )
    return int(match[1])


def listen(reactor: Any, factory: SecureIPCFactory, description: str = DEFAULT_DESCRIPTION) -> Deferred[IListeningPort]:
    """Listen on 127.0.0.1.

    :raises BindForbidden: on the Deferred: another form of description, or a socket that is not where it was asked to
        be.
    :raises CannotListenError: on the Deferred: Twisted's, such as for a port that is taken.
    """

    async def bind() -> IListeningPort:
        check_description(description)
        port: IListeningPort = await serverFromString(reactor, description).listen(factory)
        host = port.getHost()
        family = getattr(port, "addressFamily", socket.AF_INET)
        if getattr(host, "host", None) != LOOPBACK or family != socket.AF_INET:
            await maybeDeferred(port.stopListening)
            raise BindForbidden(Category.BIND_FORBIDDEN, f"the socket was bound to {host!r} instead of {LOOPBACK}")
        return port

    return Deferred.fromCoroutine(bind())


def connect(
    reactor: Any,
    where: str | os.PathLike[str] | int,
    keyring: Keyring | None = None,
    *,
    allowed_kinds: Iterable[str] = (),
    handler: Handler | None = None,
    service: str | None = None,
    config: ExecutionIPCConfig | None = None,
) -> Deferred[SecureIPCProtocol]:
    """Connect to a server on this host, and fire once both sides have proved that they hold the key.

    :param reactor: Twisted's; it is never imported here.
    :param where: the server's connection file, or its port.
    :param keyring: the shared secret; None: the generated key that the connection file names.
    :param allowed_kinds: the kinds that ``handler`` takes; default: those of ``config``. Without a handler nothing is
        taken.
    :param service: the link's name; default: the connection file's, else ``execution_ipc``.
    :param config: limits of this side; the defaults if left out.
    :raises ConnectionFileError: on the Deferred, as all of them: the connection file is not to be trusted.
    :raises NotConnected: nobody listens there.
    :raises HandshakeError: the server did not answer, or did not prove itself; the message says what it can be.
    :raises KeyFileError: the key cannot be used.
    :raises ConfigError: a wrong argument.
    """

    async def dial() -> SecureIPCProtocol:
        if not isinstance(where, int | str | os.PathLike):
            raise ConfigError([f"where: must be a connection file or a port, not {where!r}"])
        info = None if isinstance(where, int) else _read(where)
        port = where if isinstance(where, int) else info.port if info else 0
        settings = _client_config(config, service or (info.service if info else None), allowed_kinds, handler)
        if not 1 <= port <= MAX_PORT:
            raise ConfigError([f"port: must be an int from 1 to {MAX_PORT}, not {port!r}"])
        ring = _client_keyring(keyring, info)
        factory = SecureIPCClientFactory(
            reactor, settings, ring, handler or _ignore, port=port, hint=_hint(info, ring, settings.service)
        )
        endpoint = TCP4ClientEndpoint(reactor, LOOPBACK, port, timeout=settings.limits.handshake_timeout_seconds)
        try:
            protocol = cast(SecureIPCProtocol, await endpoint.connect(factory))
        except ConnectError as problem:
            stale = f"; the connection file is stale: its server (process {info.pid}) is gone" if info else ""
            raise NotConnected(
                Category.NOT_CONNECTED, f"nobody listens on {LOOPBACK}:{port} ({type(problem).__name__}){stale}"
            ) from None
        return await protocol.when_authenticated()

    return Deferred.fromCoroutine(dial())


def _read(path: str | os.PathLike[str]) -> connection_file.ConnectionInfo:
    try:
        return connection_file.read(path)
    except FileNotFoundError:
        raise ConnectionFileError(
            Category.CONNECTION_FILE_INVALID,
            f"there is no connection file {os.fspath(path)!r}: the server is not running, or it writes another one "
            "(a port is passed as an int)",
        ) from None


def _client_config(
    config: ExecutionIPCConfig | None, service: str | None, allowed_kinds: Iterable[str], handler: Handler | None
) -> ExecutionIPCConfig:
    if isinstance(allowed_kinds, str):
        raise ConfigError([f"allowed_kinds: must be a list of kinds, not {allowed_kinds!r}"])
    kinds = tuple(allowed_kinds)
    if kinds and handler is None:
        raise ConfigError(["handler: is needed where kinds are allowed"])
    if handler is not None and not kinds:
        kinds = () if config is None else config.allowed_kinds
    if handler is not None and not kinds:
        raise ConfigError(["allowed_kinds: list the kinds that the handler takes, such as ['job.done']"])
    mapping = {} if config is None else msgspec.to_builtins(config)
    if service is not None:
        mapping["service"] = service
    # A side that receives nothing allows nothing; the rule of at least one kind is for servers.
    checked = ExecutionIPCConfig.from_mapping({**mapping, "allowed_kinds": list(kinds) or ["-"]})
    return checked if kinds else msgspec.structs.replace(checked, allowed_kinds=())


def _client_keyring(keyring: Keyring | None, info: connection_file.ConnectionInfo | None) -> Keyring:
    if isinstance(keyring, Keyring):
        return keyring
    if keyring is not None:
        raise ConfigError(
            [f"keyring: must be a Keyring, such as Keyring.from_file(path), not a {type(keyring).__name__}"]
        )
    if info is None or info.key_file is None:
        raise ConfigError(
            ["keyring: is needed (--key-file): only the connection file of a server with a generated key names the key"]
        )
    return Keyring.from_file(info.key_file)


def _hint(info: connection_file.ConnectionInfo | None, keyring: Keyring, service: str) -> str:
    """What the connection file tells about a handshake that failed."""
    if info is None:
        return ""
    if info.service != service:
        return f". The connection file is for service {info.service!r}"
    if info.key_id != keyring.current.key_id(service).hex():
        return f". The server's current key id is {info.key_id}"
    return ""


def _ignore(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    """Never called: a side without a handler allows no kinds."""
