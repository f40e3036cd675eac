"""``ipc-twisted check`` says what is wrong and what to do, and hands nothing over."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_twisted

from ipc_twisted import Category, Keyring, connection_file
from ipc_twisted import check as check_module
from ipc_twisted.check import PROBES, REFUSED, Report, check
from ipc_twisted.keys import write_new_key_file
from tests.memory_link import SECRET
from tests.raw_peer import Listener, ServerPeer
from tests.serving import serving, within
from tests.test_cli import key_file, run
from tests.twistd_child import TwistdChild


async def checked(where: Any, keyring: Any = None, service: str | None = None, seconds: float = 5.0) -> Report:
    from twisted.internet import reactor

    return await within(check(reactor, where, keyring, service, seconds))


def failed(report: Report) -> tuple[str, str]:
    """The last finding, which is the only bad one."""
    assert not report.ok
    assert [finding.ok for finding in report.findings] == [True] * (len(report.findings) - 1) + [False]
    return report.findings[-1].check, report.findings[-1].detail


@pytest_twisted.ensureDeferred
async def test_nothing_is_handed_over_or_remembered_even_where_the_kind_were_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "known")
    for kinds, category in ((["job.run"], "kind_not_allowed"), (["check-known"], "expired")):
        async with serving(allowed_kinds=kinds, auth={"ttl_seconds": 86_400}) as server:
            report = await checked(server.port, Keyring([SECRET]))
            assert report.ok
            assert [finding.check for finding in report.findings] == [
                *("key", "server", "handshake", "limits", "round trip", "clock")
            ]
            assert report.round_trip_seconds is not None
            assert 0 < report.round_trip_seconds < 5
            assert report.limits is not None
            assert report.limits["ttl_seconds"] == 86_400
            assert (server.received, server.factory.accepted, len(server.factory.guard)) == ([], 0, 0)
            assert server.counters["rejected", category] == PROBES


def test_a_link_that_is_well_is_exit_0_and_its_findings(tmp_path: Path) -> None:
    with TwistdChild() as child:
        place = ("--connection-file", str(child.connection_file))
        done = run("check", *place)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.endswith(b"\nthe link is well\n")
        done = run("check", *place, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["ok"], found["limits"]["ttl_seconds"]) == (0, True, 30)
        assert [finding["check"] for finding in found["findings"]] == [
            *("connection file", "key", "server", "handshake", "limits", "round trip", "clock")
        ]
        assert child.info["key_id"] in found["findings"][1]["detail"]
        other = tmp_path / "other.key"
        write_new_key_file(other)
        done = run("check", *place, "--key-file", str(other))
        assert done.returncode == 1
        assert b"FAIL  handshake: " in done.stdout
        assert b"The server's current key id is" in done.stdout
        assert child.records == []
        child.kill()
        done = run("check", *place)
        assert done.returncode == 1
        assert b"FAIL  server: not_connected: " in done.stdout
        assert b"stale" in done.stdout


@pytest_twisted.ensureDeferred
async def test_each_thing_that_is_wrong_is_named(tmp_path: Path) -> None:
    step, detail = failed(await checked(tmp_path / "none.json"))
    assert (step, "the server is not running" in detail) == ("connection file", True)
    step, detail = failed(await checked(1, Keyring([SECRET])))
    assert (step, "nobody listens" in detail) == ("server", True)
    step, detail = failed(await checked(1, Keyring([SECRET]), "a b"))
    assert (step, "service" in detail) == ("options", True)
    key = Path(key_file(tmp_path))
    key.chmod(0o644)
    step, detail = failed(await checked(1, str(key)))
    assert (step, "chmod 600" in detail) == ("key", True)


def with_server(act: Callable[[ServerPeer], None], tmp_path: Path) -> bytes:
    """What is printed about a raw server that holds the key."""

    def serve(listener: Listener) -> None:
        peer = listener.accept(SECRET)
        try:
            act(peer)
        finally:
            peer.close()

    with Listener() as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        done = run("check", "--port", str(listener.port), "--key-file", key_file(tmp_path), "--timeout", "1")
        thread.join()
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    return done.stdout


def test_a_server_that_takes_the_probe_or_says_something_else_or_nothing(tmp_path: Path) -> None:
    def accept(peer: ServerPeer) -> None:
        peer.read_envelope()
        peer.send_receipt(0, [])

    def stop(peer: ServerPeer) -> None:
        peer.read_envelope()
        peer.send_receipt(0, [[0, "shutting_down"]])

    def nothing(peer: ServerPeer) -> None:
        peer.read_envelope()
        peer.wait_eof()

    assert b"FAIL  round trip: malformed: the server took a message that no server takes" in with_server(
        accept, tmp_path
    )
    assert b"FAIL  round trip: shutting_down: " in with_server(stop, tmp_path)
    assert b"FAIL  round trip: delivery_unknown: no receipt in 1 s" in with_server(nothing, tmp_path)


def test_a_server_that_does_not_answer_is_stopped_or_blocked(tmp_path: Path) -> None:
    with Listener() as listener:
        done = run("check", "--port", str(listener.port), "--key-file", key_file(tmp_path), "--timeout", "0.5")
    assert done.returncode == 1
    assert b"FAIL  server: not connected in 0.5 s" in done.stdout


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_even_accept_is_stopped_or_blocked() -> None:
    with ExitStack() as sockets:
        blocked = sockets.enter_context(socket.socket())
        blocked.bind(("127.0.0.1", 0))
        blocked.listen(0)
        for _ in range(4):  # the kernel's queue is full: a further connection waits for it
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(blocked.getsockname())
        what, detail = failed(await checked(blocked.getsockname()[1], Keyring([SECRET]), seconds=0.5))
    assert (what, "stopped or blocked" in detail) == ("server", True)


def test_a_start_that_lies_ahead_is_a_clock_that_was_set_back() -> None:
    now = int(time.time())
    assert check_module._clock(None).ok
    assert check_module._clock(now).ok
    ahead = check_module._clock(now + 100)
    assert not ahead.ok
    assert "s ahead of this one" in ahead.detail


@pytest_twisted.ensureDeferred
async def test_a_connection_file_that_goes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    read = connection_file.read
    reads: list[Any] = []

    def once(path: Any) -> Any:
        reads.append(path)
        if len(reads) > 1:
            raise FileNotFoundError
        return read(path)

    with TwistdChild() as child:
        monkeypatch.setattr(connection_file, "read", once)
        step, detail = failed(await checked(child.connection_file))
    assert (step, "it is stopping" in detail) == ("connection file", True)


def test_probes_end_in_categories_of_the_envelope() -> None:
    assert set(REFUSED) == {Category.KIND_NOT_ALLOWED, Category.EXPIRED}


@pytest.mark.parametrize("arguments", [["--port", "1"], ["--timeout", "0"], ["--what"]])
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    assert run("check", *arguments).returncode == 2


# --- send --json, and the bar -----------------------------------------------------------------------------------------


def test_send_says_as_json_what_became_of_it() -> None:
    with TwistdChild(handler=None) as child:
        place = ("send", "--json", "--connection-file", str(child.connection_file))
        done = run(*place, "--kind", "job.run", "--payload", "hi", "--wait-reply")
        said = json.loads(done.stdout)
        assert (done.returncode, done.stderr, said["accepted"], said["category"]) == (0, b"", True, None)
        assert (said["reply"]["kind"], said["reply"]["payload_base64"]) == ("job.run", "aGk=")
        done = run(*place, "--kind", "other")
        said = json.loads(done.stdout)
        assert (done.returncode, said["accepted"], said["category"]) == (1, False, "kind_not_allowed")
    done = run(*place, "--kind", "job.run")
    assert (done.returncode, json.loads(done.stdout)["category"]) == (1, "connection_file_invalid")


def test_a_large_payload_shows_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    import pty
    import subprocess

    from tests.test_cli import CLI, TIMEOUT_SECONDS

    (tmp_path / "large").write_bytes(bytes(8 * 1024 * 1024))
    with TwistdChild("--handler", "ipc_twisted.handlers:log", handler=None) as child:
        place = ("send", "--connection-file", str(child.connection_file), "--kind", "job.run")
        ours, theirs = pty.openpty()
        try:
            for payload, bar in ((["--payload", "small"], False), (["--payload-file", str(tmp_path / "large")], True)):
                subprocess.run([*CLI, *place, *payload], stderr=theirs, timeout=TIMEOUT_SECONDS, check=True)
                seen = os.read(ours, 65_536)
                assert (b"] 100% of 8.0 MiB" in seen) is bar
                assert seen.endswith(b"accepted\r\n")
        finally:
            os.close(ours)
            os.close(theirs)
        assert run(*place, "--payload-file", str(tmp_path / "large")).stderr == b"accepted\n"


@pytest.mark.parametrize("command", ["demo", "keygen", "send", "check"])
def test_every_help_has_an_example(command: str) -> None:
    assert f"ipc-twisted {command}".encode() in run(command, "--help").stdout.partition(b"xample")[2]
