"""After a batch of all that takes memory, and once the time to live is over, a server is as it was before."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from ipc_twisted import SecureEnvelope, SecureIPCProtocol
from tests.child_handlers import ALIVE
from tests.hostile.cost import GARBAGE, KINDS, first, let_go
from tests.hostile.victim import KIND, LARGEST, Victim, ended_as, resident_kib, unharmed, until
from tests.memory_link import SECRET
from tests.raw_channel import PeerClosed
from tests.raw_peer import Peer
from tests.serving import Server, in_thread, serving

TTL = 1
BIG = LARGEST // 4
ROUNDS = 3
MOST = 1.1


def strangers(victim: Victim) -> None:
    """Hundreds of each kind, and as many that hold half a handshake at once."""
    m1 = first(victim)
    for act in KINDS.values():
        for _ in range(300):
            act(victim.port, m1)
    let_go()
    with ExitStack() as stack:
        for number in range(200):
            peer = stack.enter_context(Peer.open(victim.port))
            peer.send_raw((m1[:67], GARBAGE[:3], m1)[number % 3])


def large_records(victim: Victim) -> None:
    """Whole ones that are kept and echoed, and one that never ends; then a reset in the middle of it all."""
    with victim.peer(limits=(LARGEST, 30, 1_000, 1 << 30)) as peer:
        for _ in range(8):
            peer.send_envelope(KIND, os.urandom(BIG), target="echo it")
        for _ in range(8):
            peer.read_envelope()
        peer.send_raw(peer.envelope_frame(KIND, os.urandom(LARGEST))[1][:-1])
        peer.abort()


def unread_answers(victim: Victim) -> None:
    """As many echoes as its credit allows, to a peer that reads none of them."""
    with victim.peer(receive_buffer=4_096, limits=(LARGEST, 30, 1_000, 1 << 30)) as peer:
        with suppress(ConnectionError):
            for _ in range(12):
                peer.send_envelope(KIND, bytes(BIG), target="echo it")
        peer.abort()


def beyond_its_credit(victim: Victim) -> None:
    """Handlers that never end hold the messages until their connection has."""
    with victim.peer() as peer:
        with suppress(ConnectionError):
            for _ in range(40):
                peer.send_envelope(KIND, bytes(BIG), target="never")
        with suppress(PeerClosed, ConnectionError):
            ended_as(peer)


def many_nonces(victim: Victim) -> None:
    """A part of what the guard holds, each as long as a nonce may be; a full guard would refuse honest ones, too."""
    with victim.peer() as peer:
        now = int(time.time())
        for number in range(0, 4_000, 200):
            nonces = [f"{now}-{number + n:050}" for n in range(200)]
            frames = [peer.envelope_frame(KIND, nonce=nonce, ts=now, target=ALIVE)[1] for nonce in nonces]
            peer.send_raw(b"".join(frames))
            peer.receipt_for(number + 199)


def rejections_and_faults(victim: Victim) -> None:
    """Many connections that end in a fault, and many messages that are rejected."""
    for number in range(100):
        with victim.peer() as peer:
            for _ in range(20):
                peer.send_envelope("job.drop", trace_id="t" * 256, headers={"h": "x" * 1_000})
            peer.send_raw((b"\xff" * 4, peer.envelope_frame(KIND, sig=b"\1" * 32)[1])[number % 2])
            ended_as(peer)


BATCH = (strangers, large_records, unread_answers, beyond_its_credit, many_nonces, rejections_and_faults)


@pytest.mark.slow
@pytest.mark.attack(2, 5, 6, 7, 8, 10, 12, 28, 29)
def test_memory_is_within_a_tenth_of_what_it_was_once_the_time_to_live_of_a_batch_of_attacks_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C library is told to give back what it is given back: else the figure would be about its habits."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    settings = {"auth": {"ttl_seconds": TTL, "nonce_cache_size": 20_000}}
    with Victim(config=settings) as victim:
        base = resident_kib(victim.process.pid)
        if base is None:
            pytest.skip("this system does not tell the memory of another process")
        for _ in range(ROUNDS):
            with unharmed(victim):
                for attack in BATCH:
                    attack(victim)
        until(int(time.time()) + TTL + 2)
        victim.assert_unharmed()  # what is too old is forgotten when something comes in
        after = resident_kib(victim.process.pid)
        assert after is not None
        assert after <= MOST * base, f"{base} KiB before, {after} KiB behind"


def _at_every_stage(server: Server) -> list[Peer]:
    """Silent, within M1, behind M2, idle, within a record, with an answer that it has not read, with a handler that
    has not ended."""
    silent, within_m1, answered = server.open(), server.open(), server.open()
    within_m1.send_raw(within_m1.make_m1(SECRET)[:40])
    answered.send_m1(SECRET)
    answered.read_m2()
    idle, within_record, unread, unfinished = (server.peer() for _ in range(4))
    within_record.send_raw(within_record.envelope_frame(KIND, bytes(100_000))[1][:50_000])
    unread.send_envelope(KIND, b"answer me")
    unread.receipt_for(0)
    unfinished.send_envelope(KIND, b"never")
    unfinished.receipt_for(0)
    idle.receipt_for(idle.send_envelope(KIND))
    return [silent, within_m1, answered, idle, within_record, unread, unfinished]


@pytest.mark.attack(6)
@pytest.mark.parametrize("end", [Peer.abort, Peer.close])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_ended_is_gone_without_waiting_for_the_collector(
    end: Callable[[Peer], None],
) -> None:
    """Else its buffers stay for as long as that takes, and a key holder that connects anew fills others."""

    def handler(envelope: SecureEnvelope, connection: SecureIPCProtocol) -> Deferred[None] | None:
        if envelope.payload_bytes == b"answer me":
            connection.send(KIND, bytes(10_000))
        return Deferred() if envelope.payload_bytes == b"never" else None

    async with serving() as server:
        server.handler = handler
        peers = await in_thread(_at_every_stage, server)
        left = [weakref.ref(protocol) for protocol in server.factory.transports]
        assert len(left) == len(peers)
        gc.disable()
        try:
            for peer in peers:
                end(peer)
            while server.factory.transports:
                await in_thread(server.assert_serves)
            assert [protocol() for protocol in left if protocol() is not None] == []
        finally:
            gc.enable()
