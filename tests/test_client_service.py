"""``ExecutionIPCClientService`` on real sockets: connected again, nothing handed over twice, every outcome told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ipc_twisted import (
    Category,
    ConfigError,
    ConnectionFileError,
    Delivery,
    DeliveryUnknown,
    ExecutionIPCClientService,
    ExecutionIPCService,
    HandshakeError,
    KeyFileError,
    Keyring,
    NotConnected,
    Rejected,
    SecureEnvelope,
    SecureIPCProtocol,
    SendBufferFull,
)
from tests.memory_link import SECRET, config
from tests.serving import within

KIND = "job.run"
OTHER = bytes(range(100, 132))


class Receiver:
    """A server with a connection file, started and stopped at will, and what it was handed in all of its lives."""

    def __init__(self, file: Path, *, keyring: Keyring | None = None, **section: Any) -> None:
        from twisted.internet import reactor

        self.file = file
        self.received: list[bytes] = []
        self.handler: Callable[[SecureEnvelope, SecureIPCProtocol], Any] = lambda *_: None
        self._make = lambda: ExecutionIPCService(
            reactor, config(**section), keyring or Keyring([SECRET]), self._handle, connection_file=file
        )
        self.service = self._make()

    def _handle(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        self.received.append(envelope.payload_bytes)
        return self.handler(envelope, connection)

    def start(self) -> None:
        self.service = self._make()
        self.service.startService()

    async def stop(self) -> None:
        await within(self.service.stopService())

    @property
    def connections(self) -> list[SecureIPCProtocol]:
        assert self.service.factory is not None
        return list(self.service.factory.connections)

    def cut(self) -> None:
        """End every connection without a word."""
        for connection in self.connections:
            connection.abandon(Category.CONNECTION_LOST)


@asynccontextmanager
async def client(where: Path | int, keyring: Any = None, **options: Any) -> AsyncIterator[ExecutionIPCClientService]:
    """A client service that is started, and stopped in the end."""
    from twisted.internet import reactor

    service = ExecutionIPCClientService(reactor, where, Keyring([SECRET]) if keyring is None else keyring, **options)
    service.startService()
    try:
        yield service
    finally:
        await within(service.stopService())


@pytest.fixture
def receiver(runtime_folder: Path) -> Receiver:
    return Receiver(runtime_folder / "ipc_twisted" / "link.json")


async def outcome(delivery: Delivery) -> str:
    """``accepted`` or the category."""
    try:
        await within(delivery.as_deferred())
    except (Rejected, DeliveryUnknown) as problem:
        return str(problem.category)
    return "accepted"


async def turn(seconds: float = 0) -> None:
    from twisted.internet import reactor

    await deferLater(reactor, seconds)


# --- connecting -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_is_sent_before_the_server_is_up_is_delivered_once_it_is(receiver: Receiver) -> None:
    async with client(receiver.file) as service:
        sent = [service.send(KIND, b"%d" % number, trace_id="t") for number in range(3)]
        assert service.state[:2] == (None, 1)
        assert service.state.unsettled == 3
        assert isinstance(service.state.last_error, ConnectionFileError)
        receiver.start()
        connection = await within(service.whenConnected())
        assert [await outcome(one) for one in sent] == ["accepted"] * 3
        assert receiver.received == [b"0", b"1", b"2"]
        assert connection.is_open
        assert (await within(service.whenConnected())) is connection
        assert service.state.attempts == service.state.unsettled == service.state.buffered == 0
        assert service.state.connected_since is not None
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_it_finds_a_server_that_was_started_again_on_another_port_with_another_key(runtime_folder: Path) -> None:
    """Generated keys: both the port and the key are new."""
    from twisted.internet import reactor

    received: list[bytes] = []

    def server() -> ExecutionIPCService:
        def handler(envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
            received.append(envelope.payload_bytes)

        return ExecutionIPCService(reactor, config(), None, handler, connection_file=runtime_folder / "ipc" / "l.json")

    first, second = server(), server()
    service = ExecutionIPCClientService(reactor, runtime_folder / "ipc" / "l.json")
    first.startService()
    service.startService()
    assert await outcome(service.send(KIND, b"1")) == "accepted"
    await within(first.stopService())
    sent = service.send(KIND, b"2")
    second.startService()
    assert await outcome(sent) == "accepted"
    assert received == [b"1", b"2"]
    await within(service.stopService())
    await within(second.stopService())


@pytest_twisted.ensureDeferred
async def test_who_waits_for_a_connection_may_give_up_after_so_many_failures(receiver: Receiver) -> None:
    async with client(receiver.file) as service:
        with pytest.raises(ConnectionFileError, match="there is no connection file"):
            await within(service.whenConnected(failAfterFailures=1))
        with pytest.raises(ConnectionFileError):
            await within(service.whenConnected(failAfterFailures=2))
        assert service.state.attempts >= 3
        receiver.start()
        await within(service.whenConnected(failAfterFailures=100))
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_a_wrong_key_is_told_and_tried_again(receiver: Receiver) -> None:
    receiver.start()
    async with client(receiver.file, Keyring([OTHER])) as service:
        with pytest.raises(HandshakeError, match="The server's current key id is"):
            await within(service.whenConnected(failAfterFailures=2))
        assert service.state.last_error is not None
        assert service.state.last_error.category == "handshake_refused"
        assert service.statistics().handshakes == {"handshake_refused": 2}
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_a_key_file_is_read_anew_for_every_attempt(receiver: Receiver, tmp_path: Path) -> None:
    receiver.start()
    path = tmp_path / "key"
    async with client(receiver.file, path) as service:
        with pytest.raises(KeyFileError, match="there is no key file"):
            await within(service.whenConnected(failAfterFailures=1))
        path.touch(0o600)
        path.write_text(SECRET.hex())
        await within(service.whenConnected())
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_an_unexpected_error_of_an_attempt_is_logged_and_does_not_end_the_service(
    receiver: Receiver, logged_failures: list[Failure], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.start()
    with monkeypatch.context() as patch:
        patch.setattr("ipc_twisted.dialling.connection_file.read", lambda _path: 1 / 0)
        service_context = client(receiver.file)
        service = await service_context.__aenter__()
        await turn()
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()
    await within(service.whenConnected())
    await service_context.__aexit__(None, None, None)
    await receiver.stop()


@pytest.mark.parametrize(
    ("where", "keyring", "options", "says"),
    [
        (None, None, {}, "where: must be a connection file or a port"),
        (True, Keyring([SECRET]), {}, "where: must be a connection file or a port, not a bool"),
        (0, Keyring([SECRET]), {}, "port: must be an int from 1 to 65535"),
        (65_536, Keyring([SECRET]), {}, "port: must be an int from 1 to 65535"),
        (40_001, None, {}, "keyring: is needed"),
        ("f", 5, {}, "keyring: must be a Keyring"),
        ("f", None, {"allowed_kinds": ["x"]}, "handler: is needed"),
    ],
)
def test_a_wrong_argument_is_told_when_it_is_made(where: Any, keyring: Any, options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ExecutionIPCClientService(None, where, keyring, **options)


# --- what becomes of messages -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_cut_connection_is_made_again_and_nothing_is_handed_over_twice(receiver: Receiver) -> None:
    receiver.start()

    def cut_at_each_tenth(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        if envelope.payload_bytes.endswith(b"5"):
            connection.abandon(Category.CONNECTION_LOST)

    receiver.handler = cut_at_each_tenth
    async with client(receiver.file) as service:
        sent = [service.send(KIND, b"%d" % number) for number in range(30)]
        assert [await outcome(one) for one in sent] == ["accepted"] * 30
        assert sorted(receiver.received, key=int) == [b"%d" % number for number in range(30)]
        assert service.state.last_error is not None
        assert service.state.last_error.category == "connection_lost"
        counts = service.statistics()
        assert (counts.sent, counts.ended) == ({"accepted": 30}, {"connection_lost": 3})
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_with_another_instance_what_was_under_way_is_unknown_and_not_sent_again(receiver: Receiver) -> None:
    receiver.start()
    receiver.handler = lambda _envelope, connection: connection.abandon(Category.CONNECTION_LOST)
    async with client(receiver.file) as service:
        await within(service.whenConnected())
        lost = [service.send(KIND, b"handed over"), service.send(KIND, b"not handed over")]
        while not receiver.received:
            await turn()
        await receiver.stop()
        queued = service.send(KIND, b"queued")
        receiver.handler = lambda *_: None
        receiver.start()
        assert [await outcome(one) for one in lost] == ["delivery_unknown"] * 2
        assert await outcome(queued) == "accepted"
        assert receiver.received == [b"handed over", b"queued"]
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_what_a_server_in_order_did_not_take_goes_to_the_next_one(receiver: Receiver) -> None:
    """A stop rejects what comes meanwhile; none of it is lost or unknown."""
    receiver.start()
    running: list[Deferred[None]] = []

    def slow(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
        running.append(Deferred())
        return running[-1]

    receiver.handler = slow
    async with client(receiver.file) as service:
        first = service.send(KIND, b"first")
        assert await outcome(first) == "accepted"
        stopping = receiver.service.stopService()
        second = service.send(KIND, b"second")
        await turn(0.1)
        assert not second.done()
        running[0].callback(None)
        await within(stopping)
        receiver.handler = lambda *_: None
        receiver.start()
        assert await outcome(second) == "accepted"
        assert receiver.received == [b"first", b"second"]
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_a_message_too_large_for_the_server_is_rejected_and_poisons_nothing(runtime_folder: Path) -> None:
    receiver = Receiver(runtime_folder / "ipc" / "link.json", max_payload_bytes=10)
    async with client(receiver.file) as service:
        large, small = service.send(KIND, b"x" * 11), service.send(KIND, b"x" * 10)
        receiver.start()
        assert await outcome(large) == "payload_too_large"
        assert await outcome(small) == "accepted"
        assert receiver.received == [b"x" * 10]
        assert len(receiver.connections) == 1
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_what_finds_no_server_within_its_time_to_live_is_rejected_unsent(receiver: Receiver) -> None:
    async with client(receiver.file, config=config(auth={"ttl_seconds": 1})) as service:
        assert await outcome(service.send(KIND, b"")) == "expired"


@pytest_twisted.ensureDeferred
async def test_the_buffer_is_bounded_without_a_connection_too_and_drained_waits(receiver: Receiver) -> None:
    small = config({"send_buffer_bytes": 80_000}, max_payload_bytes=10_000)
    async with client(receiver.file, config=small) as service:
        for _ in range(7):
            service.send(KIND, bytes(10_000))
        with pytest.raises(SendBufferFull):
            service.send(KIND, bytes(10_000))
        waiting = service.drained()
        assert not waiting.called
        receiver.start()
        await within(waiting)
        assert await outcome(service.send(KIND, b"")) == "accepted"
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_what_the_server_sends_is_handed_to_the_handler(receiver: Receiver) -> None:
    def answer(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        connection.send("job.done", envelope.payload_bytes)

    got: list[bytes] = []
    receiver.handler = answer
    receiver.start()
    options = {"allowed_kinds": ["job.done"], "handler": lambda envelope, _: got.append(envelope.payload_bytes)}
    async with client(receiver.file, **options) as service:
        for number in range(3):
            assert await outcome(service.send(KIND, b"%d" % number)) == "accepted"
            receiver.cut()
            while service.state.connected_since is not None:
                await turn()
        while len(got) < 3:
            await turn()
    assert got == [b"0", b"1", b"2"]
    await receiver.stop()


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_moves_to_another_key_without_losing_anything(runtime_folder: Path) -> None:
    receiver = Receiver(runtime_folder / "ipc" / "link.json", keyring=Keyring([OTHER, SECRET]))
    receiver.start()
    async with client(receiver.file) as service:
        first = await within(service.whenConnected())
        sent = [service.send(KIND, b"%d" % number) for number in range(100)]
        service.use_keyring(Keyring([OTHER]))
        sent += [service.send(KIND, b"%d" % number) for number in range(100, 200)]
        assert [await outcome(one) for one in sent] == ["accepted"] * 200
        second = await within(service.whenConnected())
        assert [first.key_id, second.key_id] == [
            Keyring([secret]).current.key_id("execution_ipc") for secret in (SECRET, OTHER)
        ]
        assert receiver.received == [b"%d" % number for number in range(200)]
    await receiver.stop()


def test_what_is_no_source_of_keys_is_refused_and_not_shown(receiver: Receiver) -> None:
    service = ExecutionIPCClientService(None, receiver.file, Keyring([SECRET]))
    with pytest.raises(ConfigError, match=r"keyring: must be a Keyring, .* not a bytes$"):
        service.use_keyring(SECRET)  # type: ignore[arg-type]


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_nothing_can_be_sent_before_the_start(receiver: Receiver) -> None:
    service = ExecutionIPCClientService(None, receiver.file, Keyring([SECRET]))
    with pytest.raises(NotConnected, match="is not running"):
        service.send(KIND, b"")


@pytest_twisted.ensureDeferred
async def test_who_waits_for_a_connection_learns_that_it_was_stopped(receiver: Receiver) -> None:
    async with client(receiver.file) as service:
        waiting = service.whenConnected()
    with pytest.raises(CancelledError):
        await within(waiting)
    with pytest.raises(CancelledError):
        await within(service.whenConnected())
    with pytest.raises(NotConnected):
        service.send(KIND, b"")
    await within(service.stopService())


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_for_the_outcomes_and_connects_again_for_them(receiver: Receiver) -> None:
    from twisted.internet import reactor

    service = ExecutionIPCClientService(reactor, receiver.file, Keyring([SECRET]))
    service.startService()
    sent = service.send(KIND, b"")
    stopping = service.stopService()
    await turn(0.05)
    assert not stopping.called
    receiver.start()
    assert await outcome(sent) == "accepted"
    await within(stopping)
    assert receiver.received == [b""]
    assert service.state.connected_since is None
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_within_its_time_and_says_what_it_knows(receiver: Receiver) -> None:
    """Never written: rejected. Written, and the connection ended without a word: unknown."""
    receiver.start()
    receiver.handler = lambda _envelope, connection: connection.abandon(Category.CONNECTION_LOST)
    async with client(receiver.file, config=config({"drain_seconds": 0.3})) as service:
        await within(service.whenConnected())
        written = service.send(KIND, b"")
        while service.state.connected_since is not None:
            await turn()
        await receiver.stop()
        unwritten = service.send(KIND, b"")
    assert [await outcome(written), await outcome(unwritten)] == ["delivery_unknown", "shutting_down"]


@pytest_twisted.ensureDeferred
async def test_a_stop_waits_for_handlers_but_not_for_ever(receiver: Receiver) -> None:
    receiver.handler = lambda _envelope, connection: connection.send("job.done", b"") and None
    receiver.start()
    running: list[Deferred[None]] = []

    def never(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
        running.append(Deferred())
        return running[-1]

    options = {"allowed_kinds": ["job.done"], "handler": never, "config": config({"drain_seconds": 0.3})}
    async with client(receiver.file, **options) as service:
        service.send(KIND, b"")
        while not running:
            await turn()
    running[0].callback(None)
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_it_is_not_started_before_it_has_stopped(receiver: Receiver) -> None:
    """Two loops would dial at once, or what is sent to the second wait for ever."""
    async with client(receiver.file) as service:
        sent = service.send(KIND, b"1")
        with pytest.raises(RuntimeError, match="await stopService"):
            service.startService()
        stopping = service.stopService()
        with pytest.raises(RuntimeError, match="await stopService"):
            service.startService()
        receiver.start()
        await within(stopping)
        assert await outcome(sent) == "accepted"
        service.startService()
        assert await outcome(service.send(KIND, b"2")) == "accepted"
    assert receiver.received == [b"1", b"2"]
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_it_may_be_started_again(receiver: Receiver) -> None:
    from twisted.internet import reactor

    receiver.start()
    service = ExecutionIPCClientService(reactor, receiver.file, Keyring([SECRET]))
    for number in range(2):
        service.startService()
        assert await outcome(service.send(KIND, b"%d" % number)) == "accepted"
        await within(service.stopService())
    assert receiver.received == [b"0", b"1"]
    await receiver.stop()
