"""Keys: who may have touched the file is checked before a byte of it counts, and no secret gets into an error."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from twisted.python.failure import Failure

from ipc_twisted.errors import Category, KeyFileError
from ipc_twisted.keys import MAX_KEY_FILE_BYTES, Keyring, write_new_key_file
from tests import wire_peer as wire

ONE, TWO = bytes(range(1, 33)), bytes(range(101, 133))
INVALID, INSECURE = Category.KEY_INVALID, Category.KEY_FILE_INSECURE


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "link.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def ids(keyring: Keyring) -> list[bytes]:
    """The current one first."""
    return [keyring.current.key_id("s"), *keyring.by_id("s")]


def wire_id(secret: bytes) -> bytes:
    return wire.key_id(wire.prk(secret), "s")


# Rings


def test_the_first_key_is_current_and_all_are_accepted() -> None:
    keyring = Keyring([ONE, TWO])
    assert keyring.current.key_id("s") == wire_id(ONE)
    assert set(keyring.by_id("s")) == {wire_id(ONE), wire_id(TWO)}


def test_a_key_that_is_there_twice_is_the_current_one_once() -> None:
    keyring = Keyring([ONE, TWO, ONE])
    assert keyring.by_id("s")[wire_id(ONE)] is keyring.current


def test_a_generated_key_is_new_each_time() -> None:
    assert Keyring.generate().current.key_id("s") != Keyring.generate().current.key_id("s")


BAD_SECRETS: list[Any] = [[], [b""], [b"x" * 31], [ONE, b"short"], ["x" * 64], [None], [ONE, 7], 7, None]


@pytest.mark.parametrize("secrets", BAD_SECRETS)
def test_what_is_no_ring_of_long_secrets_is_refused(secrets: Any) -> None:
    """A passphrase is one too: nothing here slows down guessing."""
    with pytest.raises(KeyFileError, match="'ipc-twisted keygen FILE' makes one") as caught:
        Keyring(secrets)
    assert caught.value.category is INVALID


def test_a_generator_of_secrets_is_read_once() -> None:
    assert len(Keyring(secret for secret in (ONE, TWO)).by_id("s")) == 2


@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_a_ring_does_not_show_its_keys(show: Callable[[object], str]) -> None:
    assert show(Keyring([ONE, TWO])) == "<Keyring of 2 (redacted)>"


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_ring_does_not_leave_its_process(leave: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        leave(Keyring([ONE]))


# Files that are taken


GOOD: dict[str, tuple[bytes, list[bytes]]] = {
    "one line": (ONE.hex().encode() + b"\n", [ONE]),
    "no newline at the end": (ONE.hex().encode(), [ONE]),
    "capitals": (TWO.hex().upper().encode(), [TWO]),
    "two keys": (f"{ONE.hex()}\n{TWO.hex()}\n".encode(), [ONE, TWO]),
    "comments, blanks, CRLF": (f"# ring\r\n\r\n  {ONE.hex()}  # new\r\n\t{TWO.hex()}\r\n#\n".encode(), [ONE, TWO]),
    "a comment in any encoding": (b"# \xff\xfe\n" + ONE.hex().encode(), [ONE]),
    "as large as may be": (ONE.hex().encode() + b"\n" + b"#" * (MAX_KEY_FILE_BYTES - 65), [ONE]),
}


@pytest.mark.parametrize(("content", "secrets"), GOOD.values(), ids=GOOD)
def test_a_key_file_is_read(tmp_path: Path, content: bytes, secrets: list[bytes]) -> None:
    keyring = Keyring.from_file(key_file(tmp_path, content))
    assert keyring.current.key_id("s") == wire_id(secrets[0])
    assert set(keyring.by_id("s")) == set(map(wire_id, secrets))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_only_the_rights_of_others_matter(tmp_path: Path, mode: int) -> None:
    Keyring.from_file(str(key_file(tmp_path, ONE.hex().encode(), mode)))


# Files that are not


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no key"),
    "only comments": (b"# one\n\n  # two\n", "holds no key"),
    "short": (ONE.hex().encode()[:-1], "line 1 is not a key of 64 hex digits"),
    "long": (ONE.hex().encode() + b"0", "line 1 is not"),
    "a byte too long": (ONE.hex().encode() + b"00", "line 1 is not"),
    "two keys run together": ((ONE + TWO).hex().encode(), "line 1 is not"),
    "two keys in a line": ((ONE.hex() + " " + TWO.hex()).encode(), "line 1 is not"),
    "no hex": (b"g" * 64, "line 1 is not"),
    "one letter wrong": (ONE.hex().encode()[:-1] + b"g", "line 1 is not"),
    "blanks within": (b"01 " * 20 + b"0202", "line 1 is not"),
    "0x before it": (b"0x" + ONE.hex().encode()[:62], "line 1 is not"),
    "raw bytes": (ONE + TWO, "line 1 is not"),
    "digits of another script": ("\u0663".encode() * 32, "line 1 is not"),
    "the second line": (ONE.hex().encode() + b"\nswordfish\n", "line 2 is not"),
    "NUL": (ONE.hex().encode() + b"\0", "line 1 is not"),
    "too large": (ONE.hex().encode() + b"\n" + b"#" * (MAX_KEY_FILE_BYTES - 64), "is larger than 4096 bytes"),
}


@pytest.mark.parametrize(("content", "why"), BAD.values(), ids=BAD)
def test_a_file_that_holds_no_keys_is_refused_with_what_to_do(tmp_path: Path, content: bytes, why: str) -> None:
    path = key_file(tmp_path, content)
    with pytest.raises(KeyFileError) as caught:
        Keyring.from_file(path)
    assert caught.value.category is INVALID
    assert why in str(caught.value)
    assert str(path) in str(caught.value)
    assert "make a new one with: ipc-twisted keygen" in str(caught.value)


def symlink(path: Path) -> Path:
    (path.parent / "symlink").symlink_to(path)
    return path.parent / "symlink"


def dangling(path: Path) -> Path:
    path.unlink()
    return symlink(path)


def hard_link(path: Path) -> Path:
    (path.parent / "hard").hardlink_to(path)
    return path


def mode(bits: int) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        path.chmod(bits)
        return path

    return change


def fifo(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path, 0o600)
    return path


INSECURE_FILES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("symlink", symlink, "is a symbolic link; name the file itself"),
    ("symlink to nothing", dangling, "is a symbolic link"),
    ("hard link", hard_link, "has 2 hard links; copy it to a file of its own"),
    ("group may read", mode(0o640), "type: chmod 600"),
    ("others may read", mode(0o604), "type: chmod 600"),
    ("group may write", mode(0o620), "type: chmod 600"),
    ("others may execute", mode(0o601), "type: chmod 600"),
    ("FIFO", fifo, "is not a regular file; name a key file"),
    ("folder", lambda path: path.parent, "is not a regular file"),
    ("endless device", lambda _: Path("/dev/zero"), "is not a regular file"),
    ("null device", lambda _: Path("/dev/null"), "is not a regular file"),
]


@pytest.mark.attack(35)
@pytest.mark.parametrize(("make", "why"), [case[1:] for case in INSECURE_FILES], ids=[c[0] for c in INSECURE_FILES])
def test_a_file_that_others_could_have_touched_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    """And nothing hangs, whatever lies there."""
    path = make(key_file(tmp_path, ONE.hex().encode()))
    with pytest.raises(KeyFileError) as caught:
        Keyring.from_file(path)
    assert caught.value.category is INSECURE
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


def test_the_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, ONE.hex().encode())
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(KeyFileError, match=f"belongs to uid {own}, not to {own + 1}; give this user a copy") as caught:
        Keyring.from_file(path)
    assert caught.value.category is INSECURE


@pytest.mark.attack(35)
def test_what_is_checked_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who swaps the file between check and reading gains nothing: only the open descriptor is used."""
    path = key_file(tmp_path, ONE.hex().encode())
    fstat = os.fstat

    def swap(descriptor: int) -> os.stat_result:
        path.unlink(missing_ok=True)
        key_file(tmp_path, TWO.hex().encode(), 0o666)
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", swap)
    with pytest.raises(KeyFileError, match="has 0 hard links"):
        Keyring.from_file(path)


def test_a_socket_cannot_be_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(KeyFileError, match="cannot read") as caught:
            Keyring.from_file(tmp_path / "s")
    assert caught.value.category is INVALID


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        KeyFileError, match=f"there is no key file .*make the first one with: ipc-twisted keygen {tmp_path}/k"
    ):
        Keyring.from_file(tmp_path / "k")


@pytest.mark.parametrize("path", [ONE, ONE.hex().encode(), ONE.hex()])
def test_a_key_in_place_of_the_name_of_its_file_is_not_shown(path: Any) -> None:
    with pytest.raises(KeyFileError) as caught:
        Keyring.from_file(path)
    assert caught.value.category is INVALID
    assert "a key was given" in str(caught.value) or "not bytes" in str(caught.value)
    assert ONE.hex() not in str(caught.value)
    assert repr(ONE) not in str(caught.value)


def test_a_name_that_cannot_be_is_said() -> None:
    with pytest.raises(KeyFileError, match=r"cannot read 'a.*b': no name of a file holds a NUL"):
        Keyring.from_file("a\0b")


@pytest.mark.parametrize("secrets", [ONE, ONE.hex(), [ONE.hex()], 5])
def test_what_is_no_list_of_bytes_is_said_with_what_it_must_be(secrets: Any) -> None:
    with pytest.raises(KeyFileError, match="a keyring takes a list of secrets, each bytes"):
        Keyring(secrets)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    good, bad = key_file(tmp_path, ONE.hex().encode()), tmp_path
    before = len(os.listdir("/proc/self/fd"))
    Keyring.from_file(good)
    with pytest.raises(KeyFileError):
        Keyring.from_file(bad)
    assert len(os.listdir("/proc/self/fd")) == before


# New ones


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_new_key_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_new_key_file(tmp_path / "k")
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o7777 == 0o600
    assert len((tmp_path / "k").read_text()) == 65
    Keyring.from_file(tmp_path / "k")


def test_two_new_key_files_differ(tmp_path: Path) -> None:
    write_new_key_file(tmp_path / "a")
    write_new_key_file(str(tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("there", ["file", "symlink", "folder"])
def test_nothing_that_exists_is_overwritten(tmp_path: Path, there: str) -> None:
    path = tmp_path / "k"
    {
        "file": lambda: path.write_text("old"),
        "symlink": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "folder": path.mkdir,
    }[there]()
    with pytest.raises(KeyFileError, match="exists and is not overwritten: name another file, or remove it") as caught:
        write_new_key_file(path)
    assert caught.value.category is INVALID
    assert not (tmp_path / "elsewhere").exists()
    assert there != "file" or path.read_text() == "old"


def test_half_a_key_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the next start would find a file that it may not overwrite and cannot use."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(KeyFileError, match=r"cannot write .*: No space left on device"):
        write_new_key_file(tmp_path / "k")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot write .*: No such file or directory"):
        write_new_key_file(tmp_path / "none" / "k")


# Leaks


def leaks(secrets: Iterable[bytes], fail: Callable[[], object]) -> list[bytes]:
    """Which of the secrets the error shows, with the locals of every frame of ours."""
    try:
        fail()
    except KeyFileError:
        failure = Failure(captureVars=True)
    frames = [frame for frame in failure.frames if "ipc_twisted" in frame[1]]
    assert frames
    assert failure.value is not None
    shown = f"{frames!r} {failure.value!r} {failure.value} {failure.value.__context__!r}"
    return [secret for secret in secrets if secret.hex()[:62] in shown or repr(secret)[2:-1] in shown]


@pytest.mark.parametrize("bad", [b"", b"swordfish", TWO.hex().encode()[:-1], TWO.hex().encode() + b"g", b"#" * 5_000])
def test_no_line_of_a_key_file_gets_into_a_traceback_with_locals(tmp_path: Path, bad: bytes) -> None:
    """``Failure(captureVars=True)`` and ``defer.setDebugging`` print them; a key with a typo is still a key."""
    path = key_file(tmp_path, ONE.hex().encode() + b"\n" + bad + (b"" if bad else b"\nx"))
    assert leaks([ONE, TWO], lambda: Keyring.from_file(path)) == []


def test_no_secret_of_a_ring_gets_into_a_traceback_with_locals() -> None:
    assert leaks([ONE, TWO], lambda: Keyring([ONE, TWO, b"short"])) == []
    assert leaks([ONE], lambda: Keyring([ONE, "not bytes"])) == []  # type: ignore[list-item]
