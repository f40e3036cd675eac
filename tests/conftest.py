"""What every test is held to, beyond its own assertions.

* No error is left in a Deferred, and none is logged that the test did not expect.
* Nothing is left in the reactor: no delayed call, no socket.
* Nothing that the suite or its child processes wrote holds a secret.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.signing import MacKey
from tests import wire_peer
from tests.leaks import SUITE

_SETTLING_TURNS = 10


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_output() -> Iterator[None]:
    """SEC-IPC-08, over all there is: fails the run at its end."""
    gc.collect()
    gc.freeze()  # the collections after each test then look only at what came since
    globalLogPublisher.addObserver(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        _learn_secrets(patch)
        yield
    globalLogPublisher.removeObserver(SUITE)
    if found := SUITE.found():
        pytest.fail("\n".join(found), pytrace=False)


def _learn_secrets(patch: pytest.MonkeyPatch) -> None:
    """Every secret, derived key and tag that is made from now on, by the package or by the second implementation."""
    mac_init, prk_init = MacKey.__init__, Prk.__init__
    prk, connection_keys, tags = wire_peer.prk, wire_peer.connection_keys, wire_peer.tags

    def new_mac(self: MacKey, key: bytes) -> None:
        SUITE.secret(key)
        mac_init(self, key)

    def new_prk(self: Prk, secret: bytes) -> None:
        prk_init(self, secret)
        SUITE.secret(secret)
        SUITE.secret(prk(secret))

    def learn(function: Callable[..., Any]) -> Callable[..., Any]:
        def learning(*arguments: Any) -> Any:
            result = function(*arguments)
            for value in (arguments[0], result) if function is prk else result:
                SUITE.secret(value)
            return result

        return learning

    patch.setattr(MacKey, "__init__", new_mac)
    patch.setattr(Prk, "__init__", new_prk)
    for function in (prk, connection_keys, tags):
        patch.setattr(wire_peer, function.__name__, learn(function))


@pytest.fixture
def logged_failures() -> Iterator[list[Failure]]:
    """Every failure that is logged while the test runs. Who expects one checks it and takes it out."""
    observer = _FailureObserver()
    globalLogPublisher.addObserver(observer)
    yield observer.failures
    globalLogPublisher.removeObserver(observer)


@implementer(ILogObserver)
class _FailureObserver:
    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def __call__(self, event: LogEvent) -> None:
        if isinstance(event.get("log_failure"), Failure):
            self.failures.append(event["log_failure"])


@pytest.fixture(autouse=True)
def no_unhandled_errors(request: pytest.FixtureRequest, logged_failures: list[Failure]) -> Iterator[None]:
    """pytest-twisted notices neither an error that is left in a Deferred nor one that the reactor logs."""
    yield
    if isinstance(request.instance, SynchronousTestCase):
        logged_failures.clear()  # trial itself holds a test to what was logged while it ran
    gc.collect()  # what is left in a Deferred is logged when that goes
    if logged_failures:
        pytest.fail("\n".join(failure.getTraceback() for failure in logged_failures), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_in_the_reactor() -> Iterator[None]:
    """Delayed calls and sockets that a test began, it also ends."""
    from twisted.internet import reactor

    before = _held(reactor)
    yield
    for _ in range(_SETTLING_TURNS):  # an abort takes effect in the next turn
        if not (left := _held(reactor) - before):
            return
        pytest_twisted.blockon(deferLater(reactor, 0))
    pytest.fail("left in the reactor: " + ", ".join(map(repr, left)), pytrace=False)


def _held(reactor: Any) -> set[Any]:
    held = {*reactor.getDelayedCalls(), *reactor.getReaders(), *reactor.getWriters()}
    return held.difference(reactor._internalReaders)


@pytest.fixture(autouse=True)
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers of this test put their files, unless told otherwise."""
    with tempfile.TemporaryDirectory(prefix="ipc-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)
