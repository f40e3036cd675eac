"""What ``conftest.py`` holds every test to does fail a test: checks that cannot fail would promise nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.twistd_child import ROOT

FAULTS = {
    "an error in a Deferred": ("defer.fail(ValueError('nobody looks'))", "ValueError: nobody looks"),
    "one in a reference cycle": (
        "d = defer.Deferred(); d.addCallback(lambda _: d); d.errback(ValueError('nobody looks')); d.self = d; del d",
        "ValueError: nobody looks",
    ),
    "a failure that is logged": (
        "Logger().failure('logged', Failure(ValueError('in the log')))",
        "ValueError: in the log",
    ),
    "a delayed call": ("reactor.callLater(60, print)", "left in the reactor: .*DelayedCall"),
    "a listening port": (
        "reactor.listenTCP(0, Factory(), interface='127.0.0.1')",
        "left in the reactor: .*Factory.* on ",
    ),
    "a client": (
        "reactor.connectTCP('127.0.0.1', sock.getsockname()[1], ClientFactory.forProtocol(Protocol))",
        "left in the reactor: .*Client.* at ",
    ),
}


def run(folder: Path, *bodies: str) -> str:
    """The output of a suite of one test for each body, under our ``conftest.py``."""
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    tests = "".join(f"\ndef test_{number}():\n    {body}\n" for number, body in enumerate(bodies))
    (folder / "test_it.py").write_text(
        "import socket\n"
        "from twisted.internet import defer, reactor\n"
        "from twisted.internet.protocol import ClientFactory, Factory, Protocol\n"
        "from twisted.logger import Logger\n"
        "from twisted.python.failure import Failure\n"
        "sock = socket.create_server(('127.0.0.1', 0))\n" + tests
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one run with all of them, and one test that does nothing wrong behind each."""
    bodies = [body for fault, _ in FAULTS.values() for body in (fault, "pass")]
    return run(tmp_path_factory.mktemp("faults"), *bodies)


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, (_, says) in FAULTS.items()])
def test_what_a_test_leaves_behind_fails_that_test(output: str, name: str, says: str) -> None:
    number = 2 * [*FAULTS].index(name)
    _, _, report = output.partition(f"_ ERROR at teardown of test_{number} _")
    assert re.search(says, report.partition("_ ERROR at")[0]), output


def test_it_fails_no_other_test(output: str) -> None:
    summary = output.splitlines()[-1]
    assert re.match(rf"{2 * len(FAULTS)} passed, .*{len(FAULTS)} errors? in ", summary), output
