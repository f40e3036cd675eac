"""``ipc-twisted demo``: a real ``twistd ipc``, real messages through it, then the contract's cases against it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from twisted.internet.defer import Deferred

from ipc_twisted import connection_file
from ipc_twisted.config import SECTION, ExecutionIPCConfig
from ipc_twisted.core.codec import Close, Receipt
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.framing import HEAD, MIN_LENGTH
from ipc_twisted.demo_peer import DemoPeer
from ipc_twisted.endpoints import connect
from ipc_twisted.errors import IPCError
from ipc_twisted.keys import Keyring
from ipc_twisted.protocol import SecureIPCProtocol
from ipc_twisted.tap import DEFAULT_KIND

_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=", "ipc"]


class Server(NamedTuple):
    """The child and where it listens."""

    process: subprocess.Popen[bytes]
    file: Path
    info: connection_file.ConnectionInfo
    keyring: Keyring
    log: Path


class NotStartedError(Exception):
    """The child ended instead of listening; the message is its log."""


class Line(NamedTuple):
    """One line of the table: what was expected and what was seen must be the same."""

    case: str
    sent: str
    expected: str
    seen: str
    told: str

    @property
    def good(self) -> bool:
        return self.expected == self.seen


async def run(reactor: Any, out: TextIO) -> bool:
    """Play the whole demo.

    :returns: whether every line was as expected.
    """
    screen = _Screen(out)
    with tempfile.TemporaryDirectory(prefix="ipc-twisted-demo-") as folder, child(Path(folder)) as server:
        screen.say(
            f"twistd ipc listens on 127.0.0.1:{server.info.port} with a key of its own (id {server.info.key_id})\n"
        )
        trips = await _round_trips(reactor, server, screen)
        screen.say("\nThe contract's cases, each against that server:\n")
        lines = []
        screen.row("case", "what was sent", "category", "what the sender was told")
        for case in _CASES:
            line = case(server)
            lines.append(line)
            screen.verdict(line.good, line.case, line.sent, line.seen, line.told)
            if not line.good:
                screen.say(f"    expected {line.expected}")
        alive = await _still_alive(reactor, server)
        outcome = "accepted" if alive else "lost"
        screen.verdict(alive, "-", "an honest message afterwards", outcome, outcome)
    good = trips and alive and all(line.good for line in lines)
    screen.say("\nEvery line is as expected." if good else "\nSomething is not as expected.")
    return good


@contextmanager
def child(folder: Path, *options: str) -> Iterator[Server]:
    """A real ``twistd ipc`` child; it and its files are gone afterwards.

    :param folder: new, for its files.
    :param options: of ``twistd ipc``.
    :raises NotStartedError: it ended instead of listening.
    """
    folder.chmod(0o700)
    file, log = folder / "demo.json", folder / "twistd.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter, fixed arguments
            [*_TWISTD, "--connection-file", str(file), *options],
            cwd=folder,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends it
        )
    try:
        while not file.exists():
            if process.poll() is not None:
                raise NotStartedError(f"twistd ipc did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)  # the file is the announcement, and it comes from another process
        info = connection_file.read(file)
        yield Server(process, file, info, Keyring.from_file(info.key_file or ""), log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _round_trips(reactor: Any, server: Server, screen: _Screen) -> bool:
    """Send real input there and back through one connection."""
    largest = ExecutionIPCConfig.from_mapping({"allowed_kinds": [DEFAULT_KIND]}).max_payload_bytes
    payloads = [
        ("text", "Grüße, 世界".encode()),
        ("binary", bytes(range(256)) * 16),
        ("0 bytes", b""),
        ("the largest allowed", os.urandom(largest)),
    ]
    replies: list[Deferred[SecureEnvelope]] = []

    def on_reply(envelope: SecureEnvelope, _connection: SecureIPCProtocol) -> None:
        replies.pop(0).callback(envelope)

    connection = await connect(reactor, server.file, allowed_kinds=[DEFAULT_KIND], handler=on_reply)
    screen.row("payload", "bytes", "outcome", "what came back")
    good = True
    for number, (name, payload) in enumerate(payloads):
        reply: Deferred[SecureEnvelope] = Deferred()
        replies.append(reply)
        began = time.perf_counter()
        delivery = connection.send(
            DEFAULT_KIND, payload, trace_id=f"demo-{number}", reply_to="demo", headers={"content": name}
        )
        back = await reply.addTimeout(_ANSWER_SECONDS, reactor)
        milliseconds = (time.perf_counter() - began) * 1000
        await delivery
        same = (back.payload_bytes, back.trace_id, back.target, back.headers) == (
            payload,
            f"demo-{number}",
            "demo",
            {"content": name},
        )
        good &= same
        came = f"{'the same' if same else 'SOMETHING ELSE'} after {milliseconds:.1f} ms"
        screen.verdict(same, name, str(len(payload)), "accepted", came)
    await connection.close()
    return good


async def _still_alive(reactor: Any, server: Server) -> bool:
    try:
        connection = await connect(reactor, server.file)
        await connection.send(DEFAULT_KIND, b"still there?")
        await connection.close()
    except IPCError:
        return False
    return True


def _peer(server: Server) -> DemoPeer:
    return DemoPeer(server.info.port, server.keyring.current, server.info.service)


def _told(answer: Receipt | Close | None) -> tuple[str, str]:
    """The category, and the answer in words."""
    if isinstance(answer, Close):
        return answer.category, f"CLOSE {answer.category}: the connection is over"
    if isinstance(answer, Receipt):
        category = answer.rejected[0][1] if answer.rejected else "accepted"
        return category, f"RECEIPT {category}: the connection goes on"
    return "connection_lost", "nothing"


def _one_record(case: str, sent: str, expected: str, make: Callable[[DemoPeer], bytes]) -> Callable[[Server], Line]:
    """A case that is one write on a connection of its own."""

    def play(server: Server) -> Line:
        with _peer(server) as peer:
            peer.write(make(peer))
            return Line(case, sent, expected, *_told(peer.answer()))

    return play


def _forged(peer: DemoPeer) -> bytes:
    frame = bytearray(peer.frame(peer.envelope()))
    frame[4] ^= 1
    return bytes(frame)


def _unsigned(peer: DemoPeer) -> bytes:
    frame = peer.frame(peer.envelope())
    return frame[:4] + bytes(32) + frame[36:]


def _oversized(_peer: DemoPeer) -> bytes:
    too_large = ExecutionIPCConfig.from_mapping({"allowed_kinds": [DEFAULT_KIND]}).max_payload_bytes + 1
    return HEAD.pack(MIN_LENGTH + too_large, bytes(32), 1, 0, 0)


def _replayed(server: Server) -> Line:
    with _peer(server) as peer:
        envelope = peer.envelope()
        peer.write(peer.frame(envelope))
        peer.answer()
        peer.write(peer.frame(envelope))
        return Line("SEC-IPC-04", "a used nonce, signed anew", "replayed", *_told(peer.answer()))


def _wrong_key(server: Server) -> Line:
    with DemoPeer(server.info.port, Keyring.generate().current, server.info.service) as peer:
        seen = "key_unknown" if peer.outcome is None and _logged(server, "key_unknown") else "connected"
    return Line("wrong key", "a handshake with another key", "key_unknown", seen, "nothing: not even that it is wrong")


def _logged(server: Server, text: str) -> bool:
    """The server says so in its log, which another process writes: give it a moment."""
    deadline = time.monotonic() + _STOP_SECONDS
    while text not in server.log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _refused_start(case: str, sent: str, expected: str, options: list[str]) -> Callable[[Server], Line]:
    """A case in which no server may start."""

    def play(server: Server) -> Line:
        folder = server.file.parent
        (folder / "port.toml").write_text(
            f"[{'.'.join(SECTION)}]\nallowed_kinds = ['{DEFAULT_KIND}']\nbind_port = 65536\n"
        )
        child = subprocess.run(  # noqa: S603  # our own interpreter, fixed arguments
            [*_TWISTD, "--connection-file", str(folder / "other.json"), *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
            start_new_session=True,
        )
        text = child.stdout.decode(errors="replace")
        seen = expected if child.returncode != 0 and expected in text and "Traceback" not in text else "started"
        return Line(case, sent, expected, seen, f"exit {child.returncode}: nothing was bound")

    return play


def _no_secret_logged(server: Server) -> Line:
    secret = Path(server.info.key_file or "").read_text().split()[-1]
    log = server.log.read_text(errors="replace").lower()
    seen = "LEAKED" if secret in log else "none"
    return Line("SEC-IPC-08", "(the server's log of all this)", "none", seen, "the key is not in it")


_CASES: list[Callable[[Server], Line]] = [
    _one_record("SEC-IPC-01", "a message in order", "accepted", lambda peer: peer.frame(peer.envelope())),
    _one_record("SEC-IPC-02", "one bit of the signature flipped", "signature_invalid", _forged),
    _one_record("SEC-IPC-02b", "no signature (all zero)", "signature_missing", _unsigned),
    _one_record("SEC-IPC-03", "a message of 31 s ago", "expired", lambda peer: peer.frame(peer.envelope(age=31))),
    _replayed,
    _one_record("SEC-IPC-05", "47 bytes that announce 16 MiB + 1", "payload_too_large", _oversized),
    _one_record("SEC-IPC-06", "kind job.drop", "kind_not_allowed", lambda peer: peer.frame(peer.envelope("job.drop"))),
    _refused_start("SEC-IPC-07", "twistd ipc on 0.0.0.0", "bind_forbidden", ["--listen", "tcp:0:interface=0.0.0.0"]),
    _refused_start("SEC-IPC-07b", "twistd ipc on port 65536", "config_invalid", ["--config", "port.toml"]),
    _wrong_key,
    _no_secret_logged,
]


class _Screen:
    """Colour on a terminal, plain text in a pipe."""

    _WIDTHS = (20, 34, 18)

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def row(self, *cells: str, mark: str = "    ") -> None:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._WIDTHS, strict=False)]
        self.say(f"{mark} {' '.join(padded)} {cells[-1]}".rstrip())

    def verdict(self, good: bool, *cells: str) -> None:
        mark = "ok  " if good else "FAIL"
        if self._colour:
            mark = f"\033[{32 if good else 31}m{mark}\033[0m"
        self.row(*cells, mark=mark)
