"""The tutorial works: everything it tells to type and to save is typed and saved, in a fresh clone.

A fresh environment is made by its own commands, with a real ``twistd``, a real uvicorn and real HTTP. Two things are
not as in the text: the port of the web server is one that is free, and Python is the one that runs the tests.

Before a block the page says in an HTML comment who types it: ``terminal: NAME`` (and waits for the end), ``..., until:
TEXT`` (and leaves it running once it has said so), ``..., goes on`` (and leaves it running). ``terminal: NAME, stop``
stands alone and means Ctrl-C.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.leaks import SUITE

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
TIMEOUT_SECONDS = 90.0  # the installation takes most of it

if not PAGE.is_file():
    pytest.skip("a wheel has no documents: they are tested in the checkout", allow_module_level=True)


class Terminal:
    """Types one block, as a process group of its own."""

    def __init__(self, commands: str, folder: Path, environment: dict[str, str]) -> None:
        self._output = ""
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            ["sh", "-e", "-c", commands],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A suite in the background of a shell ignores SIGINT; what is typed into a terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        if (stream := self.process.stdout) is None:
            return
        with stream:
            for line in stream:
                SUITE.output(line)
                with self._changed:
                    self._output += line.decode(errors="replace")
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        with self._changed:
            return self._output

    def until(self, text: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: text in self._output or self._ended, TIMEOUT_SECONDS)
            assert text in self._output, self._output

    def finish(self) -> str:
        """Wait for its end, and give what it printed."""
        code = self.process.wait(TIMEOUT_SECONDS)
        self._reader.join(TIMEOUT_SECONDS)
        assert code == 0, self._output
        return self._output

    def interrupt(self) -> None:
        """Ctrl-C, and wait."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            self._reader.join(TIMEOUT_SECONDS)


def steps() -> Iterator[tuple[str, str]]:
    """What the page says before each block, and the block; ``""`` for what stands alone."""
    pattern = r"^<!-- (.*?) -->\n(?:```\w+\n(.*?)^```$)?"
    for found in re.finditer(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield found[1], found[2] or ""


def clone(folder: Path) -> None:
    """As git would: of a copy of this folder that is no clone, all but what is made by tools."""
    made = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=made)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def test_every_block_of_the_tutorial_is_followed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^```\w+$", text, re.MULTILINE)) == sum(1 for _, block in steps() if block)
    assert [says for says, _ in steps() if not re.match(r"terminal: \w+|file: |prints$", says)] == []


@pytest.mark.slow
def test_the_tutorial_works_from_a_fresh_clone(tmp_path: Path, runtime_folder: Path) -> None:
    folder, port = tmp_path / "clone", str(free_port())
    clone(folder)
    python = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    environment |= {"XDG_RUNTIME_DIR": str(runtime_folder), "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    terminals: dict[str, Terminal] = {}
    last = ""
    with ExitStack() as stack:
        for says, block in steps():
            block = block.replace("8000", port)
            kind, _, rest = says.partition(": ")
            name, _, how = rest.partition(", ")
            if kind == "file":
                (folder / rest).write_text(block, encoding="utf-8")
            elif kind == "prints":
                assert terminals[last].finish().strip() == block.strip()
            elif how == "stop":
                terminals[name].interrupt()
            else:
                terminal = terminals[name] = Terminal(block, folder, environment)
                stack.callback(terminal.interrupt)
                if how.startswith("until: "):
                    terminal.until(how.removeprefix("until: "))
                else:
                    last = name
                    if not how:
                        terminal.finish()
    assert [name for name, terminal in terminals.items() if "Traceback" in terminal.output] == []
