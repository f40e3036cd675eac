"""Who sends: only the process and the thread that a connection belongs to."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest

from ipc_twisted import EnvelopeError, NotConnected
from ipc_twisted.core.codec import decode_header
from ipc_twisted.nonces import process_nonces
from ipc_twisted.origin import Origin


def test_a_message_gets_the_second_and_a_nonce_of_its_own() -> None:
    origin = Origin(lambda: 1_800_000_000.9)
    first, second = (origin.message("k", b"p", "t", "r", ["a"], None) for _ in range(2))
    assert (first.ts, first.kind, first.trace_id, first.payload) == (1_800_000_000, "k", "t", b"p")
    ts, nonce, *rest = decode_header(first.header)
    assert (ts, rest) == (1_800_000_000, ["k", "t", "r", ["a"], {}])
    assert decode_header(second.header)[1] != nonce
    assert decode_header(origin.message("k", b"", None, None, None, {"a": "b"}).header)[-1] == {"a": "b"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, "") for name in ("kind", "trace_id", "reply_to", "target")),
        *((name, "x" * 257) for name in ("kind", "trace_id", "reply_to", "target")),
        ("kind", "\ud800"),
        ("kind", None),
        ("target", []),
        ("headers", {"a": 1}),
    ],
)
def test_a_field_is_checked_whatever_was_sent_before(field: str, value: Any) -> None:
    """Of many messages of one kind the others need not be looked at anew; of which of them, this must see."""
    origin = Origin(lambda: 1_800_000_000)
    fields: dict[str, Any] = {"kind": "k", "trace_id": None, "reply_to": None, "target": None, "headers": None}
    for _ in range(2):
        for _ in range(2):
            origin.message(payload_bytes=b"", **fields)
        for _ in range(2):
            with pytest.raises(EnvelopeError, match=f"malformed: {field} must be"):
                origin.message(payload_bytes=b"", **{**fields, field: value})
    for name, good in (("kind", "l"), ("trace_id", "t"), ("reply_to", "r"), ("target", ["a"]), ("headers", {"a": "b"})):
        header = origin.message(payload_bytes=b"", **{**fields, name: good}).header
        sent = dict(zip(fields, decode_header(header)[2:], strict=True))
        assert sent == {**fields, "headers": {}, name: good}


@pytest.mark.parametrize("time", [0, 0.9, -0.5, -1])
def test_the_first_message_is_checked_whatever_the_clock_says(time: float) -> None:
    kind: Any = None
    with pytest.raises(EnvelopeError, match="must be"):
        Origin(lambda: time).message(kind, b"", None, None, None, None)


def test_a_clock_before_1970_is_seen_also_in_the_middle() -> None:
    times = iter([1_800_000_000, 1_800_000_000, -1])
    origin = Origin(lambda: next(times))
    for _ in range(2):
        origin.message("k", b"", None, None, None, None)
    with pytest.raises(EnvelopeError, match="ts must be"):
        origin.message("k", b"", None, None, None, None)


@pytest.mark.parametrize("payload", ["text", bytearray(b"x"), memoryview(b"x"), None])
def test_a_payload_that_could_change_later_is_none(payload: Any) -> None:
    with pytest.raises(EnvelopeError, match="payload_bytes must be bytes, not"):
        Origin(lambda: 0).message("k", payload, None, None, None, None)


def test_nothing_is_said_in_a_fork() -> None:
    origin = Origin(lambda: 0)
    assert origin.is_here
    process_nonces.renew()  # what a fork does
    assert not origin.is_here
    with pytest.raises(NotConnected, match="belongs to the process that was forked"):
        origin.message("k", b"", None, None, None, None)
    assert Origin(lambda: 0).is_here


def test_nothing_is_said_in_another_thread() -> None:
    origin = Origin(lambda: 0)
    raised: list[Exception] = []

    def send() -> None:
        try:
            origin.message("k", b"", None, None, None, None)
        except RuntimeError as problem:
            raised.append(problem)

    thread = Thread(target=send)
    thread.start()
    thread.join()
    assert "use reactor.callFromThread" in str(raised[0])
