"""SEC-IPC-01 end to end: a real ``twistd ipc`` hands over what a client sends, and what it answers comes back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredQueue

from ipc_twisted import (
    Category,
    EnvelopeError,
    NotConnected,
    Rejected,
    SecureEnvelope,
    SecureIPCProtocol,
    connect,
)
from tests.raw_peer import Peer
from tests.serving import in_thread, within
from tests.twistd_child import TwistdChild, assert_serves
from tests.wire_peer import CLOSE

LARGEST = 16 * 1024 * 1024
KIND = "job.run"
KINDS = (KIND, "работа.запуск")


@pytest.fixture(scope="module")
def child() -> Iterator[TwistdChild]:
    with TwistdChild(config={"allowed_kinds": KINDS}) as child:
        yield child
        assert "Traceback" not in child.log


class Client:
    """A connection of the package's, and the replies that came over it."""

    def __init__(self) -> None:
        self.connection: SecureIPCProtocol
        self.replies: DeferredQueue[SecureEnvelope] = DeferredQueue()

    def send(self, payload: bytes = b"", **fields: Any) -> Any:
        return self.connection.send(fields.pop("kind", KIND), payload, **fields)

    async def reply(self) -> SecureEnvelope:
        return await within(self.replies.get())


@asynccontextmanager
async def connected(child: TwistdChild, **options: Any) -> AsyncIterator[Client]:
    """By the connection file alone, as most clients do."""
    from twisted.internet import reactor

    client = Client()
    options = {"allowed_kinds": KINDS, "handler": lambda envelope, _: client.replies.put(envelope), **options}
    client.connection = await within(connect(reactor, child.connection_file, **options))
    try:
        yield client
    finally:
        await within(client.connection.close())


@pytest.mark.contract("SEC-IPC-01")
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("Grüße, 世界 \U0001f600".encode(), id="text"),
        pytest.param(bytes(range(256)) * 16, id="binary"),
        pytest.param(b"", id="0 bytes"),
        pytest.param(b"\0", id="a zero byte"),
        pytest.param(b"\x80\x04\x95cos\nsystem\n", id="a pickle"),
        pytest.param(os.urandom(LARGEST), id="the largest allowed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_sent_is_accepted_and_comes_back_unchanged(child: TwistdChild, payload: bytes) -> None:
    async with connected(child) as client:
        delivery = client.send(payload, trace_id="t-1", reply_to="caller", headers={"content": "x"})
        outcome = await within(delivery.as_deferred())
        reply = await client.reply()
        assert outcome is None
        assert delivery.done()
        assert delivery.exception() is None
        assert reply.payload_bytes == payload
        assert (reply.kind, reply.trace_id, reply.reply_to, reply.target) == (KIND, "t-1", None, "caller")
        assert reply.headers == {"content": "x"}
        assert len(bytes.fromhex(reply.sig)) == 32


@pytest.mark.contract("SEC-IPC-01b")
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="only what must be"),
        pytest.param({"target": ["parse", "score", "größe"]}, id="a list of targets"),
        pytest.param({"target": ["t" * 256] * 64}, id="64 targets"),
        pytest.param({"headers": {f"name-{i}": f"wert-ü-{i}" for i in range(64)}}, id="64 headers"),
        pytest.param({"headers": {"": ""}}, id="an empty header"),
        pytest.param({"trace_id": "трасса-\U0001f600", "reply_to": "回复"}, id="text beyond ASCII"),
        pytest.param({"trace_id": "ü" * 256, "reply_to": "\U0001f600" * 256}, id="the longest text"),
        pytest.param({"kind": "работа.запуск"}, id="a kind beyond ASCII"),
        pytest.param({"headers": {"a": "x" * 65_000}}, id="a long header"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_all_nine_fields_are_handed_over(child: TwistdChild, fields: dict[str, Any]) -> None:
    async with connected(child) as client:
        await within(client.send(b"payload", **fields).as_deferred())
        reply = await client.reply()
    record = child.records[-1]
    expected = {"kind": KIND, "trace_id": None, "reply_to": None, "target": None, "headers": {}, **fields}
    assert {name: record[name] for name in expected} == expected
    assert record["payload_bytes"] == b"payload".hex()
    assert isinstance(record["ts"], int)
    assert 1 <= len(record["nonce"]) <= 64
    assert len(bytes.fromhex(record["sig"])) == 32
    assert (reply.payload_bytes, reply.headers) == (b"payload", expected["headers"])
    assert (reply.nonce, reply.sig) != (record["nonce"], record["sig"])


@pytest_twisted.ensureDeferred
async def test_awaiting_a_message_gives_none(child: TwistdChild) -> None:
    async with connected(child) as client:

        async def send() -> object:
            return await client.send(b"x")

        assert await within(send()) is None


@pytest_twisted.ensureDeferred
async def test_many_messages_come_in_the_order_in_which_they_were_sent(child: TwistdChild) -> None:
    async with connected(child) as client:
        for number in range(500):
            client.send(str(number).encode())
        replies = [await client.reply() for _ in range(500)]
        assert [int(reply.payload_bytes) for reply in replies] == [*range(500)]
        assert len({reply.nonce for reply in replies}) == 500
        await within(client.connection.drained())
        assert client.connection.buffered == 0


@pytest_twisted.ensureDeferred
async def test_a_port_and_a_keyring_do_as_well_as_the_connection_file(child: TwistdChild) -> None:
    from twisted.internet import reactor

    connection = await within(connect(reactor, child.port, child.keyring))
    assert connection.is_open
    assert connection.peer_limits is not None
    assert connection.peer_limits.max_payload_bytes == LARGEST
    await within(connection.send(KIND, b"", target="keep").as_deferred())
    assert await within(connection.close()) == Category.CLOSED


@pytest_twisted.ensureDeferred
async def test_the_client_closes(child: TwistdChild) -> None:
    async with connected(child) as client:
        closed = client.connection.wait_closed()
        await within(client.send(b"", target="keep").as_deferred())
        assert await within(client.connection.close()) == Category.CLOSED
        assert await within(closed) == Category.CLOSED
        assert not client.connection.is_open


@pytest_twisted.ensureDeferred
async def test_the_server_closes_and_what_it_had_accepted_stays_accepted(child: TwistdChild) -> None:
    async with connected(child) as client:
        closing, beyond = client.send(b"", target="close"), client.send(b"beyond", target="keep")
        waiting = beyond.as_deferred()
        await within(closing.as_deferred())
        with pytest.raises(Rejected) as raised:
            await within(waiting)
        assert raised.value.category == Category.CLOSED
        assert await within(client.connection.wait_closed()) == Category.CLOSED
        with pytest.raises(NotConnected):
            client.send(b"")
    assert [record["target"] for record in child.records][-1] == "close"


@pytest_twisted.ensureDeferred
async def test_what_is_on_its_way_when_the_client_closes_has_an_outcome(child: TwistdChild) -> None:
    async with connected(child) as client:
        written = client.send(b"", target="keep").as_deferred()
        await within(written)
        queued = client.send(b"", target="keep").as_deferred()
        client.connection.close()
        with pytest.raises(Rejected) as raised:
            await within(queued)
        assert raised.value.category == Category.CLOSED


BAD: list[tuple[str, Callable[[Client], object], Category]] = [
    ("too large", lambda client: client.send(bytes(LARGEST + 1)), Category.PAYLOAD_TOO_LARGE),
    ("no kind", lambda client: client.send(kind=""), Category.MALFORMED),
    ("a long kind", lambda client: client.send(kind="k" * 129), Category.MALFORMED),
    ("text for a payload", lambda client: client.connection.send(KIND, "text"), Category.MALFORMED),  # type: ignore[arg-type]
    ("an empty trace_id", lambda client: client.send(trace_id=""), Category.MALFORMED),
    ("a number for a trace_id", lambda client: client.send(trace_id=1), Category.MALFORMED),
    ("no targets", lambda client: client.send(target=[]), Category.MALFORMED),
    ("65 targets", lambda client: client.send(target=["t"] * 65), Category.MALFORMED),
    ("65 headers", lambda client: client.send(headers={str(n): "" for n in range(65)}), Category.MALFORMED),
    ("a long header", lambda client: client.send(headers={"a": "x" * 65_536}), Category.MALFORMED),
    ("half a character", lambda client: client.send(reply_to="\ud83d"), Category.MALFORMED),
]


@pytest.mark.attack(31)
@pytest.mark.parametrize(("attempt", "category"), [pytest.param(*rest, id=name) for name, *rest in BAD])
@pytest_twisted.ensureDeferred
async def test_what_breaks_a_rule_is_refused_by_the_sender_and_nothing_is_written(
    child: TwistdChild, attempt: Callable[[Client], object], category: Category
) -> None:
    async with connected(child) as client:
        before = len(child.records)
        with pytest.raises(EnvelopeError) as raised:
            attempt(client)
        assert raised.value.category == category
        assert client.connection.buffered == 0
        await within(client.send(b"next", target="keep").as_deferred())
        assert [bytes.fromhex(record["payload_bytes"]) for record in child.records[before:]] == [b"next"]


@pytest_twisted.ensureDeferred
async def test_a_kind_that_the_server_does_not_take_is_told_and_the_next_message_goes_through(
    child: TwistdChild,
) -> None:
    async with connected(child) as client:
        before = len(child.records)
        with pytest.raises(Rejected) as raised:
            await within(client.send(b"", kind="Job.run").as_deferred())
        assert raised.value.category == Category.KIND_NOT_ALLOWED
        await within(client.send(b"", target="keep").as_deferred())
        assert len(child.records) == before + 1


@pytest.mark.attack(32)
@pytest_twisted.ensureDeferred
async def test_a_handler_may_send_from_within(child: TwistdChild) -> None:
    """On the client's side: each reply causes the next message."""
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()

    async def handler(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        left = int(envelope.payload_bytes)
        if left:
            await connection.send(KIND, str(left - 1).encode())
        else:
            done.callback(None)

    connection = await within(connect(reactor, child.connection_file, allowed_kinds=[KIND], handler=handler))
    connection.send(KIND, b"20")
    await within(done)
    await within(connection.close())


# A peer that shares no code with the package, written from the design's section 4.


@pytest.mark.contract("SEC-IPC-01")
def test_an_independent_client_is_understood(child: TwistdChild) -> None:
    with child.peer() as peer:
        fields: dict[str, Any] = {"trace_id": "t-raw", "reply_to": "me", "headers": {"b": "2", "a": "1"}}
        seq, frame = peer.envelope_frame(KIND, b"raw", **fields)
        peer.send_raw(frame)
        assert peer.receipt_for(seq) == "accepted"
        reply = peer.read_envelope()
        assert (reply["kind"], reply["payload"], reply["trace_id"], reply["target"], reply["headers"]) == (
            KIND,
            b"raw",
            "t-raw",
            "me",
            {"a": "1", "b": "2"},
        )
        peer.send_receipt()
        assert peer.credit == (16_384 + 1, 64 * 1024 * 1024 + len(frame))
        peer.send_close()
        close = peer.read_until_close()
        assert (close["category"], close["through"], close["rejected"], close["cause"]) == ("closed", 0, [], None)
        assert peer.wait_eof() == b""
        assert not peer.reset


def test_an_independent_client_may_send_in_the_same_write_as_its_proof(child: TwistdChild) -> None:
    with Peer.open(child.port) as peer:
        peer.send_m1(child.key)
        peer.read_m2()
        seq, frame = peer.envelope_frame(KIND, b"early", target="keep")
        peer.send_raw(peer.m3_frame + frame)
        assert peer.receipt_for(seq) == "accepted"


class _ByteByByte(Peer):
    def send_raw(self, data: bytes) -> None:
        for byte in data:
            super().send_raw(bytes([byte]))


@pytest.mark.attack(1)
def test_one_byte_at_a_time_is_the_same(child: TwistdChild) -> None:
    with _ByteByByte.open(child.port) as peer:
        peer.handshake(child.key)
        for payload in (b"", b"x", bytes(100)):
            seq = peer.send_envelope(KIND, payload, target="keep")
            assert peer.receipt_for(seq) == "accepted"
        peer.send_close()
        assert peer.read_until_close()["category"] == "closed"


def test_envelopes_behind_the_close_are_not_handed_over(child: TwistdChild) -> None:
    before = len(child.records)
    with child.peer() as peer:
        peer.send_envelope(KIND, b"first", target="keep")
        close = peer.record_frame(CLOSE, ["closed", -1, [], None])[1]
        peer.send_raw(close + peer.envelope_frame(KIND, b"behind", target="keep")[1])
        assert peer.read_until_close()["through"] == 0
        peer.wait_eof()
    assert [bytes.fromhex(record["payload_bytes"]) for record in child.records[before:]] == [b"first"]
    assert_serves(child)


@pytest_twisted.ensureDeferred
async def test_both_implementations_share_one_server(child: TwistdChild) -> None:
    async with connected(child) as client:
        await in_thread(assert_serves, child)
        await within(client.send(b"", target="keep").as_deferred())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about how glibc takes memory")
def test_a_large_read_does_not_begin_on_pages_that_are_not_there() -> None:
    """In a process that has freed nothing large before."""
    program = (
        "import resource, socket\n"
        "from ipc_twisted.protocol import READ_BYTES, READ_MOST_BYTES\n"
        "ours, theirs = socket.socketpair()\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for _ in range(200):\n"
        "    theirs.sendall(bytes(READ_BYTES // 2))\n"
        "    ours.recv(READ_MOST_BYTES)\n"
        "print((faults() - before) // 200)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4, "of 16 pages"
