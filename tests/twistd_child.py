"""A real ``twistd ipc`` as a child process. Nothing here sleeps: it is waited for lines of the child's log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from ipc_twisted.keys import Keyring
from tests.child_handlers import ALIVE
from tests.child_output import ChildOutput
from tests.honest import exchange
from tests.raw_peer import Peer

ROOT = Path(__file__).parent.parent
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=")
TWIST = ("-m", "twisted", "--log-format=text")
HANDLER = "tests.child_handlers:by_target"
LISTENING = r"\[ipc_twisted#info\] listening on 127\.0\.0\.1:(\d+), connection file (.+)"

_TIMEOUT = 20.0


class Finished(NamedTuple):
    """How a child ended."""

    code: int
    output: str


class TwistdChild:
    """One child. As a context manager it is up when the block begins, and gone, with all of its threads, behind it.

    :param options: of ``ipc``.
    :param config: written as a JSON file and passed on as ``--config``; ``allowed_kinds`` is ``["job.run"]`` unless
        given.
    :param handler: passed on as ``--handler``; None leaves that out.
    :param folder: its ``XDG_RUNTIME_DIR``; None makes one. A folder that is passed on outlives the child.
    :param runner: what runs the plugin.
    :param pass_fds: file descriptors that it inherits.
    """

    def __init__(
        self,
        *options: str,
        config: Mapping[str, Any] | None = None,
        handler: str | None = HANDLER,
        folder: Path | None = None,
        runner: Sequence[str] = TWISTD,
        python: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._stack = ExitStack()
        self.folder = folder or Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ipc-")))
        self.records_file = self.folder / "records"
        command = [sys.executable, *python, *runner, "ipc"]
        if config is not None:
            path = self.folder / f"config-{time.monotonic_ns()}.json"
            path.write_text(json.dumps({"allowed_kinds": ["job.run"], **config}))
            command += ["--config", str(path)]
        if handler is not None:
            command += ["--handler", handler]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "XDG_RUNTIME_DIR": str(self.folder),
            "IPC_TEST_RECORDS": str(self.records_file),
        }
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
        self._output = ChildOutput(self.process)

    def __enter__(self) -> Self:
        try:
            self.wait_for(LISTENING)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it wrote

    @property
    def log(self) -> str:
        """All output so far."""
        return self._output.log

    def wait_for(self, pattern: str, timeout: float = _TIMEOUT, *, times: int = 1) -> re.Match[str]:
        """As :meth:`.ChildOutput.wait_for`."""
        return self._output.wait_for(pattern, timeout, times=times)

    @property
    def records(self) -> list[dict[str, Any]]:
        """What :mod:`tests.child_handlers` was handed, oldest first; payloads as hex digits."""
        lines = self.records_file.read_text(encoding="utf-8").splitlines() if self.records_file.exists() else []
        return [json.loads(line) for line in lines]

    # Where it listens

    @property
    def port(self) -> int:
        return int(self.wait_for(LISTENING)[1])

    @property
    def connection_file(self) -> Path:
        return Path(self.wait_for(LISTENING)[2])

    @property
    def info(self) -> dict[str, Any]:
        """The content of the connection file."""
        content: dict[str, Any] = json.loads(self.connection_file.read_text())
        return content

    @property
    def key(self) -> bytes:
        """The generated secret."""
        return read_key(Path(self.info["key_file"]))

    @property
    def keyring(self) -> Keyring:
        return Keyring([self.key])

    def peer(self, **options: Any) -> Peer:
        """A raw peer that is connected and has proved itself."""
        return Peer.connect(self.port, self.key, **options)

    # How it ends

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = _TIMEOUT) -> Finished:
        """Wait for its own end."""
        code = self.process.wait(timeout)
        self._output.join(timeout)
        return Finished(code, self.log)

    def terminate(self) -> Finished:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> Finished:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        """End it, in order if it can, and reap it."""
        with self._stack:
            self._output.close(_TIMEOUT)


def read_key(path: Path) -> bytes:
    """The one key of a key file."""
    (line,) = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return bytes.fromhex(line)


def run_to_its_end(*options: str, **arguments: Any) -> Finished:
    """A child that is expected to end by itself."""
    child = TwistdChild(*options, **arguments)
    try:
        return child.wait()
    finally:
        child.close()


def assert_serves(child: TwistdChild, *peers: Peer) -> None:
    """An honest client, and the connections that were there before, send and get receipts."""
    with child.peer() as newcomer:
        exchange(newcomer, *peers, target=ALIVE)
