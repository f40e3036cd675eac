"""Shared secrets: the keyring, key files, generated keys.

A key file holds one or more lines of 64 hex digits; ``#`` starts a comment. The first key is the current one, which
senders use; the others are still accepted, so that keys can be changed one side at a time. Each side may have its own
copy under its own uid.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from ipc_twisted.core.key_schedule import MIN_SECRET_BYTES, Prk
from ipc_twisted.errors import Category, KeyFileError

MAX_KEY_FILE_BYTES = 4_096
_HEX_DIGITS = 2 * MIN_SECRET_BYTES


class Keyring:
    """One or more shared secrets; the first is the current one.

    :param secrets: each at least 32 random bytes, at least one. No passphrases: nothing slows down guessing.
    :raises KeyFileError: ``key_invalid``.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._prks: tuple[Prk, ...] = ()
        why = "a keyring needs at least one secret"
        try:
            if isinstance(secrets, str | bytes):
                raise TypeError
            self._prks = tuple(map(Prk, secrets))
        except ValueError as problem:
            why = str(problem)
        except TypeError:
            why = "a keyring takes a list of secrets, each bytes (of hex digits: bytes.fromhex)"
        if not self._prks:
            del secrets  # tracebacks may show locals
            raise KeyFileError(Category.KEY_INVALID, f"{why}; 'ipc-twisted keygen FILE' makes one")

    @classmethod
    def generate(cls) -> Keyring:
        """A keyring with one new random secret, known only to this process and what it forks or hands it to."""
        return cls([secrets.token_bytes(MIN_SECRET_BYTES)])

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Keyring:
        """Read a key file, and refuse one that others could have read or written.

        :raises KeyFileError: ``key_file_insecure`` or ``key_invalid``, with the file and what to do.
        """
        if not isinstance(path, str | os.PathLike):
            raise KeyFileError(
                Category.KEY_INVALID,
                f"the name of a key file is a str or a path, not {type(path).__name__}; of secrets: Keyring([secret])",
            )
        return cls(_parse(_read_private(path), path))

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Keyring:
        """Read what a key file would hold from an inherited descriptor, such as a pipe, up to its end, and close it.

        Nothing is checked of where it comes from: whoever started this process handed it over.

        :raises KeyFileError: ``key_invalid``.
        """
        name = f"file descriptor {descriptor}"
        try:
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(MAX_KEY_FILE_BYTES + 1)
        except OSError as problem:
            raise KeyFileError(Category.KEY_INVALID, f"cannot read {name}: {problem.strerror}") from None
        return cls(_parse(content, name))

    @property
    def current(self) -> Prk:
        """The key that this side's own connections are made with."""
        return self._prks[0]

    def by_id(self, service: str) -> dict[bytes, Prk]:
        """Every accepted key by its public id for ``service`` (8 bytes)."""
        return {prk.key_id(service): prk for prk in reversed(self._prks)}

    def is_same(self, other: Keyring) -> bool:
        """Both hold the same secrets, in the same order."""
        return [prk.key_id("") for prk in self._prks] == [prk.key_id("") for prk in other._prks]

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._prks)} (redacted)>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyring cannot be pickled")


GENERATED_MARK = b"# generated for one run of a server, and removed when it stops\n"
"""First line of such a key file, so that one which a killed server has left is known for what it is."""


def is_generated(path: str | os.PathLike[str]) -> bool:
    """The file is a key that a server made for one run of its own."""
    try:
        return _read_private(path).startswith(GENERATED_MARK)
    except KeyFileError:
        return False


def write_new_key_file(path: str | os.PathLike[str], mark: bytes = b"") -> None:
    """Write one new random secret to a new file that only this uid can read (0600).

    :param mark: its first line.
    :raises KeyFileError: ``key_invalid``: the file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeyFileError(
            Category.KEY_INVALID, f"{os.fspath(path)!r} exists and is not overwritten: name another file, or remove it"
        ) from None
    except OSError as problem:
        raise KeyFileError(Category.KEY_INVALID, f"cannot write {os.fspath(path)!r}: {problem.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            file.write(mark + secrets.token_hex(MIN_SECRET_BYTES).encode() + b"\n")
    except OSError as problem:  # such as a full disk: half a key is worse than none
        os.unlink(path)
        raise KeyFileError(Category.KEY_INVALID, f"cannot write {os.fspath(path)!r}: {problem.strerror}") from None


def _read_private(path: str | os.PathLike[str]) -> bytes:
    """Read a small file that nobody else can have touched. What is checked is the open descriptor, never the name."""
    name = repr(os.fspath(path))
    try:
        # O_NONBLOCK: a FIFO must not hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if _from_hex(os.fsencode(path)) is not None:
            raise KeyFileError(
                Category.KEY_INVALID, "a key was given where the name of its file belongs; the key is not shown here"
            ) from None
        raise KeyFileError(
            Category.KEY_INVALID,
            f"there is no key file {name} (in {os.getcwd()!r}); give this side a copy of the other side's, or make the "
            f"first one with: ipc-twisted keygen {os.fspath(path)}",
        ) from None
    except ValueError:
        raise KeyFileError(Category.KEY_INVALID, f"cannot read {name}: no name of a file holds a NUL") from None
    except OSError as problem:
        if Path(path).is_symlink():
            raise KeyFileError(Category.KEY_FILE_INSECURE, f"{name} is a symbolic link; name the file itself") from None
        raise KeyFileError(Category.KEY_INVALID, f"cannot read {name}: {problem.strerror}") from None
    try:
        problem_found = _insecure(os.fstat(descriptor), os.fspath(path))
        if problem_found is not None:
            raise KeyFileError(Category.KEY_FILE_INSECURE, f"{name} {problem_found}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_KEY_FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def _insecure(status: os.stat_result, path: str) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file; name a key file"
    if status.st_uid != os.geteuid():
        return f"belongs to uid {status.st_uid}, not to {os.geteuid()}; give this user a copy of its own"
    if status.st_mode & 0o077:
        return f"can be read or written by others; make a new key if they could have read it, or type: chmod 600 {path}"
    if status.st_nlink != 1:
        return f"has {status.st_nlink} hard links; copy it to a file of its own"
    return None


def _parse(content: bytes, path: str | os.PathLike[str]) -> list[bytes]:
    """Read the lines of a key file. No line of it, right or wrong, gets into an error."""
    keys, problem = _lines(content)
    if problem is not None:
        del content, keys  # tracebacks may show locals
        raise KeyFileError(
            Category.KEY_INVALID, f"{os.fspath(path)!r} {problem}; make a new one with: ipc-twisted keygen FILE"
        )
    return keys


def _lines(content: bytes) -> tuple[list[bytes], str | None]:
    """The keys, and what is wrong with the content if anything is."""
    keys: list[bytes] = []
    if len(content) > MAX_KEY_FILE_BYTES:
        return keys, f"is larger than {MAX_KEY_FILE_BYTES} bytes, so it is no key file"
    for number, raw in enumerate(content.split(b"\n"), start=1):
        line = raw.split(b"#", 1)[0].strip()
        if not line:
            continue
        key = _from_hex(line)
        if key is None:
            return keys, f"line {number} is not a key of {_HEX_DIGITS} hex digits"
        keys.append(key)
    return keys, None if keys else "holds no key"


def _from_hex(line: bytes) -> bytes | None:
    if len(line) != _HEX_DIGITS or not line.isalnum():
        return None
    try:
        return bytes.fromhex(line.decode("ascii"))
    except ValueError:
        return None
