"""Where the server listens, for others to find. The key itself is never in it.

Written after the bind, atomically, 0600 in a folder that only its owner can enter, and removed at stop if it is still
ours. A reader trusts nothing: owner, rights, host and port are checked before anything is dialled.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ipc_twisted.config import LOOPBACK, MAX_PORT, Service
from ipc_twisted.errors import Category, ConnectionFileError

MAX_BYTES = 4_096
_PROBE_SECONDS = 0.5


class ConnectionInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of a connection file.

    :ivar key_id: 16 hex digits, the public name of the server's current key.
    :ivar pid: of the server.
    :ivar started_at: unix seconds.
    :ivar key_file: only with a generated key: where it is.
    """

    protocol: Literal[1]
    transport: Literal["tcp_local"]
    host: Literal["127.0.0.1"]
    port: Annotated[int, Meta(ge=1, le=MAX_PORT)]
    service: Service
    key_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    started_at: Annotated[int, Meta(ge=0)]
    key_file: str | None = None


def default_folder() -> Path:
    """``$XDG_RUNTIME_DIR/ipc_twisted``, else a folder in the user's state directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "ipc_twisted"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ipc_twisted"


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` if need be (0700), and refuse one that others can write to.

    :raises ConnectionFileError: with what to do.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as problem:
        raise _error(folder, f"the folder cannot be made: {problem.strerror}") from None
    if status.st_uid != os.geteuid():
        raise _error(folder, f"the folder belongs to uid {status.st_uid}, not to {os.geteuid()}; name another one")
    if status.st_mode & 0o077:
        raise _error(
            folder,
            "the folder is open to others; name a file in a folder of its own, which is made, such as "
            f"{folder / 'ipc_twisted' / 'link.json'}; or type chmod 700, where nobody else needs the folder",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other servers that start from looking at the folder meanwhile, so that two never take one file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def refuse_if_alive(path: Path) -> None:
    """Leave a file alone whose server lives.

    :raises ConnectionFileError: it lives, so this process must not take its place.
    """
    info = _read_untrusted(path)  # it will be replaced, whatever its rights are
    if info is not None and _alive(info):
        raise _error(
            path,
            f"its server lives (process {info.pid} on port {info.port}) and is not replaced; "
            "stop it first, or give this one another --connection-file, or another service in its configuration",
        )


def write(path: Path, info: ConnectionInfo) -> None:
    """Write the file atomically: a reader finds the old content or the new one.

    :raises ConnectionFileError: it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(info)) + b"\n")
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as problem:
        raise _error(path, f"cannot be written: {problem.strerror}") from None


def read(path: str | os.PathLike[str]) -> ConnectionInfo:
    """Read and check a connection file.

    :raises FileNotFoundError: there is none; its server is not running.
    :raises ConnectionFileError: it cannot be trusted or understood.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except ValueError:
        raise _error(path, "no name of a file holds a NUL") from None
    except OSError as problem:
        why = "is a symbolic link" if problem.errno == errno.ELOOP else f"cannot be read: {problem.strerror}"
        raise _error(path, why) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _error(path, "is not a regular file")
        if status.st_uid != os.geteuid():
            raise _error(path, f"belongs to uid {status.st_uid}, not to {os.geteuid()}; pass the port instead")
        if status.st_mode & 0o077:
            raise _error(path, f"can be read or written by others; type: chmod 600 {os.fspath(path)}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise _error(path, f"is larger than {MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(content, type=ConnectionInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise _error(path, f"is no connection file: {problem}") from None


def _read_untrusted(path: Path) -> ConnectionInfo | None:
    """What a file says that is not to be trusted; None if nothing."""
    try:
        with open(path, "rb", opener=_no_link) as file:  # closes what it cannot read, such as a folder
            return msgspec.json.decode(file.read(MAX_BYTES), type=ConnectionInfo)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):  # also bad UTF-8, and a NUL in the name
        return None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_ours(path: Path, info: ConnectionInfo) -> bool:
    """The file is the one that was written with ``info``, and no other server has replaced it meanwhile."""
    try:
        return read(path) == info
    except (FileNotFoundError, ConnectionFileError):
        return False


def remove_if_ours(path: Path, info: ConnectionInfo) -> None:
    """Remove the file at stop, unless another server has replaced it meanwhile."""
    if is_ours(path, info):
        path.unlink(missing_ok=True)


def _alive(info: ConnectionInfo) -> bool:
    """The process exists and something listens on its port. A pid alone may have gone to another program since."""
    try:
        os.kill(info.pid, 0)
    except (ProcessLookupError, PermissionError):  # gone; or another user's, who has the number now
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect((LOOPBACK, info.port))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a full backlog is no sign of death
    return True


def _error(path: str | os.PathLike[str], why: str) -> ConnectionFileError:
    return ConnectionFileError(Category.CONNECTION_FILE_INVALID, f"{os.fspath(path)!r}: {why}")
