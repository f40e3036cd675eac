"""``ipc-twisted`` from outside: real processes, exit codes, what is printed where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.memory_link import SECRET
from tests.raw_peer import Listener, ServerPeer

CLI = [sys.executable, "-m", "ipc_twisted.cli"]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=", "ipc"]
TIMEOUT_SECONDS = 60


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CLI, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_SECONDS, check=False, cwd=cwd
    )


@pytest.fixture(scope="module")
def connection_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ``twistd ipc`` as it stands, that echoes."""
    folder = tmp_path_factory.mktemp("cli")
    folder.chmod(0o700)
    file = folder / "link.json"
    child = subprocess.Popen(
        [*TWISTD, "--connection-file", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if b"listening on" in line:
                break
        else:
            pytest.fail("twistd ipc did not start")
        while not file.exists():  # announced in the log right before it is written
            assert child.poll() is None
        yield file
    finally:
        child.terminate()
        child.communicate(timeout=TIMEOUT_SECONDS)


def test_the_payload_of_the_reply_is_all_that_goes_to_standard_output(connection_file: Path) -> None:
    done = run(
        "send", "--connection-file", str(connection_file), "--kind", "job.run", "--payload", "grüß", "--wait-reply"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "grüß".encode(), b"accepted\n")


def test_a_payload_of_any_bytes_comes_from_a_file_or_standard_input(connection_file: Path, tmp_path: Path) -> None:
    payload = bytes(range(256)) * 1000
    (tmp_path / "payload").write_bytes(payload)
    for source, stdin in ((str(tmp_path / "payload"), b""), ("-", payload)):
        done = run(
            *("send", "--connection-file", str(connection_file), "--kind", "job.run"),
            *("--payload-file", source, "--wait-reply"),
            stdin=stdin,
        )
        assert (done.returncode, done.stdout) == (0, payload)


def test_a_rejected_message_is_exit_1_and_its_category(connection_file: Path) -> None:
    done = run("send", "--connection-file", str(connection_file), "--kind", "job.drop")
    assert done.returncode == 1
    assert done.stderr.startswith(b"ipc-twisted send: kind_not_allowed: ")


def test_a_reply_of_another_kind_is_named(connection_file: Path) -> None:
    done = run(
        *("send", "--connection-file", str(connection_file), "--kind", "job.run"),
        *("--wait-reply", "--reply-kind", "job.done", "--timeout", "0.5"),
    )
    assert done.returncode == 1
    assert b"kind_not_allowed kind='job.run'" in done.stderr
    assert b"the message was accepted, but no reply of kind 'job.done' came in 0.5 s" in done.stderr


def test_no_reply_is_no_category(connection_file: Path) -> None:
    done = run(
        *("send", "--connection-file", str(connection_file), "--kind", "job.run", "--json"),
        *("--wait-reply", "--reply-kind", "job.done", "--timeout", "0.5"),
    )
    said = json.loads(done.stdout)
    assert (done.returncode, said["accepted"], said["category"], said["reply"]) == (1, True, None, None)
    assert said["message"].startswith("the message was accepted, but no reply")


def key_file(folder: Path) -> str:
    path = folder / "key"
    path.touch(0o600)
    path.write_text(SECRET.hex())
    return str(path)


def test_a_server_that_says_nothing_is_told_apart_from_a_message_without_an_outcome(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    options = ("--key-file", key, "--kind", "job.run", "--timeout", "0.5")
    with Listener() as listener:
        done = run("send", "--port", str(listener.port), *options)
        assert done.returncode == 1
        assert b"not connected in 0.5 s: nothing was sent" in done.stderr
        listener.accept_raw().close()
        peers: list[ServerPeer] = []
        thread = Thread(target=lambda: peers.append(listener.accept(SECRET)))
        thread.start()
        done = run("send", "--port", str(listener.port), *options)
        thread.join()
        peers[0].close()
    assert done.returncode == 1
    assert b"delivery_unknown: no outcome in 0.5 s; the message may have been handed over" in done.stderr


def test_a_reply_kind_alone_waits_for_a_reply(connection_file: Path) -> None:
    done = run(
        *("send", "--connection-file", str(connection_file), "--kind", "job.run", "--payload", "hello"),
        *("--reply-kind", "job.run"),
    )
    assert (done.returncode, done.stdout) == (0, b"hello")


def test_it_says_which_release_it_is() -> None:
    assert re.fullmatch(rb"ipc_twisted \d+\.\d+\.\d+\n", run("--version").stdout)


def test_a_payload_too_large_is_refused_before_anything_is_sent(connection_file: Path) -> None:
    done = run(
        *("send", "--connection-file", str(connection_file), "--kind", "job.run", "--payload-file", "-"),
        stdin=bytes(16 * 1024 * 1024 + 1),
    )
    assert done.returncode == 1
    assert b"payload_too_large" in done.stderr
    assert b"16777216" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["send", "--kind", "job.run", "--timeout", "nan"], b"a number of seconds above 0"),
        (["send", "--kind", "job.run", "--timeout", "soon"], b"a number of seconds above 0, not 'soon'"),
        (["send", "--kind", "job.run", "--timeout", "-1"], b"a number of seconds above 0"),
        (["send", "--kind", "job.run", "--timeout", "soon"], b"--timeout"),
        (["send", "--port", "40000", "--kind", "job.run"], b"--port needs --key-file"),
        (["send", "--port", "0", "--key-file", "k", "--kind", "job.run"], b"1 to 65535"),
        (["send", "--port", "\u0664\u0660", "--key-file", "k", "--kind", "job.run"], b"1 to 65535"),
        (["send", "--connection-file", "f"], b"--kind"),
        (["send", "--connection-file", "f", "--port", "1", "--kind", "k"], b"not allowed with"),
        (
            ["send", "--connection-file", "f", "--kind", "k", "--payload", "a", "--payload-file", "b"],
            b"not allowed with",
        ),
        (["send", "--connection-file", "f", "--kind", "k", "--payload-file", "/no/such/file"], b"/no/such/file"),
        ([], b"required"),
        (["launch"], b"invalid choice"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what(arguments: list[str], says: bytes) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert b"Traceback" not in done.stderr


def test_errors_say_which_of_the_possible_causes_it_can_be(connection_file: Path, tmp_path: Path) -> None:
    key = tmp_path / "other.key"
    assert run("keygen", str(key)).returncode == 0
    link = str(connection_file)
    told = {
        "wrong key": run("send", "--connection-file", link, "--key-file", str(key), "--kind", "job.run").stderr,
        "wrong service": run("send", "--connection-file", link, "--service", "other", "--kind", "job.run").stderr,
        "no server": run("send", "--connection-file", str(tmp_path / "none"), "--kind", "job.run").stderr,
        "nobody": run("send", "--port", "1", "--key-file", str(key), "--kind", "job.run").stderr,
    }
    assert b"The server's current key id is" in told["wrong key"]
    assert b"The connection file is for service 'execution_ipc'" in told["wrong service"]
    assert b"there is no connection file" in told["no server"]
    assert b"nobody listens on 127.0.0.1:1" in told["nobody"]
    assert not any(b"Traceback" in text for text in told.values())


def test_keygen_writes_a_private_file_once(tmp_path: Path) -> None:
    file = tmp_path / "link.key"
    old = os.umask(0)
    try:
        assert run("keygen", str(file)).returncode == 0
    finally:
        os.umask(old)
    content = file.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", content)
    assert file.stat().st_mode & 0o777 == 0o600
    again = run("keygen", str(file))
    assert again.returncode == 1
    assert b"is not overwritten" in again.stderr
    assert file.read_text() == content


def test_keygen_without_a_file_prints_a_line_for_one() -> None:
    lines = {run("keygen").stdout for _ in range(2)}
    assert len(lines) == 2
    assert all(re.fullmatch(rb"[0-9a-f]{64}\n", line) for line in lines)


def test_every_command_has_help_that_names_its_options() -> None:
    for command, option in (("demo", b"twistd ipc"), ("keygen", b"FILE"), ("send", b"--reply-kind")):
        done = run(command, "--help")
        assert done.returncode == 0
        assert option in done.stdout


def test_without_a_place_it_is_where_twistd_writes_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "send", "--kind", "job.run"],
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert f"there is no connection file '{tmp_path}/ipc_twisted/execution_ipc.json'".encode() in done.stderr
