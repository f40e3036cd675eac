"""Where a client connects to, and with which key: found anew for every attempt, since a server that was started again
has another port and, with a generated key, another key."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError

from ipc_twisted import connection_file
from ipc_twisted.config import LOOPBACK, MAX_PORT, ExecutionIPCConfig
from ipc_twisted.connection_file import ConnectionInfo
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.errors import Category, ConfigError, ConnectionFileError, NotConnected
from ipc_twisted.factory import SecureIPCClientFactory
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import Handler, SecureIPCProtocol

KeySource = Keyring | str | os.PathLike[str]
"""Keys, or the file that they are read from at every attempt."""


class Dialler:
    """The arguments of :func:`ipc_twisted.connect`, checked.

    :raises ConfigError: one of them is wrong.
    """

    def __init__(
        self,
        reactor: Any,
        where: str | os.PathLike[str] | int,
        keyring: KeySource | None,
        allowed_kinds: Iterable[str],
        handler: Handler | None,
        service: str | None,
        config: ExecutionIPCConfig | None,
    ) -> None:
        if isinstance(where, bool) or not isinstance(where, int | str | os.PathLike):
            raise ConfigError([f"where: must be a connection file or a port, not a {type(where).__name__}"])
        if isinstance(where, int) and not 1 <= where <= MAX_PORT:
            raise ConfigError([f"port: must be an int from 1 to {MAX_PORT}, not {where!r}"])
        if isinstance(where, int) and keyring is None:
            raise ConfigError([_KEYS_NEEDED])
        if keyring is not None:
            _check_source(keyring)
        self.reactor = reactor
        self.handler = handler or _ignore
        self.config = _client_config(config, service, allowed_kinds, handler)
        self._where = where
        self._keys = keyring
        self._service = service

    async def dial(self, factory: SecureIPCClientFactory) -> SecureIPCProtocol:
        """Connect once; the result has been authenticated.

        :raises IPCError: as :func:`ipc_twisted.connect` says.
        """
        info = None if isinstance(self._where, int) else _read(self._where)
        port = self._where if isinstance(self._where, int) else info.port if info else 0
        service = self._service or (info.service if info else self.config.service)
        keyring = self._keyring(info)
        factory.aim(port, keyring, service, _hint(info, keyring, service))
        timeout = self.config.limits.handshake_timeout_seconds
        endpoint = TCP4ClientEndpoint(self.reactor, LOOPBACK, port, timeout=timeout)
        try:
            protocol = cast(SecureIPCProtocol, await endpoint.connect(factory))
        except ConnectingCancelledError:  # the endpoint's own; a Deferred that is cancelled ends in Twisted's
            raise CancelledError from None
        except ConnectError as problem:
            stale = f"; the connection file is stale: its server (process {info.pid}) is gone" if info else ""
            raise NotConnected(
                Category.NOT_CONNECTED, f"nobody listens on {LOOPBACK}:{port} ({type(problem).__name__}){stale}"
            ) from None
        return await protocol.when_authenticated()

    def use_keys(self, keys: KeySource) -> None:
        """Take these from the next attempt on.

        :raises ConfigError: that is no source of keys.
        """
        _check_source(keys)
        self._keys = keys

    def _keyring(self, info: ConnectionInfo | None) -> Keyring:
        if isinstance(self._keys, Keyring):
            return self._keys
        path = self._keys if self._keys is not None else info.key_file if info is not None else None
        if path is None:
            raise ConfigError([_KEYS_NEEDED])
        return Keyring.from_file(path)


_KEYS_NEEDED = (
    "keyring: is needed (--key-file, or Keyring.from_file(path)): only the connection file of a server with a "
    "generated key names the key"
)


def _check_source(source: object) -> None:
    if not isinstance(source, Keyring | str | os.PathLike):
        raise ConfigError(
            [f"keyring: must be a Keyring, such as Keyring.from_file(path), not a {type(source).__name__}"]
        )


def _read(path: str | os.PathLike[str]) -> ConnectionInfo:
    try:
        return connection_file.read(path)
    except FileNotFoundError:
        raise ConnectionFileError(
            Category.CONNECTION_FILE_INVALID,
            f"there is no connection file {os.fspath(path)!r}: the server is not running (twistd --nodaemon ipc), or "
            "writes another one (by default in $XDG_RUNTIME_DIR, which both need alike; a port is passed as an int)",
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


def _hint(info: ConnectionInfo | None, keyring: Keyring, service: str) -> str:
    """What the connection file tells about a handshake that failed."""
    if info is None:
        return ""
    if info.service != service:
        return f"The connection file is for service {info.service!r}, this side's is {service!r}. "
    if info.key_id != keyring.current.key_id(service).hex():
        return f"The server's current key id is {info.key_id}: give this side a copy of the server's key file. "
    return ""


def _ignore(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
    """Never called: a side without a handler allows no kinds."""
