"""The search for secrets finds them: a search that cannot fail would promise nothing."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.logger import Logger, LogLevel

from tests.leaks import Collected
from tests.twistd_child import ROOT

SECRET = bytes(range(0x61, 0x9D, 2)) + b"\xfb\xff"  # both alphabets of base64 differ in it


@pytest.mark.parametrize(
    "planted",
    [
        SECRET,
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        base64.b64encode(SECRET),
        base64.urlsafe_b64encode(SECRET),
        repr(SECRET).encode(),
        repr({"key": bytearray(SECRET)}).encode(),
    ],
)
@pytest.mark.parametrize("around", [b"%s", b"line\nkey=%s\n", b"x" * 5000 + b"%s"])
def test_a_planted_secret_is_found_in_every_spelling(planted: bytes, around: bytes) -> None:
    collected = Collected()
    collected.secret(SECRET)
    collected.output(around % planted)
    (found,) = collected.found()
    assert SECRET.hex() not in found.lower()


@pytest.mark.parametrize("text", [b"", SECRET[:-1], SECRET.hex().encode()[:-1], b"a line of a log"])
def test_nothing_is_found_where_none_is(text: bytes) -> None:
    collected = Collected()
    collected.secret(SECRET)
    collected.output(text)
    assert collected.found() == []


def test_test_data_is_not_taken_for_a_secret() -> None:
    collected = Collected()
    collected.secret(b"short")
    collected.secret(bytes(32))
    collected.output(b"short" + bytes(64))
    assert collected.found() == []


@pytest.mark.parametrize("where", ["field", "text", "failure"])
def test_a_secret_in_a_log_event_is_found(where: str) -> None:
    collected = Collected()
    collected.secret(SECRET)
    log = Logger(observer=collected)
    if where == "field":
        log.info("a line without it", extra=[SECRET])
    elif where == "text":
        log.info("a line with {key}", key=SECRET.hex())
    else:
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.failure("a failure", level=LogLevel.warn)
    assert collected.found()


@pytest.mark.attack(37)
def test_a_run_of_the_suite_in_which_a_child_prints_its_key_fails(tmp_path: Path) -> None:
    """The whole way: the key of a child is learned, its output is collected, and the end of the session fails."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "leaky.py").write_text(
        "import pathlib, os\n"
        "def handler(envelope, connection):\n"
        "    for file in pathlib.Path(os.environ['XDG_RUNTIME_DIR']).glob('*/*.key'):\n"
        "        print(file.read_text(), flush=True)\n"
    )
    (tmp_path / "test_leaky.py").write_text(
        "from tests.twistd_child import TwistdChild\n"
        "def test_it():\n"
        "    with TwistdChild(handler='leaky:handler') as child, child.peer() as peer:\n"
        "        assert peer.receipt_for(peer.send_envelope('job.run')) == 'accepted'\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert re.search(r"^1 passed, .*1 error in ", run.stdout, re.MULTILINE), run.stdout + run.stderr
    assert "a secret of 64 bytes (hex) behind" in run.stdout
