"""Mistakes of the application: each is told to who made it, and disturbs nobody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_twisted
from twisted.python.failure import Failure

from ipc_twisted import ConfigError, ExecutionIPCConfig, ExecutionIPCService, Keyring, SecureIPCFactory, connect
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.handlers import log
from tests.memory_link import SECRET, MemoryClient, MemoryServer
from tests.serving import within


def taken(logged_failures: list[Failure]) -> list[str]:
    """What was logged as a failure, as the test expects."""
    found = [failure.type.__name__ for failure in logged_failures if failure.type is not None]
    logged_failures.clear()
    return found


@pytest.fixture
def client() -> MemoryClient:
    client = MemoryClient()
    client.peer.handshake(SECRET)
    return client


def test_send_in_another_thread_is_refused(client: MemoryClient) -> None:
    """It would be written whenever the reactor next happens to turn, or break its tables."""
    raised: list[BaseException] = []

    def send() -> None:
        try:
            client.protocol.send("job.run", b"")
        except RuntimeError as problem:
            raised.append(problem)

    thread = Thread(target=send)
    thread.start()
    thread.join()
    assert "reactor.callFromThread" in str(raised[0])
    assert client.protocol.buffered == 0


def test_a_callback_of_a_delivery_that_raises_is_logged_and_disturbs_nobody(
    client: MemoryClient, logged_failures: list[Failure]
) -> None:
    first, second = client.protocol.send("job.run", b"1"), client.protocol.send("job.run", b"2")
    ends: list[str] = []

    def fail(_: object) -> None:
        raise LookupError("a bug of the application's")

    first.add_done_callback(fail)
    first.add_done_callback(lambda _: ends.append("the second callback of the first"))
    second.add_done_callback(lambda _: ends.append("the second"))
    client.clock.advance(0)
    for _ in range(2):
        client.peer.read_envelope()
    client.peer.send_receipt(1)
    assert ends == ["the second callback of the first", "the second"]
    assert taken(logged_failures) == ["LookupError"]
    assert client.protocol.is_open


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit, LookupError])
def test_whatever_a_handler_raises_the_next_message_is_handed_over(
    error: type[BaseException], logged_failures: list[Failure]
) -> None:
    def handler(envelope: SecureEnvelope, _connection: object) -> None:
        if envelope.payload_bytes == b"raise":
            raise error

    server = MemoryServer(handler=handler)
    link = server.connect()
    link.peer.send_raw(link.frame(b"raise") + link.frame(b"next"))
    assert [envelope.payload_bytes for envelope, _ in server.received] == [b"raise", b"next"]
    assert taken(logged_failures) == [error.__name__]


def test_no_way_to_show_an_envelope_shows_its_payload_or_signature() -> None:
    envelope = SecureEnvelope(1, "n", "k", payload_bytes=b"swordfish", sig="5eed" * 16)
    for shown in (repr(envelope), str(envelope), repr(envelope.__rich_repr__())):
        assert "swordfish" not in shown
        assert "5eed" not in shown


CONFIG = ExecutionIPCConfig.from_mapping({"allowed_kinds": ["job.run"]})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"where": 1, "keyring": 5}, "keyring: must be a Keyring, such as Keyring.from_file"),
        ({"where": 1, "keyring": SECRET}, "keyring: must be a Keyring"),
        ({"where": None}, "where: must be a connection file or a port"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_argument_of_connect_is_told(arguments: dict[str, Any], says: str) -> None:
    from twisted.internet import reactor

    with pytest.raises(ConfigError, match=says):
        await within(connect(reactor, **arguments))


def test_a_wrong_argument_of_a_service_or_factory_is_told() -> None:
    wrong: Any = {"allowed_kinds": ["job.run"]}
    with pytest.raises(ConfigError, match="config: must be an ExecutionIPCConfig"):
        ExecutionIPCService(None, wrong, None, log)
    with pytest.raises(ConfigError, match="must be an ExecutionIPCConfig and a Keyring"):
        SecureIPCFactory(MemoryServer().clock, CONFIG, wrong, log)
    with pytest.raises(ConfigError, match="connection_file: must name a file"):
        ExecutionIPCService(None, CONFIG, Keyring([SECRET]), log, connection_file=".")


@pytest.mark.parametrize("nodaemon", [True, False])
def test_a_server_that_cannot_start_ends_says_why_and_leaves_no_pidfile(tmp_path: Path, nodaemon: bool) -> None:
    """Also as a daemon: its parent waits to be told, and would wait for ever."""
    (tmp_path / "open").mkdir(0o755)
    (tmp_path / "open").chmod(0o755)
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--pidfile=twistd.pid"]
    command += ["--nodaemon"] if nodaemon else ["--logfile=twistd.log"]
    reading, writing = os.pipe()  # a daemon's parent ends as soon as it is told; this ends once the daemon has, too
    with open(reading, "rb") as ended:
        done = subprocess.run(
            [*command, "ipc", "--connection-file", str(tmp_path / "open" / "link.json")],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            pass_fds=[writing],
        )
        os.close(writing)
        ended.read()
    assert done.returncode == 1
    assert not (tmp_path / "twistd.pid").exists()
    log_file = tmp_path / "twistd.log"
    assert "the folder is open to others" in done.stdout + done.stderr + (
        log_file.read_text() if log_file.exists() else ""
    )
