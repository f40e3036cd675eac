"""Starts and ends the execution process and the hostile one. That is the example's part: ipc_twisted starts nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from examples.web_execution.events import Events

FOLDER = Path(__file__).parent
CHECKOUT = FOLDER.parent.parent
_TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=")  # the command `twistd`
_STOP_SECONDS = 8.0
_ATTACK_SECONDS = 20.0


class ExecutionProcess:
    """``twistd ipc`` as a child process, which can be killed and started again.

    :param connection_file: that it shall write.
    :param events: told at every change whether it runs, with which process id.
    """

    def __init__(self, connection_file: Path, events: Events) -> None:
        self._connection_file = connection_file
        self._events = events
        self._process: Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Start it, if it does not run."""
        async with self._changing:
            if self._process is not None:
                return
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_TWISTD,
                "ipc",
                "--config",
                str(FOLDER / "runtime.toml"),
                "--connection-file",
                str(self._connection_file),
                "--handler",
                "examples.web_execution.execution:handle",
                stdin=DEVNULL,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                start_new_session=True,  # Ctrl-C in the terminal reaches only us, and we end it in order
            )
            self._tell(self._process)
            self._events.log(f"Execution process {self._process.pid} was started.")
            self._watcher = asyncio.create_task(self._watch(self._process))

    async def kill(self) -> None:
        """End it at once, with all that it was at (SIGKILL)."""
        async with self._changing:
            if self._process is not None:
                self._process.kill()
                await self._ended()

    async def stop(self) -> None:
        """End it in order (SIGTERM)."""
        async with self._changing:
            if self._process is not None:
                self._process.terminate()
                try:
                    await asyncio.wait_for(self._ended(), _STOP_SECONDS)
                except TimeoutError:
                    self._process.kill()
                    await self._ended()

    async def _ended(self) -> None:
        if self._watcher is not None:
            await asyncio.shield(self._watcher)

    async def _watch(self, process: Process) -> None:
        code = await process.wait()
        self._process = None
        self._tell(None)
        self._events.log(f"Execution process {process.pid} has ended (exit code {code}).", "bad")

    def _tell(self, process: Process | None) -> None:
        self._events.publish("process", {"pid": None if process is None else process.pid})


async def run_hostile(attack: str, loot: bytes, descriptors: Sequence[int] = ()) -> bytes:
    """Run the hostile process to its end; return what it wrote.

    Here it runs as the same user, so that the example needs no second one. It makes no use of that: it gets what is
    passed to it and nothing else, and not even the example's environment.

    :param loot: its standard input.
    :param descriptors: open sockets that it gets hold of.
    :raises RuntimeError: it failed, or did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(FOLDER / "hostile.py"),
        attack,
        stdin=PIPE,
        stdout=PIPE,
        env={},
        pass_fds=descriptors,
    )
    try:
        saw, _ = await asyncio.wait_for(process.communicate(loot), _ATTACK_SECONDS)
    except TimeoutError:
        raise RuntimeError("the hostile process did not end in time") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError("the hostile process failed; its error is in the terminal")
    return saw
