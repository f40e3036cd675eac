"""systemd is told when ``twistd ipc`` is ready, reloads and stops, and a bad socket breaks nothing."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import globalLogPublisher

from ipc_twisted import systemd
from ipc_twisted.keys import write_new_key_file
from tests.log_lines import Lines
from tests.twistd_child import TwistdChild, assert_serves


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end, of a datagram socket that the environment names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = str(tmp_path / "notify") if request.param == "path" else f"@ipc-{secrets.token_hex(8)}"
        receiver.bind("\0" + name[1:] if name[0] == "@" else name)
        receiver.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


def test_a_server_says_ready_reloading_and_stopping(told: socket.socket, tmp_path: Path) -> None:
    key = tmp_path / "link.key"
    write_new_key_file(key)
    with TwistdChild("--key-file", str(key)) as child:
        assert told.recv(1000) == b"READY=1"
        assert child.info["port"] == child.port  # what clients look for is there by then
        child.signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", told.recv(1000))
        assert told.recv(1000) == b"READY=1"
        key.unlink()
        child.signal(signal.SIGHUP)  # what fails to reload is ready, too
        assert told.recv(1000).startswith(b"RELOADING=1")
        assert told.recv(1000) == b"READY=1"
        child.terminate()
        assert told.recv(1000) == b"STOPPING=1"


def test_a_server_that_cannot_start_is_not_ready(told: socket.socket, tmp_path: Path) -> None:
    with TwistdChild() as first:
        assert told.recv(1000) == b"READY=1"
        second = TwistdChild("--connection-file", str(first.connection_file))
        assert second.wait().code == 1
        second.close()
        told.setblocking(False)
        with pytest.raises(BlockingIOError):
            told.recv(1000)


@pytest.mark.parametrize(
    "address", ["relative", "/no/such/socket", "@nobody-listens-here", "vsock:2:1234", "/" + 200 * "x"]
)
def test_a_socket_that_is_of_no_use_is_a_line_in_the_log(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    try:
        systemd.notify(systemd.READY)
    finally:
        globalLogPublisher.removeObserver(lines)
    (line,) = lines
    assert line.startswith(f"systemd was not told 'READY=1': NOTIFY_SOCKET {address!r}: ")


def test_with_such_a_socket_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    with TwistdChild() as child:
        child.wait_for("systemd was not told 'READY=1'")
        assert_serves(child)


@pytest.mark.parametrize("value", [None, ""])
def test_without_systemd_nothing_is_said(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    try:
        systemd.notify(systemd.READY)
    finally:
        globalLogPublisher.removeObserver(lines)
    assert lines == []


def test_a_socket_that_is_full_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
        lines = Lines()
        globalLogPublisher.addObserver(lines)
        try:
            for _ in range(10_000):
                systemd.notify(systemd.READY)
                if lines:
                    break
        finally:
            globalLogPublisher.removeObserver(lines)
        assert len(lines) == 1
