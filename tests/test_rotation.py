"""Keys are changed one side at a time, under way: what is dropped ends, what stays does not notice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ipc_twisted import ExecutionIPCService, HandshakeError, KeyFileError, Keyring, SecureIPCProtocol, connect
from ipc_twisted.connection_file import read
from tests.log_lines import Lines
from tests.memory_link import SECRET, MemoryServer, config
from tests.raw_channel import PeerClosed
from tests.raw_peer import Peer
from tests.serving import within
from tests.twistd_child import TwistdChild

NEW = bytes(range(40, 72))


def write(path: Path, *secrets: bytes) -> Path:
    """A key file that is ours alone."""
    path.touch(0o600)
    path.write_text("".join(f"{secret.hex()}\n" for secret in secrets))
    return path


def key_id(secret: bytes) -> str:
    return Keyring([secret]).current.key_id("execution_ipc").hex()


class FactoryTests(SynchronousTestCase):
    """What :meth:`SecureIPCFactory.use_keyring` does to connections."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def test_a_connection_under_a_key_that_stays_goes_on(self) -> None:
        link = self.server.connect()
        self.server.factory.use_keyring(Keyring([NEW, SECRET]))
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")

    def test_one_under_a_dropped_key_is_told(self) -> None:
        link = self.server.connect()
        seq = link.send()
        self.server.factory.use_keyring(Keyring([NEW]))
        close = link.peer.read_until_close()
        self.assertEqual((close["category"], close["through"]), ("key_unknown", seq))
        self.assertEqual(self.server.factory.connections, set())

    def test_a_new_connection_needs_a_key_that_is_there(self) -> None:
        self.server.factory.use_keyring(Keyring([NEW]))
        link = self.server.accept()
        link.peer.handshake(NEW)
        self.assertEqual(link.peer.receipt_for(link.send()), "accepted")
        with self.assertRaises(PeerClosed):
            self.server.accept().peer.handshake(SECRET)

    def test_a_handshake_under_a_key_that_is_dropped_meanwhile_fails(self) -> None:
        link = self.server.accept()
        link.peer.send_m1(SECRET)
        link.peer.read_m2()
        self.server.factory.use_keyring(Keyring([NEW]))
        link.peer.send_raw(link.peer.m3_frame)
        self.assertTrue(link.transport.aborted)
        self.assertEqual(self.server.factory.counters["handshake", "key_unknown"], 1)


def service(path: Path, **options: Any) -> ExecutionIPCService:
    from twisted.internet import reactor

    auth = {"secret_mode": "static", "key_file": str(path)}
    return ExecutionIPCService(reactor, config(auth=auth), None, lambda *_: None, **options)


async def joined(server: ExecutionIPCService, secret: bytes) -> SecureIPCProtocol:
    from twisted.internet import reactor

    return await within(connect(reactor, server.connection_file, Keyring([secret])))


@pytest_twisted.ensureDeferred
async def test_a_service_reads_its_key_file_again_and_says_the_new_current_key(tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET)
    server = service(path)
    server.startService()
    assert read(server.connection_file).key_id == key_id(SECRET)
    old = await joined(server, SECRET)
    write(path, NEW, SECRET)
    server.reload_keys()
    assert read(server.connection_file).key_id == key_id(NEW)
    new = await joined(server, NEW)
    await within(old.send("job.run", b"").as_deferred())
    write(path, NEW)
    server.reload_keys()
    assert await within(old.wait_closed()) == "key_unknown"
    await within(new.send("job.run", b"").as_deferred())
    with pytest.raises(HandshakeError):
        await joined(server, SECRET)
    await within(new.close())
    await within(server.stopService())


@pytest_twisted.ensureDeferred
async def test_a_key_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET)
    server = service(path)
    server.startService()
    before = read(server.connection_file)
    path.write_text("none")
    with pytest.raises(KeyFileError, match="line 1 is not a key"):
        server.reload_keys()
    assert read(server.connection_file) == before
    connection = await joined(server, SECRET)
    await within(connection.close())
    await within(server.stopService())


@pytest_twisted.ensureDeferred
async def test_keys_that_did_not_come_from_a_file_cannot_be_read_again_but_changed(runtime_folder: Path) -> None:
    """A generated one is then of no use any more, and goes."""
    from twisted.internet import reactor

    server = ExecutionIPCService(reactor, config(), None, lambda *_: None)
    server.startService()
    key_file = Path(read(server.connection_file).key_file or "")
    assert key_file.exists()
    with pytest.raises(KeyFileError, match="did not come from a key file"):
        server.reload_keys()
    server.use_keyring(Keyring([NEW]))
    assert not key_file.exists()
    info = read(server.connection_file)
    assert (info.key_file, info.key_id) == (None, key_id(NEW))
    connection = await joined(server, NEW)
    await within(connection.close())
    await within(server.stopService())


@pytest_twisted.ensureDeferred
async def test_a_connection_file_that_another_server_has_taken_is_left_alone(tmp_path: Path) -> None:
    server = service(write(tmp_path / "key", SECRET))
    server.startService()
    server.connection_file.write_text("another's")
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    server.use_keyring(Keyring([NEW]))
    globalLogPublisher.removeObserver(lines)
    assert lines == [f"the keys were changed: current key id {key_id(NEW)}"]
    assert server.connection_file.read_text() == "another's"
    await within(server.stopService())
    assert server.connection_file.read_text() == "another's"


def test_keys_may_be_changed_before_the_start(tmp_path: Path) -> None:
    server = service(write(tmp_path / "key", SECRET))
    server.use_keyring(Keyring([NEW]))
    assert server.factory is None


def test_twistd_reads_the_key_file_again_at_sighup(tmp_path: Path) -> None:
    path = write(tmp_path / "key", SECRET)
    with TwistdChild("--key-file", str(path)) as child, Peer.connect(child.port, SECRET) as old:
        write(path, NEW, SECRET)
        child.signal(signal.SIGHUP)
        child.wait_for(f"the keys were changed: current key id {key_id(NEW)}")
        assert old.receipt_for(old.send_envelope("job.run", b"")) == "accepted"
        path.write_text("none")
        child.signal(signal.SIGHUP)
        child.wait_for("the keys were not changed, those there are stay: key_invalid: .* line 1 is not a key")
        write(path, NEW)
        child.signal(signal.SIGHUP)
        assert old.read_until_close()["category"] == "key_unknown"
        with Peer.connect(child.port, NEW) as new:
            assert new.receipt_for(new.send_envelope("job.run", b"")) == "accepted"
        done = child.terminate()
    assert done.code == -signal.SIGTERM
    assert "Traceback" not in done.output


def test_without_a_key_file_sighup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits that it is ignored, as under nohup
    try:
        child = TwistdChild()
    finally:
        signal.signal(signal.SIGHUP, before)
    with child:
        child.signal(signal.SIGHUP)
        assert child.wait().code == -signal.SIGHUP
