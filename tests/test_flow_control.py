"""Credit over real sockets: both sides write as fast as they can, and neither stands still nor loses or reorders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from ipc_twisted import (
    Category,
    DeliveryUnknown,
    EnvelopeError,
    Keyring,
    Rejected,
    SecureEnvelope,
    SecureIPCProtocol,
    SendBufferFull,
    connect,
)
from tests.memory_link import SECRET, config
from tests.raw_peer import Listener
from tests.serving import Server, in_thread, serving, within

COUNT = 300
HELLO, JOB, REPLY = "hello", "job.run", "job.done"
KINDS = [HELLO, JOB, REPLY]

T = TypeVar("T")


class Side:
    """One of the two, and what it was handed.

    :ivar jobs: the payloads of the jobs it got, in order; ``replies``: those that answer its own.
    :ivar failed: what its handlers' own sends ended in, where they were not accepted.
    """

    def __init__(self, *, answers: bool = False) -> None:
        self.jobs: list[bytes] = []
        self.replies: list[bytes] = []
        self.failed: list[Category] = []
        self.connection: SecureIPCProtocol
        self._answers = answers
        self._on_reply: list[Deferred[None]] = []

    def handle(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Any:
        self.connection = connection
        if envelope.kind == JOB:
            self.jobs.append(envelope.payload_bytes)
            return self._answer(envelope, connection) if self._answers else None
        if envelope.kind == REPLY:
            self.replies.append(envelope.payload_bytes)
            waiting, self._on_reply = self._on_reply, []
            for deferred in waiting:
                deferred.callback(None)
        return None

    async def _answer(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        """Keep the credit of the job until this side's own message on the same connection is accepted."""
        await connection.drained()
        try:
            await connection.send(REPLY, envelope.payload_bytes)
        except (Rejected, DeliveryUnknown) as problem:
            self.failed.append(problem.category)

    async def send_all(self, size: int = 0, *, unanswered: int = COUNT) -> list[Any]:
        """``COUNT`` jobs at full speed, but no more than ``unanswered`` of them at a time; the Failures among them."""
        outcomes = []
        for number in range(COUNT):
            await self.connection.drained()
            while number - len(self.replies) >= unanswered:
                await self.next_reply()
            outcomes.append(self.connection.send(JOB, b"%d" % number + bytes(size)).as_deferred())
        return [result for good, result in await DeferredList(outcomes, consumeErrors=True) if not good]

    async def all_replies(self) -> list[int]:
        """Wait for as many as there were jobs."""
        while len(self.replies) < COUNT:
            await self.next_reply()
        return numbers(self.replies)

    def next_reply(self) -> Deferred[None]:
        self._on_reply.append(Deferred())
        return self._on_reply[-1]


@asynccontextmanager
async def linked(
    ours: Side, theirs: Side, limits: dict[str, Any], auth: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[Server]:
    """Two sides of the package on one connection, with the same limits."""
    from twisted.internet import reactor

    more = {"allowed_kinds": KINDS, **more}
    async with serving(limits, auth, **more) as server:
        server.handler = theirs.handle
        settings = config(limits, auth, **more)
        ours.connection = await within(
            connect(reactor, server.port, Keyring([SECRET]), config=settings, handler=ours.handle)
        )
        await within(ours.connection.send(HELLO, b"").as_deferred())  # then they know their connection, too
        yield server
        await within(ours.connection.close())


def numbers(payloads: list[bytes]) -> list[int]:
    return [int(payload.rstrip(b"\0")) for payload in payloads]


async def both(*coroutines: Coroutine[Deferred[Any], Any, T]) -> list[T]:
    """Run them side by side."""
    return await within(gatherResults([Deferred.fromCoroutine(coroutine) for coroutine in coroutines]))


@pytest.mark.attack(32)
@pytest.mark.parametrize("size", [0, 3_000])
@pytest.mark.parametrize("max_inflight", [1, 2, 16])
@pytest_twisted.ensureDeferred
async def test_both_only_write(max_inflight: int, size: int) -> None:
    ours, theirs = Side(), Side()
    limits = {"max_inflight": max_inflight, "send_buffer_bytes": 80_000}
    async with linked(ours, theirs, limits, max_payload_bytes=4_000):
        assert await both(ours.send_all(size), theirs.send_all(size)) == [[], []]
        for side in (ours, theirs):
            assert numbers(side.jobs) == [*range(COUNT)]
            assert side.connection.buffered == 0
            assert side.connection.is_open


@pytest.mark.attack(32)
@pytest.mark.parametrize("max_inflight", [1, 2, 16])
@pytest_twisted.ensureDeferred
async def test_both_write_and_the_handlers_of_one_await_their_own_sends(max_inflight: int) -> None:
    ours, theirs = Side(), Side(answers=True)
    async with linked(ours, theirs, {"max_inflight": max_inflight}):
        assert await both(ours.send_all(), theirs.send_all()) == [[], []]
        assert await within(ours.all_replies()) == [*range(COUNT)]
        assert numbers(theirs.jobs) == numbers(ours.jobs) == [*range(COUNT)]
        assert theirs.failed == []


@pytest.mark.attack(32)
@pytest.mark.parametrize("max_inflight", [2, 16])
@pytest_twisted.ensureDeferred
async def test_both_write_and_the_handlers_of_both_await_their_own_sends(max_inflight: int) -> None:
    """No more jobs without an answer than half of the credit: the other half is for the answers."""
    ours, theirs = Side(answers=True), Side(answers=True)
    async with linked(ours, theirs, {"max_inflight": max_inflight}):
        half = max_inflight // 2
        assert await both(ours.send_all(unanswered=half), theirs.send_all(unanswered=half)) == [[], []]
        assert await both(ours.all_replies(), theirs.all_replies()) == [[*range(COUNT)]] * 2
        assert numbers(theirs.jobs) == numbers(ours.jobs) == [*range(COUNT)]
        assert ours.failed == theirs.failed == []


@pytest.mark.attack(32)
@pytest.mark.parametrize("max_inflight", [1, 16])
@pytest_twisted.ensureDeferred
async def test_where_all_credit_of_both_waits_for_credit_of_the_other_the_time_to_live_ends_it(
    max_inflight: int,
) -> None:
    """Each handler holds what the other's answer needs. Nothing stands still for ever, and every sender is told."""
    ours, theirs = Side(answers=True), Side(answers=True)
    async with linked(ours, theirs, {"max_inflight": max_inflight}, {"ttl_seconds": 1}):
        of_ours, of_theirs = await both(ours.send_all(), theirs.send_all())
        failures = of_ours + of_theirs
        assert {failure.value.category for failure in failures} == {Category.EXPIRED}
        for side in (ours, theirs):
            assert set(side.failed) <= {Category.EXPIRED}
            assert side.connection.is_open
            await within(side.connection.send(HELLO, b"").as_deferred())
        told = len(ours.jobs) + len(theirs.jobs) + len(failures)
        assert told == 2 * COUNT


@pytest_twisted.ensureDeferred
async def test_a_full_buffer_is_said_at_once_and_drained_waits_for_room() -> None:
    ours, theirs = Side(), Side()
    async with linked(ours, theirs, {"send_buffer_bytes": 100_000, "max_inflight": 1}, max_payload_bytes=10_000):
        connection = ours.connection
        taken = 0
        for _ in range(3):
            deliveries: list[Deferred[None]] = []

            def fill(deliveries: list[Deferred[None]] = deliveries) -> None:
                while True:
                    deliveries.append(connection.send(JOB, bytes(10_000)).as_deferred())

            with pytest.raises(SendBufferFull) as raised:
                fill()
            assert raised.value.category == Category.SEND_BUFFER_FULL
            assert connection.buffered <= 100_000
            taken += len(deliveries)
            await within(connection.drained())
            assert connection.buffered <= 50_000
            await within(gatherResults(deliveries))
        assert len(theirs.jobs) == taken
        assert taken >= 3 * 9


@pytest_twisted.ensureDeferred
async def test_a_peer_that_never_grants_credit_is_sent_nothing_and_messages_expire_unsent(listener: Listener) -> None:
    from twisted.internet import reactor

    def play() -> bytes:
        with listener.accept(SECRET, limits=(1_000, 1, 0, 1_000)) as peer:
            assert peer.read_until_close()["category"] == "closed"
            assert peer.aside == []
            peer.send_close(through=-1)
            return peer.wait_eof()

    playing = in_thread(play)
    connection = await within(connect(reactor, listener.port, Keyring([SECRET])))
    outcomes = [connection.send(JOB, b"").as_deferred() for _ in range(3)]
    for outcome in outcomes:
        with pytest.raises(Rejected) as raised:
            await within(outcome)
        assert raised.value.category == Category.EXPIRED
    assert connection.is_open
    await within(connection.close())
    assert await playing == b""


@pytest_twisted.ensureDeferred
async def test_a_peer_that_grants_no_bytes_refuses_every_message_at_once(listener: Listener) -> None:
    from twisted.internet import reactor

    def play() -> bytes:
        with listener.accept(SECRET, limits=(1_000, 1, 10, 0)) as peer:
            peer.read_until_close()
            peer.send_close(through=-1)
            return peer.wait_eof()

    playing = in_thread(play)
    connection = await within(connect(reactor, listener.port, Keyring([SECRET])))
    with pytest.raises(EnvelopeError) as raised:
        connection.send(JOB, b"")
    assert raised.value.category == Category.PAYLOAD_TOO_LARGE
    await within(connection.close())
    assert await playing == b""


@pytest.mark.attack(6, 7)
@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_gets_its_credit_at_most_and_the_others_are_served() -> None:
    """Its receipts and answers wait; what it may still send is bounded by its credit."""

    def play() -> dict[str, Any]:
        with server.peer(receive_buffer=2_048, limits=(100_000, 30, 1_000, 10_000_000)) as peer:
            for _ in range(8):
                peer.send_envelope(JOB, bytes(50_000))
            server.assert_serves()
            peer.send_envelope(JOB, b"beyond")
            server.assert_serves()
            return peer.read_until_close()

    async with serving({"max_inflight": 8}, max_payload_bytes=50_000) as server:
        server.handler = lambda envelope, _: Deferred() if envelope.payload_bytes else None
        close = await in_thread(play)
        assert (close["category"], close["through"]) == ("credit_exceeded", 7)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener
