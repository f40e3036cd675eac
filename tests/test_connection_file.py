"""The connection file: written so that nobody reads half of it, read so that nobody else's is believed."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc_twisted import connection_file
from ipc_twisted.connection_file import MAX_BYTES, ConnectionInfo
from ipc_twisted.errors import Category, ConnectionFileError

GOOD: dict[str, Any] = {
    "protocol": 1,
    "transport": "tcp_local",
    "host": "127.0.0.1",
    "port": 40001,
    "service": "execution_ipc",
    "key_id": "0e693fc16244bd21",
    "pid": os.getpid(),
    "started_at": 1_763_900_000,
}
INFO = ConnectionInfo(**GOOD)


def there(folder: Path, content: bytes | dict[str, Any] = GOOD, mode: int = 0o600) -> Path:
    path = folder / "execution_ipc.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConnectionFileError) as caught:
        connection_file.read(path)
    assert caught.value.category is Category.CONNECTION_FILE_INVALID
    assert str(path) in str(caught.value)
    return str(caught.value)


# Writing and reading


@pytest.mark.parametrize("key_file", [None, "/run/user/0/ipc_twisted/execution_ipc.key"])
def test_what_was_written_is_read(tmp_path: Path, key_file: str | None) -> None:
    info = msgspec.structs.replace(INFO, key_file=key_file)
    connection_file.write(tmp_path / "c.json", info)
    assert connection_file.read(str(tmp_path / "c.json")) == info
    content = json.loads((tmp_path / "c.json").read_text())
    assert content == GOOD | ({} if key_file is None else {"key_file": key_file})


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_it_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        connection_file.write(tmp_path / "c.json", INFO)
    finally:
        os.umask(before)
    assert (tmp_path / "c.json").stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["c.json"]


def test_an_old_file_is_replaced_at_once_and_not_written_into(tmp_path: Path) -> None:
    """Who has it open reads the old content to its end; who opens it now reads the new one."""
    path = there(tmp_path)
    with path.open() as old:
        connection_file.write(path, msgspec.structs.replace(INFO, port=1))
        assert json.loads(old.read())["port"] == 40001
    assert connection_file.read(path).port == 1


def test_a_link_that_lies_there_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "c.json").symlink_to(tmp_path / "victim")
    connection_file.write(tmp_path / "c.json", INFO)
    assert (tmp_path / "victim").read_text() == "untouched"
    assert connection_file.read(tmp_path / "c.json") == INFO


@pytest.mark.parametrize("place", ["none/c.json", "folder"])
def test_what_cannot_be_written_is_said_and_leaves_nothing_behind(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConnectionFileError, match="cannot be written"):
        connection_file.write(tmp_path / place, INFO)
    assert os.listdir(tmp_path) == ["folder"]


# What is not believed


def test_a_missing_file_is_no_invalid_one(tmp_path: Path) -> None:
    """Its server is not running, which is another thing to say."""
    with pytest.raises(FileNotFoundError):
        connection_file.read(tmp_path / "c.json")


NO_NUMBER: list[Any] = [None, True, 1.0, "1", [1]]
BAD: dict[str, list[Any]] = {
    "protocol": [0, 2, *NO_NUMBER[:2], 1.5, "1"],
    "transport": ["tcp", "", None, 1],
    "host": ["localhost", "0.0.0.0", "::1", "127.0.0.2", "127.1", " 127.0.0.1", "\uff11\uff12\uff17.0.0.1", "", None],
    "port": [0, -1, 65_536, 2**64, *NO_NUMBER],
    "service": ["", "a b", "../x", "s" * 65, "s\n", None, 1],
    "key_id": ["", "0e69", "0E693FC16244BD21", "0e693fc16244bd21\n", "g" * 16, None, 1],
    "pid": [0, -1, 2**31, 10**30, *NO_NUMBER],
    "started_at": [-1, *NO_NUMBER],
    "key_file": [1, True, ["k"], {}],
}


@pytest.mark.attack(36)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_field_that_is_wrong_is_refused(tmp_path: Path, name: str, value: object) -> None:
    assert "is no connection file" in refusal(there(tmp_path, GOOD | {name: value}))


@pytest.mark.parametrize("name", [name for name in BAD if name != "key_file"])
def test_a_field_that_is_missing_is_refused(tmp_path: Path, name: str) -> None:
    assert name in refusal(there(tmp_path, {key: value for key, value in GOOD.items() if key != name}))


WHOLE = json.dumps(GOOD).encode()
CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no connection file"),
    "half": (WHOLE[: len(WHOLE) // 2], "is no connection file"),
    "all but a byte": (WHOLE[:-1], "is no connection file"),
    "something behind it": (WHOLE + b"}", "is no connection file"),
    "a list": (b"[" + WHOLE + b"]", "is no connection file"),
    "not UTF-8": (WHOLE.replace(b"execution_ipc", b"\xff"), "is no connection file"),
    "deep": (b"[" * 4_000, "is no connection file"),
    "deep and unknown": (WHOLE[:-1] + b', "x": ' + b"[" * 3_000, "is no connection file"),
    "huge": (WHOLE + b" " * (MAX_BYTES - len(WHOLE) + 1), f"is larger than {MAX_BYTES} bytes"),
}


@pytest.mark.parametrize(("content", "why"), CONTENTS.values(), ids=CONTENTS)
def test_content_that_is_no_connection_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    assert why in refusal(there(tmp_path, content))


def test_what_is_not_known_yet_is_passed_over(tmp_path: Path) -> None:
    """A later release may add to it. And the largest size passes."""
    content = json.dumps(GOOD | {"more": "x"}).encode()
    assert connection_file.read(there(tmp_path, content + b" " * (MAX_BYTES - len(content)))) == INFO


def symlink(path: Path) -> Path:
    (path.parent / "symlink").symlink_to(path)
    return path.parent / "symlink"


def fifo(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path, 0o600)
    return path


def mode(bits: int) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        path.chmod(bits)
        return path

    return change


FILES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("symlink", symlink, "is a symbolic link"),
    ("FIFO", fifo, "is not a regular file"),
    ("folder", lambda path: path.parent, "is not a regular file"),
    ("endless device", lambda _: Path("/dev/zero"), "is not a regular file"),
    ("group may read", mode(0o640), "type: chmod 600"),
    ("others may read", mode(0o604), "type: chmod 600"),
    ("others may write", mode(0o602), "type: chmod 600"),
    ("a file as a folder", lambda path: path / "c.json", "cannot be read: Not a directory"),
]


@pytest.mark.parametrize(("make", "why"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_file_that_others_could_have_written_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    """Or they could send a client to a server of theirs. And nothing hangs, whatever lies there."""
    before = len(os.listdir("/proc/self/fd"))
    assert why in refusal(make(there(tmp_path)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_checked_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who puts a better file in its place as soon as it is open gains nothing."""
    path, really_open = there(tmp_path, mode=0o666), os.open

    def swap(*arguments: Any) -> int:
        descriptor = really_open(*arguments)
        path.unlink()
        there(tmp_path)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap)
        why = refusal(path)
    assert "can be read or written by others" in why


@pytest.mark.attack(36)
def test_the_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, own = there(tmp_path), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert f"belongs to uid {own}, not to {own + 1}; pass the port instead" in refusal(path)


# Folders


def test_the_folder_is_made_private(tmp_path: Path) -> None:
    connection_file.prepare_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700
    connection_file.prepare_folder(tmp_path / "a" / "b")


@pytest.mark.parametrize("bits", [0o770, 0o705, 0o750, 0o702])
def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f").chmod(bits)
    with pytest.raises(
        ConnectionFileError,
        match=f"is open to others; name a file in a folder of its own, which is made, such as {tmp_path}/f/ipc_twisted",
    ):
        connection_file.prepare_folder(tmp_path / "f")


def test_the_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(ConnectionFileError, match=f"belongs to uid {own}, not to {own + 1}; name another one"):
        connection_file.prepare_folder(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "f"):
        with pytest.raises(ConnectionFileError, match="the folder cannot be made"):
            connection_file.prepare_folder(folder)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s", "HOME": "/h"}, "/r/ipc_twisted"),
        ({"XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/ipc_twisted"),
        ({"XDG_STATE_HOME": "", "HOME": "/h"}, "/h/.local/state/ipc_twisted"),
    ],
)
def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(connection_file.default_folder()) == folder


# Whose it is


def test_the_file_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    """Also one in this very process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = there(tmp_path, GOOD | {"port": listener.getsockname()[1]})
        with pytest.raises(
            ConnectionFileError, match=r"its server lives .* and is not replaced; stop it first, or give"
        ):
            connection_file.refuse_if_alive(path)


@pytest.mark.parametrize("content", [b"", b"{", json.dumps(GOOD | {"pid": 10**30}).encode()])
def test_a_file_that_nobody_can_use_is_in_nobodys_way(tmp_path: Path, content: bytes) -> None:
    connection_file.refuse_if_alive(tmp_path / "none.json")
    connection_file.refuse_if_alive(there(tmp_path, content))


def test_a_folder_in_its_place_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    connection_file.refuse_if_alive(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_file_of_a_process_that_has_ended_is_in_nobodys_way(tmp_path: Path) -> None:
    connection_file.refuse_if_alive(there(tmp_path, GOOD | {"pid": ended_process()}))


@pytest.mark.parametrize("listening", [True, False])
def test_a_process_that_lives_is_the_server_only_while_its_port_listens(tmp_path: Path, listening: bool) -> None:
    """A pid may have gone to another program since. Here it is our parent's, who is no server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = there(tmp_path, GOOD | {"pid": os.getppid(), "port": listener.getsockname()[1]})
        if listening:
            with pytest.raises(ConnectionFileError, match="its server lives"):
                connection_file.refuse_if_alive(path)
            path.chmod(0o644)  # a reader would not trust it any more, but its server lives
            with pytest.raises(ConnectionFileError, match="its server lives"):
                connection_file.refuse_if_alive(path)
    if not listening:
        connection_file.refuse_if_alive(path)


def test_in_doubt_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose backlog is full."""

    def fail(*_: object) -> None:
        raise TimeoutError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = there(tmp_path, GOOD | {"pid": os.getppid(), "port": listener.getsockname()[1]})
        monkeypatch.setattr(socket.socket, "connect", fail)
        with pytest.raises(ConnectionFileError, match="its server lives"):
            connection_file.refuse_if_alive(path)


def test_a_process_of_another_user_is_not_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number has gone to it since; else anybody could keep a server from being started again."""

    def fail(*_: object) -> None:
        raise PermissionError

    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = there(tmp_path, GOOD | {"pid": os.getppid(), "port": listener.getsockname()[1]})
        monkeypatch.setattr(os, "kill", fail)
        connection_file.refuse_if_alive(path)


def test_two_servers_never_look_at_a_folder_at_once(tmp_path: Path) -> None:
    """Each would find no file of a living server, and both would take its place. An error lets go of it too."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    now = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        with pytest.raises(BlockingIOError), connection_file.locked(tmp_path):
            fcntl.flock(descriptor, now)
        fcntl.flock(descriptor, now)
    finally:
        os.close(descriptor)


def test_a_server_removes_its_own_file_and_no_other(tmp_path: Path) -> None:
    path = there(tmp_path)
    connection_file.remove_if_ours(path, msgspec.structs.replace(INFO, started_at=1))
    assert path.exists()
    connection_file.remove_if_ours(path, INFO)
    assert not path.exists()
    connection_file.remove_if_ours(path, INFO)
    broken = there(tmp_path, b"{")
    connection_file.remove_if_ours(broken, INFO)
    assert broken.exists()


def test_a_name_that_cannot_be_is_said() -> None:
    with pytest.raises(ConnectionFileError, match="no name of a file holds a NUL"):
        connection_file.read("a\0b")
