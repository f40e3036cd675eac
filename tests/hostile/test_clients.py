"""A real client is the victim: what it dials, what it is told, what it does then. Attacks 7, 13, 15, 27, 28."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList

from ipc_twisted import (
    Category,
    DeliveryUnknown,
    ExecutionIPCClientService,
    Keyring,
    NotConnected,
    SecureIPCProtocol,
    SendBufferFull,
    connect,
)
from ipc_twisted.client_service import RETRY_MAX_SECONDS, _retry_delay
from tests import wire_peer as wire
from tests.hostile.victim import KIND
from tests.memory_link import SECRET, config
from tests.raw_channel import PeerClosed
from tests.raw_peer import HOST, Listener
from tests.serving import in_thread, serving, within


@pytest.mark.attack(15)
@pytest_twisted.ensureDeferred
async def test_a_dead_port_is_never_taken_for_a_server_however_often_it_is_dialled() -> None:
    """The kernel joins a socket to itself where it picks, as the source, the very port that is dialled."""
    from twisted.internet import reactor

    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    for _ in range(200):
        with pytest.raises(NotConnected):
            await within(connect(reactor, port, Keyring([SECRET])))


@pytest.mark.attack(15)
def test_a_client_comes_back_later_and_later_and_never_at_the_same_time_as_all_others() -> None:
    delays = [[_retry_delay(attempt) for attempt in range(40)] for _ in range(50)]
    assert max(max(one) for one in delays) <= RETRY_MAX_SECONDS
    assert min(one[20] for one in delays) >= 1.0
    for attempt in range(40):
        assert len({one[attempt] for one in delays}) == len(delays)


@pytest.mark.attack(27, 28)
@pytest_twisted.ensureDeferred
async def test_a_client_service_comes_back_by_itself_after_the_servers_clock_was_set_back() -> None:
    """The server begins anew with another instance; what was accepted before is not handed over again."""
    from twisted.internet import reactor

    skew = 0.0

    def fill() -> list[str]:
        """Until the guard has forgotten something, so that a clock that goes back is noticed."""
        now = int(time.time())
        with server.peer() as peer:
            return [
                peer.receipt_for(peer.send_envelope(KIND, nonce=f"{age}-{n}", ts=now - age))
                for age in range(20, 4, -1)
                for n in range(5)
            ]

    def notice() -> None:
        """The clock is read when something comes in."""
        with suppress(PeerClosed), server.peer() as peer:
            peer.read_until_close()

    async with serving(auth={"nonce_cache_size": 40}, wall=lambda: time.time() + skew) as server:
        service = ExecutionIPCClientService(reactor, server.port, Keyring([SECRET]))
        service.startService()
        try:
            await within(service.send(KIND, b"first").as_deferred())
            assert set(await in_thread(fill)) == {"accepted"}
            instance = server.factory.guard.instance
            connection = await within(service.whenConnected())
            skew = -3_600.0
            await in_thread(notice)
            assert await within(connection.wait_closed()) == Category.CLOCK_STEPPED
            skew = 0.0
            await within(service.send(KIND, b"second").as_deferred())
            assert server.factory.guard.instance != instance
            assert server.factory.counters["ended", "clock_stepped"] >= 1
        finally:
            await within(service.stopService())
        payloads = [envelope.payload_bytes for envelope in server.received if envelope.payload_bytes]
        assert payloads == [b"first", b"second"]


@pytest.mark.attack(13)
@pytest.mark.parametrize("end", ["close", "end_writing", "abort"])
@pytest.mark.parametrize("cut", ["no receipt", "within a receipt", "within a message"])
@pytest_twisted.ensureDeferred
async def test_a_server_that_ends_without_a_close_never_makes_a_sender_believe_that_it_took_a_message(
    end: str, cut: str
) -> None:
    from twisted.internet import reactor

    def play() -> None:
        with listener.accept(SECRET) as peer:
            peer.read_envelope()
            if cut == "within a receipt":
                peer.send_raw(peer.record_frame(wire.RECEIPT, [0, [], *peer.granted])[1][:-1])
            elif cut == "within a message":
                peer.send_raw(peer.envelope_frame(KIND, bytes(1_000))[1][:500])
            getattr(peer, end)()
            if end == "end_writing":
                peer.wait_eof()

    with Listener() as listener:
        playing = in_thread(play)
        connection = await within(connect(reactor, listener.port, Keyring([SECRET])))
        outcome = connection.send(KIND, b"payload").as_deferred()
        with pytest.raises(DeliveryUnknown):
            await within(outcome)
        assert await within(connection.wait_closed()) == Category.CONNECTION_LOST
        await playing


def _fill(connection: SecureIPCProtocol, outcomes: list[Deferred[None]]) -> None:
    for _ in range(100):
        outcomes.append(connection.send(KIND, bytes(1 << 20)).as_deferred())


@pytest.mark.attack(7)
@pytest_twisted.ensureDeferred
async def test_a_server_that_never_reads_makes_a_client_hold_no_more_than_its_bound() -> None:
    """It is told so, and the connection is given up; nothing is taken for accepted."""
    from twisted.internet import reactor

    done = threading.Event()

    def play() -> None:
        with listener.accept(SECRET, limits=(1 << 20, 30, 1_000, 1 << 30)):
            done.wait(20)

    limits = {"write_stall_seconds": 0.3, "send_buffer_bytes": 40 << 20}
    with Listener() as listener:
        playing = in_thread(play)
        connection = await within(connect(reactor, listener.port, Keyring([SECRET]), config=config(limits)))
        outcomes: list[Deferred[None]] = []
        with pytest.raises(SendBufferFull):
            _fill(connection, outcomes)
        assert connection.buffered <= 40 << 20
        told = await within(DeferredList(outcomes, consumeErrors=True))
        assert {good for good, _ in told} == {False}
        assert await within(connection.wait_closed()) == Category.WRITE_STALLED
        assert connection.buffered == 0
        done.set()
        await playing
