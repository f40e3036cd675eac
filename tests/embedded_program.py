"""Programs on an asyncio loop that embed the link: ``python -X dev -W error -m tests.embedded_program LOOP SCENARIO``.

Each is run twice in its process, on a new loop each time, and must leave nothing. What goes wrong is on stderr.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, succeed
from twisted.logger import globalLogBeginner, globalLogPublisher

from ipc_twisted import (
    Category,
    ConfigError,
    ConnectionFileError,
    Delivery,
    DeliveryUnknown,
    ExecutionIPCConfig,
    KeyFileError,
    Keyring,
    NotConnected,
    Rejected,
    embed,
)
from ipc_twisted import connect as connect_in_twisted
from tests.log_lines import Lines

SECONDS = 30
SECRET = bytes.fromhex("3b0c5d1795e2a86f414d7ce09b28f3065ad1879e63fc024bb7e5180c9af6d24e")
KEYRING = Keyring([SECRET])


def config(**limits: Any) -> ExecutionIPCConfig:
    return ExecutionIPCConfig.from_mapping({"allowed_kinds": ["job.run"], "limits": limits})


async def answer(envelope: Any, connection: Any) -> None:
    """As asyncio code is written."""
    await asyncio.sleep(0)
    await connection.drained().asFuture(asyncio.get_running_loop())
    await connection.send("job.done", envelope.payload_bytes.upper(), trace_id=envelope.trace_id)


class Answers:
    """A handler that keeps what comes."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, envelope: Any, _connection: Any) -> None:
        await self.queue.put(envelope.payload_bytes)


async def there_and_back(folder: Path) -> None:
    answers = Answers()
    async with embed.client(
        folder / "ipc.json", KEYRING, allowed_kinds=["job.done"], handler=answers, config=None
    ) as link:
        early = link.send("job.run", b"early")
        async with embed.server(config(), KEYRING, answer, connection_file=folder / "ipc.json") as server:
            await link.when_connected()
            await early
            early_answer = await answers.queue.get()  # beside the assertions, which python -O leaves out
            assert early_answer == b"EARLY"
            await asyncio.wait_for(link.send("job.run", b"x"), SECONDS)
            outcomes = await asyncio.gather(
                link.send("job.run", b"y"), link.send("job.stop", b""), return_exceptions=True
            )
            assert outcomes[0] is None
            assert isinstance(outcomes[1], Rejected)
            assert outcomes[1].category is Category.KIND_NOT_ALLOWED
            await early  # any number of times
            await link.drained()
            both = [await answers.queue.get() for _ in "xy"]
            assert both == [b"X", b"Y"]
            assert link.state.connected_since is not None
            assert link.statistics().sent["accepted"] == server.statistics().accepted == 3
            link.use_keyring(KEYRING)
            server.use_keyring(KEYRING)
            assert server.port
            await link.send("job.run", b"z")
            answer_to_z = await answers.queue.get()
            assert answer_to_z == b"Z"
    assert server.port == 0
    try:
        link.send("job.run", b"")
    except NotConnected:
        pass
    else:
        raise AssertionError("sent behind the end")
    try:
        await link.when_connected()
    except NotConnected:
        pass
    else:
        raise AssertionError("connected behind the end")


async def body_raises(folder: Path) -> None:
    """Also: messages that are pending when the context ends get their outcome, and nobody needs to look at it."""
    pending: list[Delivery] = []
    try:
        async with embed.client(folder / "ipc.json", KEYRING, config=config(drain_seconds=0.1)) as link:
            pending += [link.send("job.run", b"") for _ in range(2)]
            waiting = asyncio.ensure_future(link.when_connected())
            await asyncio.sleep(0)
            raise LookupError("of the body")
    except LookupError:
        pass
    outcome: Any = (await asyncio.gather(pending[0], return_exceptions=True))[0]
    assert isinstance(outcome, Rejected)
    assert outcome.category is Category.SHUTTING_DOWN
    assert pending[1].done()
    with suppress(NotConnected):
        await waiting


async def wrong_arguments(folder: Path) -> None:
    for context in (
        embed.client(folder / "ipc.json", KEYRING, allowed_kinds=["job.done"]),  # without a handler
        embed.server(config(), None, answer, connection_file=""),
    ):
        try:
            async with context:
                raise AssertionError("entered")
        except ConfigError:
            pass
    async with embed.server(config(), None, answer, connection_file=folder / "ipc.json"):
        with suppress(ConnectionFileError):
            async with embed.server(config(), None, answer, connection_file=folder / "ipc.json"):
                raise AssertionError("two servers in one file")


async def cannot_announce(folder: Path) -> None:
    """What is bound already is closed, not only told to close."""
    full = ConnectionFileError(Category.CONNECTION_FILE_INVALID, "no space left")
    with patch("ipc_twisted.connection_file.write", side_effect=full), suppress(ConnectionFileError):
        async with embed.server(config(), KEYRING, answer, connection_file=folder / "ipc.json"):
            raise AssertionError("entered")


async def cancelled(folder: Path) -> None:
    """While it is in the body, and again while it leaves: both ends still end in order, and handlers with them."""
    entered, seen, ended = asyncio.Event(), asyncio.Event(), []

    async def never(_envelope: Any, _connection: Any) -> None:
        seen.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("handler")

    async def program() -> None:
        async with (
            embed.server(config(drain_seconds=0.3), KEYRING, never, connection_file=folder / "ipc.json"),
            embed.client(folder / "ipc.json", KEYRING, config=config(drain_seconds=0.3)) as link,
        ):
            await link.send("job.run", b"")
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(program())
    await entered.wait()
    await seen.wait()
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        ended.append("program")
    assert ended == ["handler", "program"]
    assert not (folder / "ipc.json").exists()


async def cancelled_while_leaving(folder: Path) -> None:
    """It first ends in order: what has no outcome gets one."""
    leaving = asyncio.Event()
    deliveries: list[Delivery] = []

    async def program() -> None:
        async with embed.client(folder / "ipc.json", KEYRING, config=config(drain_seconds=0.3)) as link:
            deliveries.append(link.send("job.run", b""))
            leaving.set()

    task = asyncio.ensure_future(program())
    await leaving.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    (outcome,) = await asyncio.gather(*deliveries, return_exceptions=True)
    assert isinstance(outcome, Rejected)
    assert outcome.category is Category.SHUTTING_DOWN


async def waiters_are_cancelled(folder: Path) -> None:
    """Who waits for an outcome may stop waiting; the message goes its way."""
    async with embed.client(folder / "ipc.json", KEYRING) as link:
        delivery = link.send("job.run", b"")
        with suppress(TimeoutError):
            await asyncio.wait_for(delivery, 0.01)
        assert not delivery.awaited
        first, second = asyncio.ensure_future(delivery), asyncio.ensure_future(delivery)
        connected = asyncio.ensure_future(link.when_connected())
        await asyncio.sleep(0)
        assert delivery.awaited
        first.cancel()
        connected.cancel()
        async with embed.server(config(), KEYRING, lambda *_: None, connection_file=folder / "ipc.json"):
            await second
            for one in (first, connected):
                await asyncio.wait([one])
                assert one.cancelled()


async def handlers_of_every_sort(folder: Path) -> None:
    """A coroutine, a future, a Deferred, nothing; and a Twisted coroutine that awaits deliveries on this same loop."""
    done: list[str] = []

    async def in_twisted(connection: Any) -> None:
        await succeed(None)
        try:
            await connection.send("job.stop", b"")
        except Rejected as problem:
            done.append(problem.category)

    async def in_asyncio() -> None:
        await asyncio.sleep(0)
        done.append("asyncio")

    def handler(envelope: Any, connection: Any) -> Any:
        match envelope.payload_bytes:
            case b"twisted":
                return Deferred.fromCoroutine(in_twisted(connection))
            case b"asyncio":
                return in_asyncio()
            case b"future":
                return asyncio.ensure_future(in_asyncio())
        done.append("nothing")
        return None

    async with (
        embed.server(config(), KEYRING, handler, connection_file=folder / "ipc.json"),
        embed.client(folder / "ipc.json", KEYRING) as link,
    ):
        for payload in (b"twisted", b"asyncio", b"future", b""):
            await link.send("job.run", payload)
    assert sorted(done) == ["asyncio", "asyncio", "kind_not_allowed", "nothing"]


async def what_goes_wrong_is_told(folder: Path) -> None:
    """A stop that fails is raised, and all the same nothing is left; a cancelled handler is a failed one."""
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    waiting = asyncio.Event()

    async def handler(envelope: Any, connection: Any) -> None:
        connection.transport.reactor.callLater(1_000, print)
        if envelope.payload_bytes:
            await waiting.wait()
        current: Any = asyncio.current_task()
        current.cancel()
        await asyncio.sleep(0)

    raised: list[BaseException] = []
    try:
        async with embed.server(
            config(drain_seconds=0.2), KEYRING, handler, connection_file=folder / "ipc.json"
        ) as server:
            with suppress(KeyFileError):
                server.reload_keys()
                raise AssertionError("reloaded from nowhere")
            async with embed.client(folder / "ipc.json", KEYRING) as link:
                await link.send("job.run", b"")
                await link.send("job.run", b"waits")
            stop: Any = server.service
            original = stop.stopService
            stop.stopService = lambda: original().addCallback(lambda _: 1 // 0)
    except ZeroDivisionError as problem:
        raised.append(problem)
    assert raised
    assert len([line for line in lines if "a handler failed" in line]) == 1, lines
    assert len([line for line in lines if "that have not ended" in line]) == 1, lines


async def two_at_a_time(folder: Path) -> None:
    """In two threads, each with a loop of its own, and two clients on each."""
    await there_and_back(folder / "first")  # Twisted's descriptor in reserve is not made for two threads
    failed: list[BaseException] = []

    async def both(inner: Path) -> None:
        await asyncio.gather(there_and_back(inner / "a"), there_and_back(inner / "b"))

    def in_thread(inner: Path) -> None:
        try:
            asyncio.run(both(inner))
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=in_thread, args=(folder / name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not failed, failed


async def with_the_programs_reactor(folder: Path) -> None:
    """Where Twisted's own reactor already runs on the loop, that one is used, and left as it was."""
    from twisted.internet.main import installReactor

    loop = asyncio.get_running_loop()
    sys.modules.pop("twisted.internet.reactor", None)
    reactor = AsyncioSelectorReactor(loop)
    installReactor(reactor)
    reactor.startRunning(installSignalHandlers=False)
    before = len(reactor.getReaders())
    async with embed.server(config(), KEYRING, answer, connection_file=folder / "ipc.json") as server:
        assert len(reactor.getReaders()) == before + 1
        connection = await connect_in_twisted(reactor, server.port, KEYRING).asFuture(loop)
        await connection.send("job.stop", b"").as_deferred().addErrback(lambda _: None).asFuture(loop)
        lost = connection.send("job.stop", b"")
        connection.transport.abortConnection()
        with suppress(DeliveryUnknown):
            await lost
        await connection.wait_closed().asFuture(loop)
    assert reactor.running
    assert len(reactor.getReaders()) == before
    assert not reactor.getDelayedCalls()
    reactor.disconnectAll()
    for reader in reactor._internalReaders:
        reactor.removeReader(reader)
        reader.connectionLost(None)
    del sys.modules["twisted.internet.reactor"]


def application(folder: Path) -> Any:
    from fastapi import FastAPI, Request

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[dict[str, Any]]:
        asyncio.get_running_loop().slow_callback_duration = SECONDS
        answers = Answers()
        async with (
            embed.server(config(), KEYRING, answer, connection_file=folder / "ipc.json"),
            embed.client(folder / "ipc.json", KEYRING, allowed_kinds=["job.done"], handler=answers) as link,
        ):
            yield {"link": link, "answers": answers}

    app = FastAPI(lifespan=lifespan)

    async def run(request: Any, text: str) -> str:
        await request.state.link.send("job.run", text.encode())
        answered: bytes = await request.state.answers.queue.get()
        return answered.decode()

    run.__annotations__["request"] = Request  # FastAPI looks up names in the module
    app.get("/{text}")(run)
    return app


async def in_a_test_client(folder: Path) -> None:
    """Starlette's, which makes a loop of its own in a thread each time."""
    from fastapi.testclient import TestClient

    app = application(folder)
    options = {"use_uvloop": LOOP == "uvloop"}

    def use() -> None:
        for _ in range(2):
            with TestClient(app, backend_options=options) as client:
                said = client.get("/hello").json()
                assert said == "HELLO"

    await asyncio.to_thread(use)


async def in_uvicorn(folder: Path) -> None:
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application(folder), log_level="warning", ws="none"))
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = await reader.read()
        assert said.endswith(b'"HELLO"')
        writer.close()
        await writer.wait_closed()
        server.should_exit = True
        await serving


SCENARIOS: dict[str, Callable[[Path], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        there_and_back,
        body_raises,
        wrong_arguments,
        cannot_announce,
        cancelled,
        cancelled_while_leaving,
        waiters_are_cancelled,
        handlers_of_every_sort,
        what_goes_wrong_is_told,
        two_at_a_time,
        with_the_programs_reactor,
        in_a_test_client,
        in_uvicorn,
    )
}


def descriptors() -> set[str]:
    """But for those of Twisted's one reserve and of folders that are being listed."""
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(name) for name in names if os.path.exists(name)} - {os.devnull}


async def program(scenario: Callable[[Path], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = SECONDS
    before = descriptors()
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.wait_for(scenario(Path(folder) / "run"), SECONDS)
    assert asyncio.all_tasks() == {asyncio.current_task()}, asyncio.all_tasks()
    assert descriptors() <= before, descriptors() - before
    scheduled = [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]
    assert scenario is with_the_programs_reactor or not scheduled, scheduled  # that reactor's timer is the program's
    assert "twisted.internet.reactor" not in sys.modules


if __name__ == "__main__":
    import uvloop

    LOOP, name = sys.argv[1:]
    factory = uvloop.new_event_loop if LOOP == "uvloop" else asyncio.new_event_loop
    for _ in range(2):
        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            runner.run(program(SCENARIOS[name]))
        gc.collect()
