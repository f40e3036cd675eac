"""The server as a Twisted service: listen, say where, and end in order."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from ipc_twisted import connection_file as connection_file_module
from ipc_twisted.config import LOOPBACK, SECTION, SPARE_DESCRIPTORS, ExecutionIPCConfig
from ipc_twisted.draining import end_in_order
from ipc_twisted.endpoints import listen
from ipc_twisted.errors import Category, ConfigError, ConnectionFileError, KeyFileError, NotConnected
from ipc_twisted.factory import SecureIPCFactory
from ipc_twisted.keys import GENERATED_MARK, Keyring, is_generated, write_new_key_file
from ipc_twisted.protocol import Handler
from ipc_twisted.statistics import Statistics, statistics

_log = Logger(namespace="ipc_twisted")


class ExecutionIPCService(Service):
    """Listen on 127.0.0.1 and hand every verified envelope to ``handler``.

    Start and stop it as any Twisted service; nothing is bound, read or written before :meth:`startService`.

    :param reactor: Twisted's.
    :param config: checked.
    :param keyring: the shared secrets; None: ``auth.key_file``, or with ``auth.secret_mode`` ``generated`` a key that
        is made at start, beside the connection file, and gone at stop.
    :param handler: ``handler(envelope, connection)`` returning None, a Deferred or a coroutine.
    :param connection_file: where to say where it listens; None: :func:`.default_connection_file`.
    :param key_file: the file that ``keyring`` was read from, for :meth:`reload_keys`; None: ``auth.key_file``.
    :ivar factory: the protocol factory, once started.
    :ivar handler: the one that is taken at start.
    """

    name = "ipc_twisted"
    further_descriptors = 0
    """What other parts of this process need beside the link and what is spared for them."""

    def __init__(
        self,
        reactor: Any,
        config: ExecutionIPCConfig,
        keyring: Keyring | None,
        handler: Handler,
        *,
        connection_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(config, ExecutionIPCConfig):
            raise ConfigError(["config: must be an ExecutionIPCConfig, such as ExecutionIPCConfig.from_mapping({...})"])
        self.factory: SecureIPCFactory | None = None
        self.config = config
        self.connection_file = default_connection_file(config) if connection_file is None else Path(connection_file)
        if not self.connection_file.name:
            raise ConfigError([f"connection_file: must name a file, not {os.fspath(self.connection_file)!r}"])
        self._reactor = reactor
        self._keyring = keyring
        self.key_file = key_file if key_file is not None else config.auth.key_file if keyring is None else None
        self.handler = handler
        self._port: IListeningPort | None = None
        self._generated: tuple[Path, Keyring] | None = None
        self._started_at = 0
        self._info: connection_file_module.ConnectionInfo | None = None

    def startService(self) -> None:
        """Bind and write the connection file; when this returns, clients can connect.

        :raises ConfigError: the limits do not fit this process, or there is no key.
        :raises KeyFileError: the key cannot be used.
        :raises ConnectionFileError: the file cannot be written, or belongs to a server that lives.
        :raises BindForbidden: not on 127.0.0.1.
        :raises CannotListenError: Twisted's, such as for a port that is taken.
        """
        _check_descriptors(self.config, self.further_descriptors)
        folder = self.connection_file.parent
        connection_file_module.prepare_folder(folder)
        with connection_file_module.locked(folder):
            connection_file_module.refuse_if_alive(self.connection_file)
            try:
                keyring = self._open_keyring()
                self.factory = SecureIPCFactory(self._reactor, self.config, keyring, self.handler)
                self._port = _now(listen(self._reactor, self.factory, self.config.endpoint))
                self._started_at = int(time.time())
                self._announce(keyring)
            except BaseException:
                self._clean_up()
                raise
        super().startService()

    async def _stop(self) -> None:
        factory = self.factory  # before the wait: who starts it again meanwhile makes another
        self._remove_files()
        if self._port is not None:
            port, self._port = self._port, None
            await maybeDeferred(port.stopListening)
        if factory is not None:
            seconds = self.config.limits.drain_seconds
            if not await end_in_order(factory.transports, factory.when_handlers_end(), self._reactor, seconds):
                _log.warn(
                    "stopped after limits.drain_seconds ({seconds} s) with {handlers} handlers that have not ended",
                    event="drain_timeout",
                    seconds=seconds,
                    handlers=factory.handlers,
                )

    def stopService(self) -> Deferred[None]:
        """Stop listening, reject new envelopes (``shutting_down``), let handlers end and still send, wait for the
        outcomes of what was sent, and say CLOSE: all within ``limits.drain_seconds``, then cut off who is left."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def statistics(self) -> Statistics:
        """What was counted since the service was started.

        :raises NotConnected: it was not started.
        """
        if self.factory is None:
            raise NotConnected(Category.NOT_CONNECTED, "the service was not started: there is nothing to count")
        return statistics(self.factory)

    def use_keyring(self, keyring: Keyring) -> None:
        """Accept these keys from now on, and no others; connections under a dropped key end with ``key_unknown``.

        :raises ConfigError: that is no keyring.
        :raises ConnectionFileError: the connection file, which names the current key, cannot be written anew.
        """
        if not isinstance(keyring, Keyring):
            raise ConfigError([f"keyring: must be a Keyring, not a {type(keyring).__name__}"])
        self._keyring = keyring
        if self.factory is not None and self._info is not None:
            self.factory.use_keyring(keyring)
            if connection_file_module.is_ours(self.connection_file, self._info):
                self._remove_generated()
                self._write_info(keyring)
            current = keyring.current.key_id(self.config.service).hex()
            _log.info("the keys were changed: current key id {key_id}", event="keys_changed", key_id=current)

    def reload_keys(self) -> None:
        """Read the key file again, as ``twistd ipc`` does on SIGHUP.

        :raises KeyFileError: it cannot be used, or the keys did not come from a file; the keys there are stay.
        """
        if self.key_file is None:
            raise KeyFileError(
                Category.KEY_INVALID, "the keys did not come from a key file, so there is none to reload"
            )
        self.use_keyring(Keyring.from_file(self.key_file))

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while it is not."""
        address = None if self._port is None else self._port.getHost()
        return address.port if isinstance(address, IPv4Address) else 0

    def _open_keyring(self) -> Keyring:
        if self._keyring is not None:
            return self._keyring
        auth = self.config.auth
        if auth.secret_mode == "static":  # noqa: S105  # the name of a mode
            if auth.key_file is None:
                raise ConfigError(
                    [
                        f"{'.'.join(SECTION)}.auth.key_file: is needed for secret_mode 'static'; "
                        "make one with: ipc-twisted keygen FILE"
                    ]
                )
            return Keyring.from_file(auth.key_file)
        path = self.connection_file.with_suffix(".key")
        if path == self.connection_file:
            raise ConnectionFileError(
                Category.CONNECTION_FILE_INVALID,
                f"{os.fspath(path)!r}: that is where the generated key goes; give the connection file another suffix",
            )
        if is_generated(path):
            path.unlink(missing_ok=True)  # of a server that was killed; nobody else's file is ever removed
        write_new_key_file(path, GENERATED_MARK)
        self._generated = path, Keyring.from_file(path)
        return self._generated[1]

    def _announce(self, keyring: Keyring) -> None:
        self._write_info(keyring)
        _log.info(  # last: who waits for this line finds the file
            "listening on {host}:{port}, connection file {file}",
            event="listening",
            host=LOOPBACK,
            port=self.port,
            file=os.fspath(self.connection_file),
        )

    def _write_info(self, keyring: Keyring) -> None:
        self._info = connection_file_module.ConnectionInfo(
            protocol=1,
            transport="tcp_local",
            host="127.0.0.1",
            port=self.port,
            service=self.config.service,
            key_id=keyring.current.key_id(self.config.service).hex(),
            pid=os.getpid(),
            started_at=self._started_at,
            key_file=None if self._generated is None else os.fspath(self._generated[0].absolute()),
        )
        connection_file_module.write(self.connection_file, self._info)

    def _remove_files(self) -> None:
        if self._info is not None:
            connection_file_module.remove_if_ours(self.connection_file, self._info)
            self._info = None
        self._remove_generated()

    def _remove_generated(self) -> None:
        if self._generated is not None:
            (path, keyring), self._generated = self._generated, None
            with suppress(KeyFileError):  # another server may have made one of its own meanwhile
                if Keyring.from_file(path).is_same(keyring):
                    path.unlink(missing_ok=True)

    def _clean_up(self) -> None:
        self._remove_files()
        if self._port is not None:
            port, self._port = self._port, None
            maybeDeferred(port.stopListening)


def default_connection_file(config: ExecutionIPCConfig) -> Path:
    """``SERVICE.json`` in the user's runtime folder."""
    return connection_file_module.default_folder() / f"{config.service}.json"


def _check_descriptors(config: ExecutionIPCConfig, further: int) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.descriptors + further
    if soft != resource.RLIM_INFINITY and needed > soft:
        limits = config.limits
        beside = f", {further} for the metrics" if further else ""
        raise ConfigError(
            [
                f"{'.'.join(SECTION)}.limits.max_connections: {limits.max_connections} and "
                f"limits.max_pending_handshakes {limits.max_pending_handshakes}{beside} and {SPARE_DESCRIPTORS} to "
                f"spare are more than the {soft} file descriptors of this process; lower them, or type: "
                f"ulimit -n {needed}"
            ]
        )


def _now(deferred: Deferred[IListeningPort]) -> IListeningPort:
    """The result of a bind, which is made at once: its failure must reach who starts the service, not only the log."""
    results: list[IListeningPort | Failure] = []
    deferred.addBoth(results.append)
    if not results:
        deferred.cancel()
        raise RuntimeError("this reactor does not bind at once")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
