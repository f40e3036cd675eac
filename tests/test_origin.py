"""Who sends: only the process and the thread that a connection belongs to."""

from __future__ import annotations

from threading import Thread

import pytest

from ipc_twisted import NotConnected
from ipc_twisted.nonces import process_nonces
from ipc_twisted.origin import Origin


def test_a_message_gets_the_second_and_a_nonce_of_its_own() -> None:
    origin = Origin(lambda: 1_800_000_000.9)
    first, second = (origin.fields("k", "t", "r", ["a"], None) for _ in range(2))
    assert first == (1_800_000_000, first[1], "k", "t", "r", ["a"], {})
    assert first[1] != second[1]
    assert origin.fields("k", None, None, None, {"a": "b"})[-1] == {"a": "b"}


def test_nothing_is_said_in_a_fork() -> None:
    origin = Origin(lambda: 0)
    assert origin.is_here
    process_nonces.renew()  # what a fork does
    assert not origin.is_here
    with pytest.raises(NotConnected, match="belongs to the process that was forked"):
        origin.fields("k", None, None, None, None)
    assert Origin(lambda: 0).is_here


def test_nothing_is_said_in_another_thread() -> None:
    origin = Origin(lambda: 0)
    raised: list[Exception] = []

    def send() -> None:
        try:
            origin.fields("k", None, None, None, None)
        except RuntimeError as problem:
            raised.append(problem)

    thread = Thread(target=send)
    thread.start()
    thread.join()
    assert "use reactor.callFromThread" in str(raised[0])
