"""``ipc-twisted demo`` from outside: it ends well, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipc_twisted import demo

DEMO = [sys.executable, "-m", "ipc_twisted.cli", "demo"]
CASES = ["SEC-IPC-01", "SEC-IPC-02", "SEC-IPC-02b", "SEC-IPC-03", "SEC-IPC-04", "SEC-IPC-05", "SEC-IPC-06"]
CASES += ["SEC-IPC-07", "SEC-IPC-07b", "SEC-IPC-08", "wrong key"]
TIMEOUT_SECONDS = 120


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)}


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """To its end, with its temporary files under ``folder``."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=_environment(folder), check=False
    )


def _children_in(folder: Path) -> list[str]:
    """Processes that have the demo's temporary folder in their command line."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in command:
                found.append(process.name)
    return found


def test_the_demo_ends_well_says_each_case_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = _run(tmp_path, *DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for case in CASES:
        assert sum(line.startswith(f"ok   {case} ") for line in done.stdout.splitlines()) == 1, case
    assert "16777216" in done.stdout
    assert "\033[" not in done.stdout, "colour is for terminals"
    assert list(tmp_path.iterdir()) == []
    assert _children_in(tmp_path) == []


def test_the_demo_is_coloured_on_a_terminal(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    environment = _environment(tmp_path)
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(DEMO, stdout=its, stderr=its, stdin=its, env=environment) as child:
        os.close(its)
        output = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # the terminal's other end is gone
                break
            if not part:
                break
            output += part
    os.close(ours)
    assert child.returncode == 0
    assert b"\033[32mok" in output


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, signal_name: str) -> None:
    with subprocess.Popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(tmp_path),
        # A suite in the background of a shell ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "SEC-IPC-01 " in line:
                break
        child.send_signal(getattr(signal, signal_name))
        child.stdout.read()
    assert child.returncode != 0
    assert list(tmp_path.iterdir()) == []
    assert _children_in(tmp_path) == []


def test_a_line_that_is_not_as_expected_is_said() -> None:
    """The verdict is computed from what was seen: a demo that cannot fail would show nothing."""
    assert demo.Line("case", "sent", "replayed", "replayed", "told").good
    assert not demo.Line("case", "sent", "replayed", "accepted", "told").good


def test_a_case_that_is_not_refused_fails_the_demo(tmp_path: Path) -> None:
    """Play it with a case whose expectation is wrong: exit status 1, and FAIL in its line."""
    program = (
        "from ipc_twisted import cli, demo\n"
        "demo._CASES[:] = [demo._one_record('SEC-X', 'good', 'expired', lambda peer: peer.frame(peer.envelope()))]\n"
        "cli.main(['demo'])\n"
    )
    done = _run(tmp_path, sys.executable, "-c", program)
    assert done.returncode == 1
    assert "FAIL SEC-X" in done.stdout
    assert "expected expired" in done.stdout


def test_a_server_that_is_lost_on_the_way_fails_the_demo(tmp_path: Path) -> None:
    """And the last line says so."""
    program = (
        "import os, signal\n"
        "from ipc_twisted import cli, demo\n"
        "def kill(server):\n"
        "    os.kill(server.process.pid, signal.SIGKILL)\n"
        "    server.process.wait()\n"
        "    return demo.Line('SEC-X', 'nothing', '', '', '')\n"
        "demo._CASES[:] = [kill]\n"
        "cli.main(['demo'])\n"
    )
    done = _run(tmp_path, sys.executable, "-c", program)
    assert done.returncode == 1
    assert "Something is not as expected." in done.stdout
    assert "accepted" not in done.stdout.splitlines()[-3]
    assert "Traceback" not in done.stderr


def test_a_server_that_cannot_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    """Here for want of file descriptors."""
    done = _run(tmp_path, "sh", "-c", f"ulimit -n 300; exec {sys.executable} -m ipc_twisted.cli demo")
    assert done.returncode == 1
    assert done.stderr.startswith("ipc-twisted demo: twistd ipc did not start:")
    assert "type: ulimit -n 704" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_screen_is_plain_where_colour_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    out: Any = Terminal()
    demo._Screen(out).verdict(True, "a", "b")
    assert "\033[" not in out.getvalue()
