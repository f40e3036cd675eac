"""Who takes up room, time and descriptors: strangers and key holders. Attacks 5 to 12 of the catalogue."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import ExitStack, suppress

import pytest

from tests.child_handlers import ALIVE
from tests.hostile.victim import KIND, LARGEST, Crowd, Victim, ended_as, resident_kib, unharmed
from tests.raw_channel import PeerClosed
from tests.raw_peer import HOST, Peer
from tests.twistd_child import TWISTD, TwistdChild

M2_BYTES = 100
NEVER_READS = 4_096
"""The receive buffer of a peer that does not read, bytes."""


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.attack(5)
def test_who_does_not_finish_the_handshake_is_gone_at_the_deadline_which_bytes_do_not_extend() -> None:
    """Silent, a byte of M1 at a time, M1 and then silence, half of the proof; honest clients get in meanwhile."""
    with Victim(limits={"handshake_timeout_seconds": 0.3}) as victim, unharmed(victim) as honest, ExitStack() as stack:
        silent, slow, answered, half = (stack.enter_context(Peer.open(victim.port)) for _ in range(4))
        for peer in (answered, half):
            peer.send_m1(victim.key)
            peer.read_m2()
        half.send_raw(half.m3_frame[:20])
        message = slow.make_m1(victim.key)
        sent = 0
        with suppress(ConnectionError):
            while sent < len(message) - 1:
                victim.assert_serves(honest)
                slow.send_raw(message[sent : sent + 1])
                sent += 1
        assert [peer.wait_eof() for peer in (silent, slow, answered, half)] == [b""] * 4
        victim.wait_for("failed: handshake_timeout", times=4)


@pytest.mark.attack(8)
def test_first_messages_without_end_from_peers_that_never_read_are_answered_once() -> None:
    with Victim() as victim, unharmed(victim):
        for _ in range(50):
            with Peer.open(victim.port, receive_buffer=NEVER_READS) as peer:
                message = peer.make_m1(victim.key)
                with suppress(ConnectionError):
                    for _ in range(200):
                        peer.send_raw(message)
                assert len(peer.wait_eof()) <= M2_BYTES


def _honest_clients(victim: TwistdChild, count: int) -> int:
    """How many of so many get in and get a receipt."""
    served = 0
    for _ in range(count):
        with suppress(PeerClosed, ConnectionError), victim.peer() as peer:
            served += peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"
    return served


class Idlers:
    """Connects that say nothing and stay, as many at once as the kernel and the server let them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._held: deque[socket.socket] = deque(maxlen=400)

    def one_more(self) -> None:
        if len(self._held) == self._held.maxlen:
            self._held.popleft().close()
        self._held.append(socket.create_connection((HOST, self._port), timeout=10))

    def close(self) -> None:
        for held in self._held:
            held.close()


@pytest.mark.attack(10)
@pytest.mark.parametrize(("per_second", "wanted"), [(200, 99), (None, 90)], ids=["200 a second", "as fast as possible"])
def test_a_flood_of_idle_connects_keeps_next_to_no_honest_client_out(per_second: int | None, wanted: int) -> None:
    with Victim() as victim, unharmed(victim):
        idlers = Idlers(victim.port)
        for _ in range(200):  # all pending places are taken from the start
            idlers.one_more()
        try:
            with Crowd(idlers.one_more, most=100_000, per_second=per_second) as crowd:
                served = _honest_clients(victim, 100)
        finally:
            idlers.close()
        assert served >= wanted
        assert crowd.times > 0


FEW = 110
FEW_DESCRIPTORS = (
    "-c",
    f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW}));"
    " from twisted.scripts.twistd import run; run()",
    *TWISTD[2:],
)


@pytest.mark.attack(11)
def test_with_more_connects_than_descriptors_it_goes_on_serving_and_never_runs_out() -> None:
    limits = {"max_connections": 16, "max_pending_handshakes": 16}
    with Victim(limits=limits, runner=FEW_DESCRIPTORS) as victim, unharmed(victim) as honest:
        idlers = Idlers(victim.port)
        try:
            for _ in range(4 * FEW):
                idlers.one_more()
            victim.assert_serves(honest)
            with Crowd(idlers.one_more, most=10_000) as crowd:
                assert _honest_clients(victim, 30) >= 27
            assert crowd.times > 0
            victim.assert_serves(honest)
        finally:
            idlers.close()
        for said in ("Too many open files", "EMFILE", "Could not accept"):
            assert said not in victim.log


@pytest.mark.attack(11)
def test_key_holders_beyond_the_limit_are_told_and_take_no_descriptor() -> None:
    with Victim(limits={"max_connections": 4}) as victim, unharmed(victim) as honest, ExitStack() as stack:
        inside = [honest, *(stack.enter_context(victim.peer()) for _ in range(3))]
        for peer in inside:
            assert peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"
        for _ in range(100):
            with victim.peer() as peer:
                assert ended_as(peer) == "too_many_connections"
        for peer in inside:
            assert peer.receipt_for(peer.send_envelope(KIND, target=ALIVE)) == "accepted"


@pytest.mark.attack(12)
@pytest.mark.slow
def test_ten_thousand_connects_and_resets_leave_nothing_behind() -> None:
    """Most of them at once, every tenth within M1, every hundredth behind the answer."""
    with Victim() as victim, unharmed(victim):
        before = resident_kib(victim.process.pid)
        for number in range(10_000):
            peer = Peer.open(victim.port)
            if number % 10 == 0:
                peer.send_raw(peer.make_m1(victim.key)[: 68 if number % 100 == 0 else 30])
            if number % 100 == 0:
                peer.read_m2()
            peer.abort()
        after = resident_kib(victim.process.pid)
        if before is not None and after is not None:
            assert after <= 1.1 * before


# --- key holders ------------------------------------------------------------------------------------------------------


@pytest.mark.attack(6)
def test_a_record_that_never_ends_is_timed_out_and_bytes_do_not_extend_it() -> None:
    with Victim(limits={"frame_timeout_seconds": 0.3}) as victim, unharmed(victim) as honest, victim.peer() as peer:
        _, frame = peer.envelope_frame(KIND, bytes(LARGEST))
        sent = 0
        with suppress(ConnectionError):
            while sent < len(frame) - 1 and "ended: frame_timeout" not in victim.log:
                victim.assert_serves(honest)
                peer.send_raw(frame[sent : sent + 1])
                sent += 1
        assert ended_as(peer) == "frame_timeout"
        victim.wait_for("ended: frame_timeout")


@pytest.mark.attack(6)
@pytest.mark.parametrize("limit", ["messages", "bytes"])
def test_who_writes_beyond_its_credit_is_ended_and_never_holds_more_than_that(limit: str) -> None:
    """Its handlers never end, so nothing comes back."""
    credit = 8 * 1024 * 1024
    payload = 10 if limit == "messages" else LARGEST // 2
    with Victim(limits={"max_inflight": 50, "max_inflight_bytes": credit}) as victim, unharmed(victim):
        before = resident_kib(victim.process.pid)
        with victim.peer() as peer:
            sent = 0
            with suppress(ConnectionError):
                while sent < 200:
                    peer.send_envelope(KIND, bytes(payload), target="never")
                    sent += 1
            assert ended_as(peer) == "credit_exceeded"
            assert peer.through + 1 == (50 if limit == "messages" else credit // (payload + 150))
            after = resident_kib(victim.process.pid)
            if before is not None and after is not None:
                assert after - before <= 2 * credit // 1024
        assert sent > peer.through


@pytest.mark.attack(7)
def test_a_peer_that_never_reads_stalls_only_itself_and_is_cut_off() -> None:
    limits = {"write_stall_seconds": 0.5, "send_buffer_bytes": 8 * 1024 * 1024}
    with Victim(limits=limits) as victim, unharmed(victim) as honest:
        with victim.peer(receive_buffer=NEVER_READS, limits=(LARGEST, 30, 1_000, 1 << 30)) as peer:
            with suppress(ConnectionError):
                for _ in range(12):  # each is echoed, if there is room
                    peer.send_envelope(KIND, bytes(LARGEST // 4), target="echo it")
            victim.assert_serves(honest)
            victim.wait_for("ended: write_stalled")
            with suppress(ConnectionError):
                peer.wait_eof()
        assert "Traceback" not in victim.log


@pytest.mark.attack(9)
@pytest.mark.parametrize("stage", ["a stranger", "in the middle of a record", "unread answers"])
def test_a_shutdown_does_not_wait_for_who_does_not_read(stage: str) -> None:
    """It ends within the drain limit: were it bound to the peer, it would not end at all."""
    limits = {"drain_seconds": 1, "write_stall_seconds": 3_600, "frame_timeout_seconds": 3_600}
    with Victim(limits=limits) as victim, ExitStack() as stack:
        if stage == "a stranger":
            stack.enter_context(Peer.open(victim.port)).send_raw(b"\0")
        else:
            peer = stack.enter_context(victim.peer(receive_buffer=NEVER_READS, limits=(LARGEST, 30, 1_000, 1 << 30)))
            if stage == "unread answers":
                for _ in range(4):
                    peer.send_envelope(KIND, bytes(LARGEST // 2), target="echo it")
            else:
                peer.send_raw(peer.envelope_frame(KIND, bytes(1_000))[1][:-1])
        victim.assert_serves()
        ended = victim.terminate()
        assert "Server Shut Down." in ended.output
        assert "Traceback" not in ended.output
