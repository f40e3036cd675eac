"""What :mod:`tests.hostile.fuzz_coverage` gives bytes to: each target takes any input, and holds what must be held.

A target is made once and then called with one input after another; what an input ends in depends on its bytes alone.
Those that speak to the core share their promises with :mod:`tests.hostile.fuzz`. The inputs begin with a few bytes that
say how the rest is used, so that a mutator of bytes, which knows no length and no signature, still gets far.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from ipc_twisted import connection_file
from ipc_twisted.config import LOOPBACK, ExecutionIPCConfig
from ipc_twisted.connection_file import ConnectionInfo
from ipc_twisted.core.connection import State
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.errors import ConfigError, ConnectionFileError, KeyFileError
from ipc_twisted.keys import Keyring
from tests import wire_peer as wire
from tests.hostile.fuzz import GUARD_SIZE, LIMITS, M1, NOW, Broken, Side, Strangers, handshake_frames, record_bodies
from tests.vectors import common, reference

T = TypeVar("T")

MAX_BYTES = 8_192
"""Of an input."""


class Target:
    """:ivar ends: how often an input ended in each thing."""

    ends: Counter[str]

    def seeds(self) -> Iterable[bytes]:
        """Inputs to begin with."""
        raise NotImplementedError

    def __call__(self, data: bytes) -> None:
        """:raises Broken: something does not hold. Any other exception means the same."""
        raise NotImplementedError

    def change(self, data: bytes, seed: int) -> bytes:
        """A change that a mutator of bytes seldom makes; this one makes none."""
        return data


def _part(data: bytes, sixteenths: int) -> int:
    """A place in ``data``; 0 is its end."""
    return len(data) * sixteenths // 16 if sixteenths else len(data)


# --- strangers --------------------------------------------------------------------------------------------------------


class ToServer(Target):
    """Somebody without the key to a server: ``u8 how | what is said first, as much as M1 has | what is said then``.

    ``how``: its low and high half say where the two are cut; 0xFF: all is said at once, without waiting for an answer.
    """

    def __init__(self) -> None:
        self._strangers = Strangers()
        self.ends = self._strangers.ends

    def seeds(self) -> Iterable[bytes]:
        frames = handshake_frames()
        for how in (b"\0", b"\x55", b"\xff"):
            yield from (how + frame for frame in frames)
            yield from (how + M1 + frame for frame in (self._strangers.proof, *frames))

    def __call__(self, data: bytes) -> None:
        how, said = data[:1], data[1:]
        if how == b"\xff":
            self._strangers.tell_a_server(said, b"", len(said), 0)
            return
        first, second = said[: len(M1)], said[len(M1) :]
        low, high = divmod(how[0], 16) if how else (0, 0)
        self._strangers.tell_a_server(first, second, _part(first, low), _part(second, high))


class ToClient(Target):
    """A program that has taken the server's port to a client: ``u8 where it is cut | what is said``."""

    def __init__(self) -> None:
        self._strangers = Strangers()
        self.ends = self._strangers.ends

    def seeds(self) -> Iterable[bytes]:
        frames = [wire.prefixed(wire.m2(common.M2_HEAD, common.TAG_S)), *handshake_frames()]
        return (how + frame for how in (b"\0", b"\x05") for frame in frames)

    def __call__(self, data: bytes) -> None:
        said = data[1:]
        self._strangers.tell_a_client(said, _part(said, data[0] % 16 if data else 0))


# --- holders of the key -----------------------------------------------------------------------------------------------

SEQ_AS_IT_IS, ALL_IS_HEADER = 1, 2
_DIRECTIONS = ("c2s", "s2c")


class Signed(Target):
    """A key holder on an open connection: ``u8 direction``, then for each record ``u8 how | u16 size | body``.

    The body is signed, after the sequence number in it was put right (unless ``how`` has :data:`SEQ_AS_IT_IS`), and
    the length of its header, too: at most what is there, or all of it (:data:`ALL_IS_HEADER`). The high half of ``how``
    says where the frame is cut.
    """

    def __init__(self) -> None:
        self.ends = Counter()

    def seeds(self) -> Iterable[bytes]:
        by_direction: dict[str, list[bytes]] = {direction: [] for direction in _DIRECTIONS}
        for direction, body in dict.fromkeys(record_bodies()):
            by_direction[direction].append(struct.pack(">BH", 0, len(body)) + body)
        for number, bodies in enumerate(by_direction.values()):
            start = bytes([number])
            yield from (start + body for body in bodies)
            yield from (start + bytes([ALL_IS_HEADER]) + body[1:] for body in bodies)
            yield from (start + bytes([0x70]) + one[1:] + other for one, other in pairwise(bodies))

    def __call__(self, data: bytes) -> None:
        guards = MemoryReplayGuard(GUARD_SIZE, LIMITS.ttl_seconds, common.INSTANCE), reference.Guard(GUARD_SIZE, 30)
        side = Side(_DIRECTIONS[data[0] % 2 if data else 0], *guards)
        at = 1
        while at + 3 <= len(data) and side.connection.state is State.OPEN:
            how, size = struct.unpack_from(">BH", data, at)
            frame = wire.frame(side.key, _put_right(data[at + 3 : at + 3 + size], how, side.expected))
            judged = side.agreed(frame, _part(frame, how >> 4))
            self.ends[f"{judged.what} {judged.category}".strip()] += 1
            at += 3 + size

    def change(self, data: bytes, seed: int) -> bytes:
        """Another value in the header of one record, the lengths around it put right."""
        random = Random(seed)
        starts = [1]
        while starts[-1] + 3 <= len(data):
            starts.append(starts[-1] + 3 + struct.unpack_from(">H", data, starts[-1] + 1)[0])
        if len(starts) == 1:
            return data
        number = random.randrange(len(starts) - 1)
        start, end = starts[number], starts[number + 1]
        try:
            record = wire.parse_body(data[start + 3 : end])
            header = wire.unpack(record.header)
            if type(header) is not list or not header:
                return data
            at = random.randrange(len(header))
            header[at] = _another(header[at], random)
            body = wire.record_body(record.type, record.seq, wire.pack(header), record.payload)
        except (wire.WireError, ValueError, TypeError, struct.error):  # cut short, or nothing that can be written
            return data
        return data[: start + 1] + struct.pack(">H", len(body)) + body + data[end:]


_TEXTS = ("", "n-1", "job.run", "expired", "closed", "\0", "\u00e9", "\U0001f600")
_NUMBERS = (-1, 0, 1, 31, 255, 2**16, 2**32, 2**53, 2**63, NOW, NOW - 30, NOW - 31, NOW + 30, NOW + 31)
_VALUES: tuple[Any, ...] = (*_TEXTS, *_NUMBERS, None, False, 1.0, b"", [], ["t"], [[0, "expired"]], {}, {"a": "b"})


def _another(value: Any, random: Random) -> Any:
    """Near the value, or one that is met elsewhere."""
    if random.randrange(3) == 0:
        return random.choice(_VALUES)
    match value:
        case int():
            return value + random.choice((-1, 1, 256, NOW))
        case str():
            at = random.randrange(len(value) + 1)
            letter = chr(random.choice((random.randrange(128), 0x7FF, 0xFFFF)))
            return value[:at] + letter + value[at + random.randrange(2) :]
        case list():
            at = random.randrange(len(value) + 1)
            return [*value[:at], random.choice(_VALUES), *value[at + random.randrange(2) :]]
        case dict():
            return {**value, random.choice(_TEXTS): random.choice(_TEXTS)}
    return random.choice(_VALUES)


def _put_right(body: bytes, how: int, seq: int) -> bytes:
    if len(body) < 11:
        return body
    kind, number, claimed = struct.unpack_from(">BQH", body)
    rest = body[11:]
    number = number if how & SEQ_AS_IT_IS else seq
    claimed = len(rest) if how & ALL_IS_HEADER else min(claimed, len(rest))
    return struct.pack(">BQH", kind, number, claimed) + rest


# --- files ------------------------------------------------------------------------------------------------------------

_CONFIG = """[runtime.platform.execution_ipc]
allowed_kinds = ["job.run", "caf\u00e9"]
service = "execution_ipc"
bind_host = "127.0.0.1"
bind_port = 0
max_payload_bytes = 1_024
auth = { secret_mode = "static", key_file = "execution.key", ttl_seconds = 30, nonce_cache_size = 1000 }
limits = { handshake_timeout_seconds = 2.5, max_inflight = 64, max_pending_handshakes = 8, max_connections = 8 }
"""
_INFO = ConnectionInfo(
    protocol=1, transport="tcp_local", host="127.0.0.1", port=40_001, service="s", key_id="0" * 16, pid=1, started_at=1
)


class Files(Target):
    """What is read from files: ``u8 which reader | content``. A reader refuses with its own error, or what it has read
    reads the same when it is written out again. (Their owners and rights are no matter of bytes.)"""

    def __init__(self) -> None:
        self.ends = Counter()
        self._readers = (self._toml, self._json, self._connection_file, self._key_file)

    def seeds(self) -> Iterable[bytes]:
        section = {"allowed_kinds": ["job.run"], "bind_port": 1, "auth": {"ttl_seconds": 1}, "limits": {}}
        whole = {"runtime": {"platform": {"execution_ipc": section}}}
        deep = 3_000 * b"["
        yield from (b"\0" + content for content in (_CONFIG.encode(), b"a = " + deep))
        yield from (start + deep for start in (b"\1", b'\2{"a":'))
        yield from (b"\1" + msgspec.json.encode(config) for config in (section, whole))
        yield from (b"\2" + msgspec.json.format(msgspec.json.encode(_INFO), indent=indent) for indent in (0, 2))
        key = b"00112233445566778899aabbccddeeff" * 2
        yield from (b"\3" + content for content in (key, b"# one\n" + key + b" # is current\n\n" + key[::-1] + b"\r\n"))

    def __call__(self, data: bytes) -> None:
        number = data[0] % len(self._readers) if data else 0
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder, "file.json" if number == 1 else "file")
            path.touch(mode=0o600)
            path.write_bytes(data[1:])
            self._readers[number](path, data[1:])

    def _read(self, name: str, read: Callable[[Path], T], path: Path, refusal: type[Exception]) -> T | str:
        """What is read, or the text of the refusal."""
        try:
            found = read(path)
        except refusal as error:
            self.ends[f"{name} refused"] += 1
            return str(error)
        self.ends[f"{name} taken"] += 1
        return found

    def _toml(self, path: Path, content: bytes) -> None:
        found = self._read("config", ExecutionIPCConfig.from_file, path, ConfigError)
        if isinstance(found, str):
            return
        again = ExecutionIPCConfig.from_mapping(msgspec.to_builtins(found))
        if again != found or found.bind_host != LOOPBACK or not found.allowed_kinds:
            raise Broken(f"{content!r} is read as {found!r}")

    _json = _toml

    def _connection_file(self, path: Path, content: bytes) -> None:
        found = self._read("connection file", connection_file.read, path, ConnectionFileError)
        if isinstance(found, str):
            return
        connection_file.write(path, found)
        if not connection_file.is_ours(path, found) or found.host != LOOPBACK:
            raise Broken(f"{content!r} is read as {found!r}")

    def _key_file(self, path: Path, content: bytes) -> None:
        found = self._read("key file", Keyring.from_file, path, KeyFileError)
        lines = [line.split(b"#")[0].strip() for line in content.split(b"\n")]
        lines = [line for line in lines if line]
        good = len(content) <= 4_096 and lines and all(re.fullmatch(b"[0-9a-fA-F]{64}", line) for line in lines)
        if isinstance(found, str) == bool(good):
            raise Broken(f"{content!r} is read as {found!r}")
        if isinstance(found, str):
            if any(digits in found for digits in re.findall("[0-9a-fA-F]{16,}", content.decode("latin-1"))):
                raise Broken(f"{content!r} is refused with {found!r}")
        elif not found.is_same(Keyring(bytes.fromhex(line.decode()) for line in lines)):
            raise Broken(f"{content!r} is read as other keys")


TARGETS: dict[str, Callable[[], Target]] = {
    "to-server": ToServer,
    "to-client": ToClient,
    "signed": Signed,
    "files": Files,
}
