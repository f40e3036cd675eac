"""``statistics()`` says what happened, to the message."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ipc_twisted import ExecutionIPCService, Keyring, NotConnected, Rejected, Statistics
from ipc_twisted.statistics import statistics
from tests.memory_link import SECRET, MemoryServer, config
from tests.raw_channel import DEFAULT_LIMITS
from tests.serving import serving, within


def counted(server: MemoryServer) -> Statistics:
    return statistics(server.factory)


def test_nothing_has_happened_yet() -> None:
    server = MemoryServer()
    none = {"rejected", "sent", "unclaimed", "handshakes", "ended"}
    values = {name: getattr(counted(server), name) for name in Statistics.__struct_fields__}
    assert {name for name, value in values.items() if value == {}} == none
    assert {name: value for name, value in values.items() if value not in ({}, 0)} == {"guard_window_seconds": 30}


def test_envelopes_handlers_and_the_guard_are_counted(logged_failures: list[Failure]) -> None:
    running: list[Deferred[None]] = []

    def handler(*_: object) -> Deferred[None] | None:
        running.append(Deferred())
        return running[-1] if len(running) < 3 else None

    server = MemoryServer(handler=handler)
    link = server.connect()
    for _ in range(4):
        link.send(b"x")
    link.peer.send_envelope("other", b"", ts=int(server.wall()))
    now = counted(server)
    assert (now.accepted, now.rejected, now.in_flight, now.guard_entries) == (4, {"kind_not_allowed": 1}, 2, 4)
    running[0].callback(None)
    running[1].errback(RuntimeError("wrong"))
    now = counted(server)
    assert (now.in_flight, now.handler_failures) == (0, 1)
    assert [failure.type for failure in logged_failures] == [RuntimeError]
    logged_failures.clear()


def test_connections_strangers_and_credit_are_those_of_now() -> None:
    server = MemoryServer()
    link = server.connect()
    server.accept()
    now = counted(server)
    assert (now.connections, now.pending, now.handshakes) == (1, 1, {"authenticated": 1})
    assert (now.credit_messages, now.credit_bytes) == DEFAULT_LIMITS[2:]
    link.protocol.send("job.run", b"x" * 1_000)
    assert (counted(server).unsettled, counted(server).buffered) == (1, link.protocol.buffered)
    server.turn()
    after = counted(server)
    assert after.credit_messages == DEFAULT_LIMITS[2] - 1
    assert 1_000 < DEFAULT_LIMITS[3] - after.credit_bytes < 1_200
    link.peer.send_receipt(0, [[0, "expired"]])
    link.peer.send_close(through=0)
    server.turn()
    ended = counted(server)
    assert (ended.sent, ended.unclaimed, ended.ended) == ({"expired": 1}, {"expired": 1}, {"closed": 1})
    assert (ended.connections, ended.unsettled, ended.credit_messages) == (0, 0, 0)


def test_a_clock_that_went_back_shrinks_the_window() -> None:
    server = MemoryServer()
    link = server.connect()
    for seconds in (0, 40, 1):
        server.turn(seconds)
        link.send()
    server.skew = -15
    assert 0 < counted(server).guard_window_seconds < 30


@pytest_twisted.ensureDeferred
async def test_both_sides_count_the_same_bytes_and_messages() -> None:
    async with serving() as server:
        connection = await server.connect()
        for number in range(5):
            await within(connection.send("job.run", b"x" * number).as_deferred())
        with pytest.raises(Rejected):
            await within(connection.send("other", b"").as_deferred())
        ours, theirs = statistics(server.factory), statistics(connection._shared)  # type: ignore[arg-type]
        assert ours.bytes_received == theirs.bytes_sent > 0
        assert ours.bytes_sent == theirs.bytes_received > 0
        assert (theirs.sent, ours.accepted) == ({"accepted": 5, "kind_not_allowed": 1}, 5)
        await within(connection.close())


@pytest_twisted.ensureDeferred
async def test_a_service_tells_its_own_and_only_once_it_was_started() -> None:
    from twisted.internet import reactor

    service = ExecutionIPCService(reactor, config(), Keyring([SECRET]), lambda *_: None)
    with pytest.raises(NotConnected, match="was not started"):
        service.statistics()
    service.startService()
    assert service.statistics().accepted == 0
    await within(service.stopService())
    assert service.statistics().connections == 0
