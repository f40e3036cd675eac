"""``ExecutionIPCService`` inside a running reactor: it starts whole or not at all, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock

from ipc_twisted import (
    BindForbidden,
    Category,
    ConfigError,
    ConnectionFileError,
    ExecutionIPCService,
    IPCError,
    KeyFileError,
    Keyring,
    SecureEnvelope,
    SecureIPCFactory,
    SecureIPCProtocol,
    connect,
    listen,
)
from ipc_twisted.keys import write_new_key_file
from tests.memory_link import SECRET, config
from tests.raw_peer import HOST, Peer
from tests.serving import in_thread, within
from tests.twistd_child import read_key

KIND = "job.run"


class Service:
    """One service of a test, and what it was handed."""

    def __init__(self, *, keyring: Keyring | None = None, file: Path | None = None, **section: Any) -> None:
        from twisted.internet import reactor

        self.received: list[SecureEnvelope] = []
        self.handler: Callable[[SecureEnvelope, SecureIPCProtocol], Any] = lambda *_: None
        self.service = ExecutionIPCService(reactor, config(**section), keyring, self._handle, connection_file=file)

    def _handle(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        self.received.append(envelope)
        return self.handler(envelope, connection)

    @property
    def file(self) -> Path:
        return self.service.connection_file

    def start(self) -> None:
        self.service.startService()

    async def stop(self) -> None:
        await within(self.service.stopService())

    async def connect(self, **options: Any) -> SecureIPCProtocol:
        from twisted.internet import reactor

        return await within(connect(reactor, self.file, **options))


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def a_taken_port() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as other:
        yield other.getsockname()[1]


# --- start and stop ---------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_may_start_and_stop_twice_in_one_process(runtime_folder: Path) -> None:
    both = Service()
    keys = set()
    for started in (1, 2):
        both.start()
        assert both.service.running
        assert files_under(runtime_folder) == ["ipc_twisted/execution_ipc.json", "ipc_twisted/execution_ipc.key"]
        keys.add((both.file.parent / "execution_ipc.key").read_text())
        connection = await both.connect()
        await within(connection.send(KIND, b"").as_deferred())
        await within(connection.close())
        await both.stop()
        assert not both.service.running
        assert both.service.port == 0
        assert files_under(runtime_folder) == []
        assert len(both.received) == len(keys) == started


@pytest_twisted.ensureDeferred
async def test_when_start_returns_clients_can_connect_and_the_files_are_only_ours(runtime_folder: Path) -> None:
    service = Service(service="jobs.v1")
    before = os.umask(0)  # whatever the umask is
    try:
        service.start()
    finally:
        os.umask(before)
    assert service.file == runtime_folder / "ipc_twisted" / "jobs.v1.json"
    info = json.loads(service.file.read_text())
    key_file = Path(info["key_file"])
    assert (mode(service.file), mode(key_file), mode(service.file.parent)) == (0o600, 0o600, 0o700)
    assert (info["port"], info["service"], info["pid"]) == (service.service.port, "jobs.v1", os.getpid())
    assert info["key_id"] == Keyring.from_file(key_file).current.key_id("jobs.v1").hex()
    assert read_key(key_file).hex() not in service.file.read_text()
    connection = await service.connect()
    await within(connection.close())
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_nothing_is_bound_read_or_written_before_the_start(runtime_folder: Path) -> None:
    service = Service(auth={"secret_mode": "static", "key_file": "/does/not/exist"})
    assert service.service.factory is None
    assert service.service.port == 0
    assert [*runtime_folder.iterdir()] == []


@pytest_twisted.ensureDeferred
async def test_it_starts_and_stops_with_its_parent(runtime_folder: Path) -> None:
    parent = MultiService()
    service = Service()
    service.service.setServiceParent(parent)
    parent.startService()
    assert service.service.port
    await within(maybeDeferred(parent.stopService))
    assert files_under(runtime_folder) == []


@pytest_twisted.ensureDeferred
async def test_stopping_what_never_started_does_nothing() -> None:
    service = Service()
    await service.stop()
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_stopping_twice_does_nothing_more() -> None:
    service = Service()
    service.start()
    await service.stop()
    await service.stop()


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_key_file_of_the_users_stays_and_is_not_named_to_others(tmp_path: Path, runtime_folder: Path) -> None:
    from twisted.internet import reactor

    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(SECRET.hex())
    service = Service(auth={"secret_mode": "static", "key_file": str(key_file)})
    service.start()
    assert "key_file" not in json.loads(service.file.read_text())
    assert files_under(runtime_folder) == ["ipc_twisted/execution_ipc.json"]
    with pytest.raises(ConfigError, match="keyring"):
        await within(connect(reactor, service.file))
    connection = await service.connect(keyring=Keyring.from_file(key_file))
    await within(connection.close())
    await service.stop()
    assert key_file.read_text() == SECRET.hex()


@pytest_twisted.ensureDeferred
async def test_a_keyring_that_is_passed_in_needs_no_file(runtime_folder: Path) -> None:
    service = Service(keyring=Keyring([SECRET]))
    service.start()
    assert files_under(runtime_folder) == ["ipc_twisted/execution_ipc.json"]
    connection = await service.connect(keyring=Keyring([SECRET]))
    await within(connection.close())
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_both_keys_of_a_keyring_are_accepted() -> None:
    old, new = Keyring([SECRET]), Keyring([SECRET[::-1]])
    service = Service(keyring=Keyring([SECRET[::-1], SECRET]))
    service.start()
    for keyring in (old, new):
        connection = await service.connect(keyring=keyring)
        await within(connection.close())
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_the_files_that_a_killed_server_left_are_replaced(runtime_folder: Path) -> None:
    service = Service()
    service.start()
    left = {path: path.read_text() for path in (service.file, service.file.with_suffix(".key"))}
    await service.stop()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    for path, content in left.items():
        path.touch(0o600)
        path.write_text(content.replace(f'"pid": {os.getpid()}', f'"pid": {dead.pid}'))
    service.start()
    for path, content in left.items():
        assert path.read_text() != content
    connection = await service.connect()
    await within(connection.close())
    await service.stop()
    assert files_under(runtime_folder) == []


@pytest_twisted.ensureDeferred
async def test_a_key_file_of_the_users_with_that_name_is_neither_replaced_nor_removed(runtime_folder: Path) -> None:
    folder = runtime_folder / "ipc_twisted"
    folder.mkdir(0o700)
    users = folder / "execution_ipc.key"
    write_new_key_file(users)
    before = users.read_text()
    service = Service()
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        service.start()
    assert users.read_text() == before
    assert files_under(runtime_folder) == ["ipc_twisted/execution_ipc.key"]


# --- what keeps it from starting --------------------------------------------------------------------------------------


def _open_to_others(folder: Path) -> dict[str, Any]:
    (folder / "ipc_twisted").mkdir()
    (folder / "ipc_twisted").chmod(0o755)
    return {}


def _a_file_for_a_folder(folder: Path) -> dict[str, Any]:
    (folder / "ipc_twisted").touch()
    return {}


def _a_folder_for_a_file(folder: Path) -> dict[str, Any]:
    folder.chmod(0o700)
    (folder / "taken.json").mkdir()
    return {"file": folder / "taken.json"}


def _static_key(path: str | None) -> Callable[[Path], dict[str, Any]]:
    return lambda _folder: {"auth": {"secret_mode": "static", **({} if path is None else {"key_file": path})}}


def _a_key_for_a_connection_file(folder: Path) -> dict[str, Any]:
    return {"file": folder / "ipc_twisted" / "link.key"}


FAILURES: dict[str, tuple[Callable[[Path], dict[str, Any]], type[IPCError], str]] = {
    "a folder open to others": (_open_to_others, ConnectionFileError, "chmod 700"),
    "a file for a folder": (_a_file_for_a_folder, ConnectionFileError, "cannot be made"),
    "a folder for a file": (_a_folder_for_a_file, ConnectionFileError, "cannot be written"),
    "a connection file where the key goes": (_a_key_for_a_connection_file, ConnectionFileError, "another suffix"),
    "no key file named": (_static_key(None), ConfigError, "auth.key_file: is needed"),
    "no key file there": (_static_key("/does/not/exist"), KeyFileError, "keygen"),
    "/dev/zero for a key file": (_static_key("/dev/zero"), KeyFileError, "not a regular file"),
    "too few descriptors": (lambda _: {"limits": {"max_connections": 10**9}}, ConfigError, "ulimit -n"),
}


@pytest.mark.parametrize(("prepare", "error", "says"), FAILURES.values(), ids=FAILURES)
@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_leaves_nothing_behind(
    runtime_folder: Path, prepare: Callable[[Path], dict[str, Any]], error: type[IPCError], says: str
) -> None:
    service = Service(**prepare(runtime_folder))
    before = files_under(runtime_folder)
    with pytest.raises(error) as raised:
        service.start()
    assert says in str(raised.value)
    assert files_under(runtime_folder) == before
    assert service.service.port == 0
    assert not service.service.running
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken_leaves_nothing_behind_and_the_next_start_may_work(runtime_folder: Path) -> None:
    with a_taken_port() as port:
        service = Service(bind_port=port)
        with pytest.raises(CannotListenError, match=str(port)):
            service.start()
        assert files_under(runtime_folder) == []
        assert not service.service.running
    service.start()
    assert service.service.port == port
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_limits_that_do_not_fit_the_soft_limit_of_descriptors_are_refused_at_the_start() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    service = Service(limits={"max_connections": 300, "max_pending_handshakes": 100})
    needed = 300 + 100 + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed - 1, hard))
    try:
        with pytest.raises(ConfigError) as raised:
            service.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        service.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (problem,) = raised.value.problems
    assert problem.startswith("runtime.platform.execution_ipc.limits.max_connections: 300")
    assert f"ulimit -n {needed}" in problem
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_a_second_server_with_the_same_file_is_refused_and_the_first_goes_on(runtime_folder: Path) -> None:
    first, second = Service(), Service()
    first.start()
    before = files_under(runtime_folder), first.file.read_bytes()
    with pytest.raises(ConnectionFileError, match="its server lives"):
        second.start()
    assert (files_under(runtime_folder), first.file.read_bytes()) == before
    connection = await first.connect()
    await within(connection.send(KIND, b"").as_deferred())
    await within(connection.close())
    await first.stop()


@pytest_twisted.ensureDeferred
async def test_a_file_that_another_server_has_replaced_is_not_removed(runtime_folder: Path) -> None:
    service = Service()
    service.start()
    info = json.loads(service.file.read_text())
    service.file.write_text(json.dumps({**info, "pid": 1}))
    await service.stop()
    assert json.loads(service.file.read_text())["pid"] == 1


@pytest_twisted.ensureDeferred
async def test_a_reactor_that_does_not_bind_at_once_is_an_error_and_not_a_server_without_a_port(
    runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts the service must learn of a bind that fails; a Deferred that fires later is too late for that."""
    cancelled: list[Deferred[Any]] = []
    monkeypatch.setattr("ipc_twisted.service.listen", lambda *_: Deferred(cancelled.append))
    service = Service()
    with pytest.raises(RuntimeError, match="does not bind at once"):
        service.start()
    assert len(cancelled) == 1
    assert files_under(runtime_folder) == []


class _ElsewhereReactor(MemoryReactorClock):
    """Binds somewhere else than it was asked to."""

    def __init__(self, host: str, family: int = socket.AF_INET) -> None:
        super().__init__()
        self.host = host
        self.family = family
        self.stopped = False

    def listenTCP(self, port: int, *_: Any, **__: Any) -> Any:  # noqa: N802  # Twisted's name
        reactor = self

        class Port:
            addressFamily = reactor.family  # noqa: N815  # Twisted's name

            def getHost(self) -> IPv4Address:
                return IPv4Address("TCP", reactor.host, port)

            def stopListening(self) -> None:
                reactor.stopped = True

        return Port()


@pytest.mark.parametrize(
    ("host", "family"),
    [
        *((host, socket.AF_INET) for host in ("0.0.0.0", "127.0.0.2", "192.168.1.1", "")),
        ("127.0.0.1", socket.AF_INET6),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_socket_that_is_bound_elsewhere_is_closed(host: str, family: int) -> None:
    reactor = _ElsewhereReactor(host, family)
    factory = SecureIPCFactory(reactor, config(), Keyring([SECRET]), lambda *_: None)
    with pytest.raises(BindForbidden) as raised:
        await within(listen(reactor, factory))
    assert raised.value.category == Category.BIND_FORBIDDEN
    assert reactor.stopped


@pytest_twisted.ensureDeferred
async def test_one_newcomer_is_accepted_in_a_turn_however_many_wait() -> None:
    """So that what it has written can be read before others come and it has to go."""
    from twisted.internet import reactor

    factory = SecureIPCFactory(cast(Any, reactor), config(), Keyring([SECRET]), lambda *_: None)
    port: Any = await within(listen(reactor, factory))
    waiting = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(4)]
    accepted = []
    for _ in waiting:
        port.doRead()
        accepted.append(len(factory.transports))
    for protocol in list(factory.transports):
        protocol.abandon(Category.EVICTED)
        await within(protocol.wait_closed())
    for newcomer in waiting:
        newcomer.close()
    await within(port.stopListening())
    assert accepted == [1, 2, 3, 4]


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_is_connected_at_the_stop_is_told_and_every_sender_has_an_outcome() -> None:
    service = Service()
    service.start()
    connections = [await service.connect() for _ in range(3)]
    for connection in connections:
        await within(connection.send(KIND, b"").as_deferred())
    ends = [connection.wait_closed() for connection in connections]
    await service.stop()
    assert [await within(end) for end in ends] == [Category.SHUTTING_DOWN] * 3


@pytest_twisted.ensureDeferred
async def test_started_again_while_it_stops_it_still_ends_who_was_connected() -> None:
    service = Service()
    service.start()
    connection = await service.connect()
    end = connection.wait_closed()
    stopping = service.service.stopService()
    service.start()
    await within(stopping)
    assert await within(end) == Category.SHUTTING_DOWN
    again = await service.connect()
    await within(again.send(KIND, b"").as_deferred())
    await service.stop()


def test_what_is_no_keyring_is_refused() -> None:
    with pytest.raises(ConfigError, match="keyring: must be a Keyring, not a str"):
        Service(keyring=Keyring([SECRET])).service.use_keyring("secret")  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_nothing_is_left_when_the_stop_is_over_not_even_of_strangers_and_silent_peers() -> None:
    """One that has said nothing, one that never answers CLOSE, and one whose end was already on its way."""
    service = Service(keyring=Keyring([SECRET]))
    service.start()

    def begin(port: int) -> list[Peer]:
        silent, faulty = Peer.connect(port, SECRET), Peer.connect(port, SECRET)
        faulty.send_raw(bytes(4))
        assert faulty.read_until_close()["category"] == "malformed"
        silent.receipt_for(silent.send_envelope(KIND))
        stranger = Peer.open(port)
        stranger.send_m1(SECRET)
        stranger.read_m2()
        return [stranger, silent, faulty]

    peers = await in_thread(begin, service.service.port)
    factory = service.service.factory
    assert factory is not None
    assert len(factory.transports) == 3
    await service.stop()
    assert factory.transports == set()
    for peer in peers:
        peer.close()


@pytest_twisted.ensureDeferred
async def test_a_handler_may_stop_the_service_from_inside() -> None:
    service = Service()
    stopped: list[Deferred[None]] = []

    def handler(_envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> Deferred[None]:
        stopped.append(service.service.stopService())
        return stopped[0]

    service.handler = handler
    service.start()
    connection = await service.connect()
    end = connection.wait_closed()
    await within(connection.send(KIND, b"").as_deferred())
    assert await within(end) == Category.SHUTTING_DOWN
    await within(stopped[0])


def test_a_connection_file_that_stands_where_the_generated_key_goes_is_refused(runtime_folder: Path) -> None:
    with pytest.raises(ConnectionFileError, match="give the connection file another suffix"):
        Service(file=runtime_folder / "link.key").start()
    assert files_under(runtime_folder) == []


def test_of_servers_that_start_at_once_one_comes_up_and_the_others_say_why(runtime_folder: Path) -> None:
    """Check and write are one step: else the last writer would own the file, and the others would not know."""
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=", "ipc"]
    children = [
        subprocess.Popen([*command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(4)
    ]
    up = []
    try:
        for child in children:
            assert child.stdout is not None
            lines = iter(child.stdout)
            last = next(line for line in lines if "listening on" in line or "its server lives" in line)
            up.append("listening on" in last)
    finally:
        for child in children:
            child.terminate()
            child.communicate(timeout=30)
    assert up.count(True) == 1
    assert files_under(runtime_folder) == []
