"""What happens to processes: files that are traps, forks, signals, clocks, switches of Python. Attacks 35 to 41."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import wire_peer as wire
from tests.child_handlers import ALIVE
from tests.hostile.forking_client import MESSAGES
from tests.hostile.victim import KIND, LARGEST, Victim, ended_as, unharmed, until
from tests.raw_channel import PeerClosed
from tests.raw_peer import Peer
from tests.twistd_child import ROOT, TwistdChild, run_to_its_end


@pytest.mark.attack(35)
@pytest.mark.parametrize("trap", ["a FIFO", "/dev/zero", "a folder"])
def test_a_server_whose_key_file_is_a_trap_ends_at_once_and_says_so(tmp_path: Path, trap: str) -> None:
    """Reading any of them would never end."""
    path = Path("/dev/zero") if trap == "/dev/zero" else tmp_path / "key"
    if trap == "a FIFO":
        os.mkfifo(path, 0o600)
    elif trap == "a folder":
        path.mkdir(0o700)
    code, output = run_to_its_end("--key-file", str(path))
    assert code == 1
    assert "key_file_insecure" in output
    assert "not a regular file" in output
    assert "Traceback" not in output


@pytest.mark.attack(38)
def test_a_fork_with_an_open_connection_says_nothing_and_its_parent_goes_on() -> None:
    with Victim() as victim, unharmed(victim):
        done = subprocess.run(
            [sys.executable, "-m", "tests.hostile.forking_client", str(victim.connection_file)],
            cwd=ROOT,
            env={**os.environ, "XDG_RUNTIME_DIR": str(victim.folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.splitlines() == ["child: not_connected", "child said 0", "parent: accepted True"]
        payloads = [bytes.fromhex(record["payload_bytes"]) for record in victim.records]
        assert payloads == [b"%s %d" % (word, n) for word in (b"before", b"queued", b"behind") for n in range(MESSAGES)]
        nonces = {record["nonce"] for record in victim.records}
        assert len(nonces) == 3 * MESSAGES


@pytest.mark.attack(39)
def test_at_sigterm_all_that_was_accepted_has_been_handed_over_and_every_sender_is_told() -> None:
    """Two senders in the middle of a stream of messages each; what is told as accepted is exactly what was recorded."""
    with Victim(limits={"drain_seconds": 5}) as victim:
        accepted = set()
        with victim.peer() as one, victim.peer() as other:
            for number in range(100):
                for name, peer in (("one", one), ("other", other)):
                    peer.send_envelope(KIND, f"{name} {number}".encode(), target="keep")
                if number == 50:
                    victim.signal(signal.SIGTERM)
            for name, peer in (("one", one), ("other", other)):
                close = peer.read_until_close()
                assert close["category"] == "shutting_down"
                accepted |= {f"{name} {n}" for n in range(peer.through + 1) if n not in peer.rejected}
                assert set(peer.rejected.values()) <= {"shutting_down"}
                peer.send_close()
                assert peer.wait_eof() == b""
        ended = victim.wait()
        assert {bytes.fromhex(record["payload_bytes"]).decode() for record in victim.records} == accepted
        assert len(accepted) >= 2
        assert "Traceback" not in ended.output


@pytest.mark.attack(39)
def test_at_sigkill_every_peer_sees_the_end_of_its_stream() -> None:
    with Victim() as victim, victim.peer() as one, victim.peer() as other, Peer.open(victim.port) as stranger:
        one.send_envelope(KIND, target="never")
        victim.kill()
        for peer in (one, other, stranger):
            peer.wait_eof()
        with pytest.raises(PeerClosed):
            one.receipt_for(1)


@pytest.mark.attack(40)
@pytest.mark.slow
def test_a_server_that_was_stopped_for_longer_than_the_time_to_live_rejects_what_is_old_and_kills_no_healthy_peer() -> (
    None
):
    """Every deadline of its is shorter than the pause, and fires before what its peers have said meanwhile is read."""
    limits = {
        "handshake_timeout_seconds": 1,
        "frame_timeout_seconds": 1,
        "write_stall_seconds": 1,
        "receipt_timeout_seconds": 1,
    }
    with (
        Victim(config={"auth": {"ttl_seconds": 1}, "limits": limits}) as victim,
        unharmed(victim) as honest,
        victim.peer() as peer,
        Peer.open(victim.port) as pending,
    ):
        pending.send_m1(victim.key)
        pending.read_m2()
        peer.send_envelope(KIND, b"answer me")
        assert peer.read_envelope()["payload"] == b"answer me"  # its receipt is owed
        _, begun = peer.envelope_frame(KIND, b"begun before, ended behind", ts=int(time.time()) + 3, target=ALIVE)
        peer.send_raw(begun[:60])
        victim.assert_serves(honest)
        victim.signal(signal.SIGSTOP)
        try:
            pending.send_raw(pending.m3_frame)
            old = peer.envelope_frame(KIND, b"old", ts=int(time.time()), target="keep")[1]
            until(int(time.time()) + 3)
            new = peer.envelope_frame(KIND, b"new", ts=int(time.time()), target="keep")[1]
            peer.send_raw(begun[60:] + old + new)
            peer.send_receipt()
        finally:
            victim.signal(signal.SIGCONT)
        assert [peer.receipt_for(seq) for seq in (1, 2, 3)] == ["accepted", "expired", "accepted"]
        assert pending.receipt_for(pending.send_envelope(KIND, target=ALIVE)) == "accepted"
        assert [bytes.fromhex(record["payload_bytes"]) for record in victim.records] == [b"answer me", b"new"]
        assert "timeout" not in victim.log
        assert "write_stalled" not in victim.log


SAID: dict[str, Callable[[Peer], bytes]] = {
    "length": lambda _: b"\xff" * 4,
    "payload": lambda _: (43 + LARGEST + 1).to_bytes(4, "big") + bytes(43),
    "short": lambda _: bytes(4),
    "no signature": lambda peer: peer.envelope_frame(KIND, sig=bytes(32))[1],
    "wrong signature": lambda peer: peer.envelope_frame(KIND, sig=b"\1" * 32)[1],
    "gap": lambda peer: peer.envelope_frame(KIND, seq=1)[1],
    "twice": lambda peer: 2 * peer.envelope_frame(KIND, target=ALIVE)[1],
    "malformed": lambda peer: peer.envelope_frame(KIND, header=b"\xc1")[1],
    "lying receipt": lambda peer: peer.record_frame(wire.RECEIPT, [5, [], 1, 1])[1],
}


def _every_check(child: TwistdChild) -> dict[str, str]:
    """One record for each of the checks of the chain, and what it ends in."""
    found = {}
    for name, make in SAID.items():
        with child.peer() as peer:
            peer.send_raw(make(peer))
            found[name] = ended_as(peer)
    now = int(time.time())
    with child.peer() as peer:
        for name, kind, ts, nonce in (
            ("kind", "job.drop", now, "1"),
            ("old", KIND, now - 60, "2"),
            ("early", KIND, now + 60, "3"),
            ("once", KIND, now, "4"),
            ("again", KIND, now, "4"),
        ):
            found[name] = peer.receipt_for(peer.send_envelope(kind, ts=ts, nonce=nonce, target=ALIVE))
    with Peer.open(child.port) as peer:
        peer.send_m1(bytes(range(32)))
        found["another key"] = peer.wait_eof().hex()
    with Peer.open(child.port) as peer:
        peer.send_m1(child.key)
        peer.read_m2()
        peer.send_raw(wire.prefixed(wire.m3(bytes(32))))
        found["no proof"] = peer.wait_eof().hex()
    return found


EVERY_CHECK = {
    "length": "payload_too_large",
    "payload": "payload_too_large",
    "short": "malformed",
    "no signature": "signature_missing",
    "wrong signature": "signature_invalid",
    "gap": "sequence_gap",
    "twice": "replayed",
    "malformed": "malformed",
    "lying receipt": "malformed",
    "kind": "kind_not_allowed",
    "old": "expired",
    "early": "not_yet_valid",
    "once": "accepted",
    "again": "replayed",
    "another key": "",
    "no proof": "",
}


@pytest.mark.attack(41)
@pytest.mark.parametrize("python", [(), ("-O",), ("-OO",), ("-X", "dev")], ids=" ".join)
def test_no_switch_of_python_takes_a_check_out(monkeypatch: pytest.MonkeyPatch, python: tuple[str, ...]) -> None:
    """With the same hashes every time, too."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with Victim(python=python) as victim, unharmed(victim):
        assert _every_check(victim) == EVERY_CHECK
