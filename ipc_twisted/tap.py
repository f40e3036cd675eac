"""``twistd ipc``: the server from the command line."""

from __future__ import annotations

import importlib
import inspect
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python import usage

from ipc_twisted import systemd
from ipc_twisted.config import MAX_PORT, ExecutionIPCConfig
from ipc_twisted.endpoints import DEFAULT_DESCRIPTION, check_description
from ipc_twisted.errors import BindForbidden, ConfigError, IPCError, KeyFileError
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import Handler
from ipc_twisted.service import ExecutionIPCService

_log = Logger(namespace="ipc_twisted")

DEFAULT_KIND = "job.run"
DEFAULT_HANDLER = "ipc_twisted.handlers:echo"


class Options(usage.Options):
    """Everything that can be wrong is found here: a usage error, before anything is bound."""

    synopsis = "[options]"
    longdesc = (
        "Serve one secure local link on 127.0.0.1. Without options: a generated key, the connection file in "
        "$XDG_RUNTIME_DIR/ipc_twisted (else ~/.local/state/ipc_twisted), the kind job.run, and a handler that echoes. "
        "Example: twistd --nodaemon ipc --config runtime.toml --handler myapp.jobs:run"
    )
    optParameters = [  # noqa: RUF012  # Twisted's interface
        ["config", None, None, "TOML or JSON file with runtime.platform.execution_ipc."],
        ["key-file", None, None, "Key file (64 hex digits a line, only yours: chmod 600); default: a generated key."],
        ["key-fd", None, None, "Inherited file descriptor to read the key from, once, instead of --key-file."],
        ["connection-file", None, None, "Where to write on which port it listens."],
        [
            "listen",
            None,
            None,
            f"Endpoint; only the form tcp:PORT:interface=127.0.0.1. [default: {DEFAULT_DESCRIPTION}]",
        ],
        ["handler", None, DEFAULT_HANDLER, "package.module:callable, called with (envelope, connection)."],
        ["metrics-port", None, None, "Serve http://127.0.0.1:PORT/metrics for Prometheus; needs the extra metrics."],
        ["metrics-file", None, None, "Write metrics for the node exporter to this .prom file; likewise."],
    ]

    config: ExecutionIPCConfig
    keyring: Keyring | None
    key_file: str | None = None
    handler: Handler
    metrics_port: int | None = None

    def postOptions(self) -> None:
        problems: list[str] = []

        def check(part: Callable[[], Any]) -> Any:
            try:
                return part()
            except (IPCError, usage.UsageError) as problem:
                problems.append(str(problem))
                return None

        config = check(self._config)
        self.keyring = check(lambda: self._keyring(config))
        self.handler = check(self._handler)
        self.metrics_port = check(self._metrics_port)
        check(self._metrics_file)
        if problems:
            raise usage.UsageError("\n".join(problems))
        self.config = config

    def _config(self) -> ExecutionIPCConfig:
        config = (
            ExecutionIPCConfig.from_mapping({"allowed_kinds": [DEFAULT_KIND]})
            if self["config"] is None
            else ExecutionIPCConfig.from_file(self["config"])
        )
        if self["listen"] is None:
            return config
        try:
            return msgspec.structs.replace(config, bind_port=check_description(self["listen"]))
        except BindForbidden as problem:
            raise usage.UsageError(f"--listen: {problem}") from None

    def _keyring(self, config: ExecutionIPCConfig | None) -> Keyring | None:
        path = self["key-file"]
        if self["key-fd"] is not None:
            return self._keyring_from_descriptor()
        if path is None and config is not None and config.auth.secret_mode == "static":  # noqa: S105  # a mode's name
            path = config.auth.key_file
            if path is None:
                raise ConfigError(
                    [
                        "runtime.platform.execution_ipc.auth.key_file: is needed for secret_mode 'static' "
                        "(or --key-file); make one with: ipc-twisted keygen FILE"
                    ]
                )
        self.key_file = path
        try:
            return None if path is None else Keyring.from_file(path)
        except KeyFileError as problem:
            raise usage.UsageError(f"key file: {problem}") from None

    def _keyring_from_descriptor(self) -> Keyring:
        number = self["key-fd"]
        if self["key-file"] is not None:
            raise usage.UsageError("--key-fd and --key-file: only one of them can be the key")
        if not re.fullmatch(r"[3-9]|[1-9][0-9]{1,6}", number):  # 0 to 2 are the standard ones
            raise usage.UsageError(f"--key-fd: must be a descriptor above 2, not {number!r}")
        try:
            return Keyring.from_descriptor(int(number))
        except KeyFileError as problem:
            raise usage.UsageError(f"--key-fd: {problem}") from None

    def _metrics_port(self) -> int | None:
        text = self["metrics-port"]
        if text is None:
            return None
        if not re.fullmatch(r"0|[1-9][0-9]{0,4}", text) or int(text) > MAX_PORT:
            raise usage.UsageError(f"--metrics-port: must be an int from 0 to {MAX_PORT} (0: any free), not {text!r}")
        _import_metrics()
        return int(text)

    def _metrics_file(self) -> None:
        path = self["metrics-file"]
        if path is not None:
            if not path.endswith(".prom"):
                raise usage.UsageError(f"--metrics-file: its name must end in .prom, not {path!r}")
            _import_metrics()

    def _handler(self) -> Handler:
        module_name, colon, name = self["handler"].partition(":")
        if not (module_name and colon and name) or module_name.endswith(".py"):
            raise usage.UsageError(
                f"--handler: must be package.module:callable, such as jobs:run, not {self['handler']!r}"
            )
        try:
            handler = getattr(importlib.import_module(module_name), name)
        except Exception as problem:  # whatever a module of the application's raises when it is imported
            missing = isinstance(problem, ModuleNotFoundError) and module_name.startswith(str(problem.name))
            hint = " (put its folder on PYTHONPATH)" if missing else ""
            raise usage.UsageError(
                f"--handler: {self['handler']!r} cannot be imported: {type(problem).__name__}: {problem}{hint}"
            ) from None
        if not callable(handler):
            raise usage.UsageError(f"--handler: {self['handler']!r} is not callable")
        with suppress(ValueError):  # some callables of C tell no signature
            try:
                inspect.signature(handler).bind(None, None)
            except TypeError:
                raise usage.UsageError(
                    f"--handler: {self['handler']!r} must take two arguments, an envelope and its connection"
                ) from None
        return handler  # type: ignore[no-any-return]  # what it takes is seen when it is called


def _import_metrics() -> None:
    """Only where they are asked for: the extra need not be installed.

    :raises ConfigError: it is not.
    """
    importlib.import_module("ipc_twisted.metrics")


class _TwistdService(ExecutionIPCService):
    """A server that cannot start must end the process: a running reactor without a listener helps nobody.

    :ivar twistd: the options of twistd itself.
    :ivar beside: what starts behind it and stops behind it: the metrics.
    """

    twistd: Mapping[str, Any] = MappingProxyType({})
    beside: Sequence[Service] = ()
    _previous: Any = None  # handler of SIGHUP, while ours stands in its place

    def startService(self) -> None:
        try:
            super().startService()
            try:
                for service in self.beside:
                    service.startService()
            except BaseException:
                self._clean_up()
                raise
            if self.key_file is not None:  # else SIGHUP keeps its meaning: the terminal is gone
                self._previous = signal.signal(signal.SIGHUP, self._hung_up)
        except (IPCError, CannotListenError) as problem:
            if not self.twistd.get("nodaemon", True):
                _log.critical("twistd ipc: {problem}", event="start_failed", problem=problem)
                raise  # the daemon's parent waits to be told, and is told of an Exception only, not of a SystemExit
            if pidfile := self.twistd.get("pidfile"):
                Path(pidfile).unlink(missing_ok=True)  # likewise
            sys.exit(f"twistd ipc: {problem}")
        systemd.notify(systemd.READY)

    def stopService(self) -> Deferred[None]:
        systemd.notify(systemd.STOPPING)
        if self._previous is not None:
            signal.signal(signal.SIGHUP, self._previous)
            self._previous = None
        return Deferred.fromCoroutine(self._stop_all(super().stopService()))

    async def _stop_all(self, link: Deferred[None]) -> None:
        try:
            await link
        finally:
            for service in self.beside:
                await maybeDeferred(service.stopService)

    def _hung_up(self, _number: int, _frame: object) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        systemd.notify(systemd.reloading())
        try:
            self.reload_keys()
        except IPCError as problem:
            _log.error(
                "the keys were not changed, those there are stay: {problem}", event="reload_failed", problem=problem
            )
        systemd.notify(systemd.READY)


def makeService(options: Options) -> IService:
    """For :mod:`twisted.plugins.ipc_twisted_plugin`."""
    from twisted.internet import reactor  # twistd has installed the one it was asked for by now

    service = _TwistdService(
        reactor,
        options.config,
        options.keyring,
        options.handler,
        connection_file=options["connection-file"],
        key_file=options.key_file,
    )
    service.twistd = options.parent or {}
    if options.metrics_port is not None or options["metrics-file"] is not None:
        _add_metrics(reactor, service, options)
    return service


def _add_metrics(reactor: Any, service: _TwistdService, options: Options) -> None:
    from ipc_twisted.metrics import Metrics, TimedHandler
    from ipc_twisted.metrics_export import DESCRIPTORS, MetricsFile, MetricsPort

    service.handler = timed = TimedHandler(service.handler)
    registry = Metrics(service, timed).registry
    if options.metrics_port is not None:
        service.further_descriptors = DESCRIPTORS
        service.beside = [MetricsPort(reactor, registry, options.metrics_port)]
    if options["metrics-file"] is not None:
        service.beside = [*service.beside, MetricsFile(reactor, registry, options["metrics-file"])]
