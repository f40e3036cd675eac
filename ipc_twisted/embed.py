"""The link inside an asyncio program: on the program's own running loop, which is never stopped or closed here.

:func:`client` and :func:`server` are asynchronous context managers, such as for the lifespan of a web application.
Each begins with a Twisted reactor of its own over the running loop, which is not installed as the global one, and ends
with nothing of it left. So they can be entered again, on another loop, and several at a time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.posixbase import PosixReactorBase
from twisted.python.failure import Failure

from ipc_twisted.client_service import ExecutionIPCClientService, LinkState
from ipc_twisted.config import ExecutionIPCConfig
from ipc_twisted.delivery import Delivery
from ipc_twisted.dialling import KeySource
from ipc_twisted.errors import Category, NotConnected
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import Handler
from ipc_twisted.service import ExecutionIPCService
from ipc_twisted.statistics import Statistics


class Link:
    """What :func:`client` gives: all that is awaited here, asyncio code awaits.

    :ivar service: the Twisted service behind it; its Deferreds are for Twisted code.
    """

    def __init__(self, service: ExecutionIPCClientService) -> None:
        self.service = service

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
        """Queue one message, connected or not; ``await`` the returned :class:`.Delivery` for its outcome.

        Parameters and errors are those of :meth:`.ExecutionIPCClientService.send`. Only for the loop's thread.
        """
        return self.service.send(
            kind, payload_bytes, trace_id=trace_id, reply_to=reply_to, target=target, headers=headers
        )

    async def drained(self) -> None:
        """Wait until at least half of ``limits.send_buffer_bytes`` is free."""
        await _as_future(self.service.drained())

    async def when_connected(self, fail_after_failures: int | None = None) -> None:
        """Wait until it is connected.

        :param fail_after_failures: give up after so many failed attempts, with the error of the last; None: never.
        :raises NotConnected: the context has ended.
        """
        try:
            await _as_future(self.service.whenConnected(fail_after_failures))
        except CancelledError as problem:  # Twisted's
            raise NotConnected(Category.NOT_CONNECTED, "the link has ended: its context was left") from problem

    @property
    def state(self) -> LinkState:
        """How the link is now."""
        return self.service.state

    def statistics(self) -> Statistics:
        """What was counted since the context was entered."""
        return self.service.statistics()

    def use_keyring(self, keyring: KeySource) -> None:
        """Go over to another key, losing nothing."""
        self.service.use_keyring(keyring)


class Server:
    """What :func:`server` gives.

    :ivar service: the Twisted service behind it; its Deferreds are for Twisted code.
    """

    def __init__(self, service: ExecutionIPCService) -> None:
        self.service = service

    @property
    def port(self) -> int:
        """The port that is listened on; 0 once the context was left."""
        return self.service.port

    def statistics(self) -> Statistics:
        """What was counted since the context was entered."""
        return self.service.statistics()

    def use_keyring(self, keyring: Keyring) -> None:
        """As :meth:`.ExecutionIPCService.use_keyring`."""
        self.service.use_keyring(keyring)

    def reload_keys(self) -> None:
        """As :meth:`.ExecutionIPCService.reload_keys`."""
        self.service.reload_keys()


@asynccontextmanager
async def client(
    where: str | os.PathLike[str] | int,
    keyring: KeySource | None = None,
    *,
    allowed_kinds: Iterable[str] = (),
    handler: Handler | None = None,
    service: str | None = None,
    config: ExecutionIPCConfig | None = None,
) -> AsyncIterator[Link]:
    """Stay connected to a server on this host while the context lasts.

    Entering it does not wait for the connection. Leaving it, also when cancelled, takes no more messages and lets those
    without an outcome learn it and handlers end, within ``limits.drain_seconds``. What is left then ends rejected, or
    unknown; handlers are cancelled.

    Parameters are those of :class:`.ExecutionIPCClientService`, without the reactor.

    :param handler: for what the server sends: ``handler(envelope, connection)`` returning None, an asyncio coroutine,
        which is run as a task, an asyncio future, or a Deferred.
    :raises ConfigError: a wrong argument.
    """
    with _reactor() as reactor:
        handlers = _Handlers(handler)
        running = ExecutionIPCClientService(
            reactor,
            where,
            keyring,
            allowed_kinds=allowed_kinds,
            handler=None if handler is None else handlers,
            service=service,
            config=config,
        )
        running.startService()
        try:
            yield Link(running)
        finally:
            await _ended(running.stopService, handlers)


@asynccontextmanager
async def server(
    config: ExecutionIPCConfig,
    keyring: Keyring | None,
    handler: Handler,
    *,
    connection_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Server]:
    """Serve while the context lasts; once it is entered, clients can connect.

    Leaving it, also when cancelled, stops as :meth:`.ExecutionIPCService.stopService` does, within
    ``limits.drain_seconds``; handlers that are not done by then are cancelled.

    Parameters and errors on entering are those of :class:`.ExecutionIPCService` and its ``startService()``, without the
    reactor.

    :param handler: ``handler(envelope, connection)`` returning None, an asyncio coroutine, which is run as a task, an
        asyncio future, or a Deferred.
    """
    with _reactor() as reactor:
        handlers = _Handlers(handler)
        running = ExecutionIPCService(
            reactor, config, keyring, handlers, connection_file=connection_file, key_file=key_file
        )
        running.startService()
        try:
            yield Server(running)
        finally:
            await _ended(running.stopService, handlers)


class _Reactor(AsyncioSelectorReactor):
    """Over a loop that others run, and end."""

    # There is one such thread in a process, for Twisted; but loops may run in several.
    _registerAsIOThread = False  # noqa: N815  # Twisted's name

    def installWaker(self) -> None:  # noqa: N802  # Twisted's name
        """The loop has its own."""

    def crash(self) -> None:
        """Part of the shutdown event; but the loop is not ours to stop."""
        PosixReactorBase.crash(self)

    def close(self) -> None:
        """Leave nothing behind on the loop: no descriptor, no thread, no timer."""
        self.runUntilCurrent()  # such as the end of a port that was told to close
        self.fireSystemEvent("shutdown")
        timer: Any = self._timerHandle  # the one that fires all delayed calls; it stays when they are cancelled
        if timer is not None:
            timer.cancel()


@contextmanager
def _reactor() -> Iterator[Any]:
    """The global reactor, if it already runs on the running loop; else one for this context."""
    loop = asyncio.get_running_loop()
    installed: Any = sys.modules.get("twisted.internet.reactor")  # to import it would install one
    if getattr(installed, "_asyncioEventloop", None) is loop and installed.running:
        yield installed
        return
    reactor = _Reactor(loop)
    reactor.startRunning(installSignalHandlers=False)
    try:
        yield reactor
    finally:
        reactor.close()


class _Handlers:
    """Runs the application's handler, and its coroutines as asyncio tasks."""

    def __init__(self, handler: Handler | None) -> None:
        self._handler: Any = handler  # None is not handed on, and so never called
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancelled = False

    def __call__(self, envelope: Any, connection: Any) -> Any:
        result: Any = self._handler(envelope, connection)
        if asyncio.iscoroutine(result):
            task = self._loop.create_task(self._run(result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return Deferred.fromFuture(task)
        return Deferred.fromFuture(result) if asyncio.isfuture(result) else result

    async def _run(self, coroutine: Any) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            if not self._cancelled:
                raise

    def cancel(self) -> Deferred[list[Any]]:
        """End those that are left; the service has said how many."""
        self._cancelled = True
        for task in self._tasks:
            task.cancel()
        return Deferred.fromFuture(asyncio.gather(*self._tasks, return_exceptions=True))


async def _ended(stop: Callable[[], Deferred[Any]], handlers: _Handlers) -> None:
    """Wait for the orderly end, and be cancelled only behind it."""
    interrupted: asyncio.CancelledError | None = None
    failures: list[Failure] = []
    for step in (stop, handlers.cancel):
        # Not a task: who ends the program cancels all tasks, and this is what ends the program in order.
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        step().addErrback(failures.append).addBoth(done.set_result)
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
    for failure in failures:
        failure.raiseException()


def _as_future(deferred: Deferred[Any]) -> asyncio.Future[Any]:
    return deferred.asFuture(asyncio.get_running_loop())
