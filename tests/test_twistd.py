"""``twistd ipc`` from outside: what it is told wrongly, where it says it listens, how it ends, what clients are told.

Everything that an option can be wrong in is tried on :class:`ipc_twisted.tap.Options`, and one of each kind on a real
process too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.python.usage import UsageError

from ipc_twisted import (
    Category,
    ConfigError,
    ConnectionFileError,
    ExecutionIPCConfig,
    HandshakeError,
    KeyFileError,
    Keyring,
    NotConnected,
    Rejected,
    connect,
)
from ipc_twisted.handlers import echo
from ipc_twisted.tap import Options
from tests.child_handlers import ALIVE, RAISED
from tests.log_lines import Lines
from tests.memory_link import SECRET
from tests.raw_peer import HOST, Peer
from tests.serving import in_thread, within
from tests.twistd_child import TWIST, TwistdChild, assert_serves, run_to_its_end

KIND = "job.run"
SECTION = "runtime.platform.execution_ipc"


def parsed(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as raised:
        parsed(*arguments)
    return str(raised.value)


# --- options: where it listens (attack 34) ----------------------------------------------------------------------------

ELSEWHERE = [
    "localhost",
    "127.1",
    "127.0.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "127.000.000.001",
    "１２７.０.０.１",  # full-width digits
    "127。0。0。1",  # ideographic full stops
    "::1",
    "[::1]",
    "::ffff:127.0.0.1",
    "127.0.0.2",
    "0.0.0.0",
    "0",
    "",
    " ",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1\n",
    "127.0.0.1\0",
    "127.0.0.1.",
    "127.0.0.1:80",
    "127.0.0.1%lo",
    "host.docker.internal",
]

DESCRIPTIONS = [
    *(f"tcp:0:interface={host}" for host in ELSEWHERE if host != "127.0.0.1 "),
    "",
    "0",
    "40001",
    "tcp",
    "tcp:",
    "tcp:0",
    "tcp:0:interface=127.0.0.1 ",
    " tcp:0:interface=127.0.0.1",
    "tcp:0:interface=127.0.0.1\n",
    "tcp:0:interface=127.0.0.1:interface=0.0.0.0",
    "tcp:0:interface=0.0.0.0:interface=127.0.0.1",
    "tcp:0:interface=127.0.0.1:backlog=1000",
    "tcp:interface=127.0.0.1:port=0",
    "tcp:port=0:interface=127.0.0.1",
    r"tcp:0:interface=127.0.0.1\:80",
    r"tcp:0:interface=127\.0.0.1",
    "tcp:0:interface=127x0x0x1",
    "TCP:0:interface=127.0.0.1",
    "tcp4:0:interface=127.0.0.1",
    "tcp6:0:interface=::1",
    "ssl:0:interface=127.0.0.1",
    "unix:/tmp/socket",
    "systemd:domain=INET:index=0",
    "fd:3",
    "tcp:-1:interface=127.0.0.1",
    "tcp:65536:interface=127.0.0.1",
    "tcp:99999:interface=127.0.0.1",
    "tcp:00:interface=127.0.0.1",
    "tcp:080:interface=127.0.0.1",
    "tcp:+80:interface=127.0.0.1",
    "tcp:8_0:interface=127.0.0.1",
    "tcp:٣:interface=127.0.0.1",
    "tcp:８０:interface=127.0.0.1",
    "tcp:http:interface=127.0.0.1",
    "tcp:80.0:interface=127.0.0.1",
    "tcp: 80:interface=127.0.0.1",
]


@pytest.mark.attack(34)
@pytest.mark.parametrize("description", DESCRIPTIONS, ids=ascii)
def test_an_endpoint_in_any_other_form_is_refused(description: str) -> None:
    said = usage_error("--listen", description)
    assert said.startswith("--listen: bind_forbidden: the endpoint must be tcp:PORT:interface=127.0.0.1")


@pytest.mark.parametrize("port", [0, 1, 80, 40_001, 65_535])
def test_the_one_form_is_accepted_and_goes_before_the_configuration(tmp_path: Path, port: int) -> None:
    path = tmp_path / "runtime.json"
    path.write_text('{"allowed_kinds": ["a"], "bind_port": 4711}')
    assert parsed("--config", str(path)).config.bind_port == 4711
    options = parsed("--config", str(path), "--listen", f"tcp:{port}:interface=127.0.0.1")
    assert options.config.bind_port == port
    assert options.config.endpoint == f"tcp:{port}:interface=127.0.0.1"


@pytest.mark.attack(34)
@pytest.mark.parametrize("host", [*ELSEWHERE, b"127.0.0.1", 2130706433, ["127.0.0.1"], None], ids=ascii)
def test_a_bind_host_in_any_other_form_is_refused(host: object) -> None:
    with pytest.raises(ConfigError) as raised:
        ExecutionIPCConfig.from_mapping({"allowed_kinds": ["a"], "bind_host": host})
    (problem,) = raised.value.problems
    assert problem.startswith(f"{SECTION}.bind_host: bind_forbidden: must be exactly '127.0.0.1'")


# --- options: configuration -------------------------------------------------------------------------------------------

WRONG = """
[runtime.platform.execution_ipc]
transport = "udp"
bind_host = "0.0.0.0"
bind_port = 65536
service = "a b"
allowed_kinds = []
max_payload_bytes = 0
colour = "blue"

[runtime.platform.execution_ipc.auth]
mode = "none"
kdf = "none"
secret_mode = "plain"
key_file = 7
ttl_seconds = 1.5
nonce_cache_size = true

[runtime.platform.execution_ipc.limits]
handshake_timeout_seconds = 0
frame_timeout_seconds = -1
max_pending_handshakes = "many"
max_connections = 0
max_inflight = 4294967296
max_inflight_bytes = 0
send_buffer_bytes = 0
write_stall_seconds = nan
receipt_timeout_seconds = inf
drain_seconds = "10"
speed = "fast"
"""
WRONG_KEYS = [
    "transport",
    "bind_host: bind_forbidden",
    "bind_port",
    "service",
    "allowed_kinds",
    "max_payload_bytes",
    "colour: unknown key",
    "auth.mode",
    "auth.kdf",
    "auth.secret_mode",
    "auth.key_file",
    "auth.ttl_seconds",
    "auth.nonce_cache_size",
    "limits.handshake_timeout_seconds",
    "limits.frame_timeout_seconds",
    "limits.max_pending_handshakes",
    "limits.max_connections",
    "limits.max_inflight",
    "limits.max_inflight_bytes",
    "limits.send_buffer_bytes",
    "limits.write_stall_seconds",
    "limits.receipt_timeout_seconds",
    "limits.drain_seconds",
    "limits.speed: unknown key",
]


def assert_names_every_mistake(said: str) -> None:
    lines = said.splitlines()
    for key in WRONG_KEYS:
        assert [line for line in lines if line.strip().startswith(f"{SECTION}.{key}")], (key, said)
    assert sum(line.strip().startswith(SECTION) for line in lines) == len(WRONG_KEYS)


def test_every_mistake_of_a_configuration_file_is_named_at_once_with_its_full_path(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text(WRONG)
    assert_names_every_mistake(usage_error("--config", str(path)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("runtime.toml", b"[runtime", "runtime.toml"),
        ("runtime.toml", b"\xff\xfe", "runtime.toml"),
        ("runtime.toml", b"", "allowed_kinds: is missing"),
        ("runtime.toml", b"[runtime]\n", "runtime.platform: is missing"),
        ("runtime.toml", b"runtime = 7\n", "runtime.platform: is missing"),
        ("runtime.json", b"{", "runtime.json"),
        ("runtime.json", b"[]", "must be a table of settings"),
        ("runtime.json", b'{"allowed_kinds": ["a"], "limits": 7}', "limits: must be a table of settings"),
        ("runtime.json", b'{"allowed_kinds": "job.run"}', "allowed_kinds: must be a list"),
        ("runtime.json", b'{"allowed_kinds": [""]}', "allowed_kinds: must be kinds of 1 to 128 characters"),
        ("runtime.json", b'{"allowed_kinds": ["a"], "max_payload_bytes": 67108864}', "must hold one largest frame"),
        ("runtime.toml", None, "cannot be read"),
    ],
)
def test_a_configuration_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    said = usage_error("--config", str(path))
    assert "config_invalid" in said
    assert says in said


@pytest.mark.parametrize("section", ["execution_ipc", "runtime.platform.execution_ipc"])
def test_a_whole_configuration_and_its_section_alone_are_the_same(tmp_path: Path, section: str) -> None:
    path = tmp_path / "runtime.toml"
    lines = 'allowed_kinds = ["a"]\nservice = "jobs"\n'
    path.write_text(lines if section == "execution_ipc" else f"[{section}]\n{lines}")
    assert parsed("--config", str(path)).config.service == "jobs"


# --- options: key files (attack 35) -----------------------------------------------------------------------------------


def _write(path: Path, content: str, mode: int = 0o600) -> Path:
    path.touch(0o600)
    path.write_text(content)
    path.chmod(mode)
    return path


def _symlink(folder: Path) -> Path:
    (folder / "link").symlink_to(_write(folder / "key", SECRET.hex()))
    return folder / "link"


def _hard_link(folder: Path) -> Path:
    (folder / "link").hardlink_to(_write(folder / "key", SECRET.hex()))
    return folder / "link"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "key", 0o600)
    return folder / "key"


def _of_another(folder: Path) -> Path:
    path = _write(folder / "key", SECRET.hex())
    os.chown(path, 65_534, -1)
    return path


KEY_FILES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "missing": (lambda folder: folder / "key", "key_invalid", "ipc-twisted keygen"),
    "group-readable": (lambda folder: _write(folder / "key", SECRET.hex(), 0o640), "key_file_insecure", "chmod 600"),
    "world-writable": (lambda folder: _write(folder / "key", SECRET.hex(), 0o602), "key_file_insecure", "chmod 600"),
    "a symbolic link": (_symlink, "key_file_insecure", "symbolic link; name the file itself"),
    "a hard link": (_hard_link, "key_file_insecure", "2 hard links; copy it"),
    "a FIFO": (_fifo, "key_file_insecure", "not a regular file"),
    "a folder": (lambda folder: folder, "key_file_insecure", "not a regular file"),
    "/dev/zero": (lambda _: Path("/dev/zero"), "key_file_insecure", "not a regular file"),
    "empty": (lambda folder: _write(folder / "key", ""), "key_invalid", "holds no key"),
    "only a comment": (lambda folder: _write(folder / "key", "# later\n"), "key_invalid", "holds no key"),
    "short": (lambda folder: _write(folder / "key", SECRET.hex()[:-1]), "key_invalid", "line 1 is not a key"),
    "long": (lambda folder: _write(folder / "key", SECRET.hex() + "00"), "key_invalid", "line 1 is not a key"),
    "no hex digits": (lambda folder: _write(folder / "key", "x" * 64), "key_invalid", "line 1 is not a key"),
    "a second line of none": (
        lambda folder: _write(folder / "key", f"{SECRET.hex()}\nsecret\n"), "key_invalid", "line 2 is not a key"),
    "larger than 4 KiB": (
        lambda folder: _write(folder / "key", f"{SECRET.hex()}\n" * 64), "key_invalid", "larger than 4096 bytes"),
    "of another user": (_of_another, "key_file_insecure", "belongs to uid 65534"),
}  # fmt: skip


@pytest.mark.attack(35)
@pytest.mark.parametrize(("make", "category", "says"), KEY_FILES.values(), ids=KEY_FILES)
def test_a_key_file_that_cannot_be_used_is_refused_with_what_to_do(
    tmp_path: Path, make: Callable[[Path], Path], category: str, says: str
) -> None:
    if make is _of_another and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = make(tmp_path)
    said = usage_error("--key-file", str(path))
    assert said.startswith(f"key file: {category}: ")
    assert says in said
    assert str(path) in said
    assert SECRET.hex() not in said


def test_a_static_key_without_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runtime.json"
    path.write_text('{"allowed_kinds": ["a"], "auth": {"secret_mode": "static"}}')
    said = usage_error("--config", str(path))
    assert f"{SECTION}.auth.key_file: is needed for secret_mode 'static' (or --key-file)" in said


@pytest.mark.parametrize("where", ["option", "configuration"])
def test_a_key_file_may_be_named_in_either_place(tmp_path: Path, where: str) -> None:
    key = _write(tmp_path / "key", f"# current\n{SECRET.hex()}  # of May\n\n{bytes(range(32)).hex().upper()}\n")
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps({"allowed_kinds": ["a"], "auth": {"secret_mode": "static", "key_file": str(key)}}))
    options = parsed("--key-file", str(key)) if where == "option" else parsed("--config", str(path))
    assert repr(options.keyring) == "<Keyring of 2 (redacted)>"


# --- options: the handler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "must be package.module:callable"),
        ("tests.child_handlers", "must be package.module:callable"),
        ("tests.child_handlers:", "must be package.module:callable"),
        (":echo", "must be package.module:callable"),
        ("jobs.py:run", "must be package.module:callable"),
        ("no.such.module:run", "cannot be imported: ModuleNotFoundError: No module named 'no' (put its folder on"),
        ("tests.child_handlers:no_such_name", "cannot be imported"),
        ("tests.child_handlers:not_callable", "is not callable"),
        ("os:getcwd", "must take two arguments, an envelope and its connection"),
    ],
)
def test_a_handler_that_cannot_be_had_is_refused(name: str, says: str) -> None:
    said = usage_error("--handler", name)
    assert said.startswith("--handler: ")
    assert says in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("def run(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("raise RuntimeError('no database')", "RuntimeError: no database"),
        ("def run(envelope): pass", "must take two arguments"),
    ],
)
def test_a_module_that_is_broken_is_a_usage_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str
) -> None:
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    assert says in usage_error("--handler", "broken:run")


# --- options: the key from a descriptor -------------------------------------------------------------------------------


def _pipe(content: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


def test_a_key_may_come_from_an_inherited_descriptor_and_is_read_once() -> None:
    reading = _pipe(f"# current\n{SECRET.hex()}\n".encode())
    options = parsed("--key-fd", str(reading))
    assert options.keyring is not None
    assert options.keyring.is_same(Keyring([SECRET]))
    assert options.key_file is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("x", "must be a descriptor above 2, not 'x'"),
        ("-1", "must be a descriptor above 2"),
        ("٣", "must be a descriptor above 2"),
        ("0", "must be a descriptor above 2"),
        ("999999", "cannot read file descriptor 999999: Bad file descriptor"),
        ("9" * 30, "must be a descriptor above 2"),
    ],
)
def test_a_descriptor_that_is_none_is_refused(number: str, says: str) -> None:
    assert says in usage_error("--key-fd", number)


@pytest.mark.parametrize("content", [b"", b"secret", SECRET.hex().encode() * 100])
def test_a_descriptor_that_holds_no_key_is_refused_without_repeating_it(content: bytes) -> None:
    reading = _pipe(content)
    said = usage_error("--key-fd", str(reading))
    assert "key_invalid: 'file descriptor" in said
    assert SECRET.hex() not in said


def test_a_key_comes_from_one_place(tmp_path: Path) -> None:
    key = _write(tmp_path / "key", SECRET.hex())
    assert "only one of them" in usage_error("--key-fd", "9", "--key-file", str(key))


def test_a_server_whose_key_came_from_a_descriptor_serves_and_stores_it_nowhere() -> None:
    reading = _pipe(SECRET.hex().encode())
    with TwistdChild("--key-fd", str(reading), pass_fds=[reading]) as child:
        os.close(reading)
        with Peer.connect(child.port, SECRET) as peer:
            assert peer.receipt_for(peer.send_envelope("job.run", b"")) == "accepted"
        assert "key_file" not in child.info
        stored = b"".join(path.read_bytes() for path in child.folder.rglob("*") if path.is_file())
        assert SECRET.hex().encode() not in stored


def test_without_options_the_handler_echoes_and_the_kind_is_job_run() -> None:
    options = parsed()
    assert options.handler is echo
    assert options.keyring is None
    assert options.config.allowed_kinds == (KIND,)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = usage_error("--listen", "tcp:0", "--key-file", str(tmp_path), "--handler", "nothing")
    assert [line.split(":")[0] for line in said.splitlines()] == ["--listen", "key file", "--handler"]


@pytest.mark.parametrize("argument", ["--port", "--bind=0.0.0.0", "extra"])
def test_what_it_does_not_know_is_refused(argument: str) -> None:
    usage_error(argument)


# --- processes that do not start --------------------------------------------------------------------------------------


def refused(*options: str, **arguments: Any) -> str:
    """What a process says that ends by itself: with an error, but with no traceback, and not having listened."""
    code, output = run_to_its_end(*options, **arguments)
    assert code == 1, output
    assert "Traceback" not in output
    assert "listening" not in output
    return output


def test_a_process_with_a_wrong_configuration_ends_with_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text(WRONG)
    assert_names_every_mistake(refused("--config", str(path), "--handler", "nothing"))


@pytest.mark.parametrize("runner", ["twistd", "twist"])
def test_a_process_whose_port_is_taken_ends_and_says_so(tmp_path: Path, runner: str) -> None:
    tmp_path.chmod(0o700)
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        options = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        output = refused(*options, folder=tmp_path, **({"runner": TWIST} if runner == "twist" else {}))
    assert f"twistd ipc: Couldn't listen on 127.0.0.1:{port}: " in output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ipc_twisted").mkdir()
    (tmp_path / "ipc_twisted").chmod(0o777)
    output = refused(folder=tmp_path)
    assert "connection_file_invalid" in output
    assert f"{tmp_path}/ipc_twisted'" in output
    assert "type chmod 700" in output


# --- one that runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def child() -> Iterator[TwistdChild]:
    with TwistdChild() as child:
        yield child


def test_its_first_line_after_the_bind_says_where_it_listens(child: TwistdChild) -> None:
    ours = [line for line in child.log.splitlines() if "[ipc_twisted" in line]
    assert f"listening on 127.0.0.1:{child.port}, connection file {child.connection_file}" in ours[0]
    before, _ = child.log.split("listening on 127.0.0.1")
    assert f"SecureIPCFactory starting on {child.port}" in before


def test_the_connection_file_is_as_the_design_has_it(child: TwistdChild) -> None:
    path = child.connection_file
    assert path == child.folder / "ipc_twisted" / "execution_ipc.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert child.info == {
        "protocol": 1,
        "transport": "tcp_local",
        "host": "127.0.0.1",
        "port": child.port,
        "service": "execution_ipc",
        "key_id": child.keyring.current.key_id("execution_ipc").hex(),
        "pid": child.process.pid,
        "started_at": child.info["started_at"],
        "key_file": str(child.folder / "ipc_twisted" / "execution_ipc.key"),
    }
    assert abs(child.info["started_at"] - path.stat().st_mtime) < 60
    key_file = Path(child.info["key_file"])
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert child.key.hex() not in path.read_text()
    assert len(child.key) == 32


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux lists its sockets there")
def test_it_is_bound_on_127_0_0_1_alone(child: TwistdChild) -> None:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    bound = [local for _, local, _, state, *_ in lines if state == "0A" and int(local.split(":")[1], 16) == child.port]
    assert bound == [f"0100007F:{child.port:04X}"]
    six = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert not [local for local in six if int(local.split(":")[1], 16) == child.port]


def test_a_second_server_with_the_same_connection_file_ends_and_the_first_goes_on(child: TwistdChild) -> None:
    before = child.connection_file.read_bytes(), child.key
    with child.peer() as honest:
        output = refused("--connection-file", str(child.connection_file))
        assert "connection_file_invalid" in output
        assert f"its server lives (process {child.process.pid} on port {child.port}) and is not replaced" in output
        assert (child.connection_file.read_bytes(), child.key) == before
        assert_serves(child, honest)


@pytest.mark.attack(32)
@pytest.mark.parametrize("target", ["raise", "fail", "nonsense"])
def test_a_handler_that_fails_is_logged_and_disturbs_nobody(child: TwistdChild, target: str) -> None:
    with child.peer() as honest, child.peer() as peer:
        seq = peer.send_envelope(KIND, b"", target=target, trace_id=f"trace-{target}\n\x1b[2J")
        assert peer.receipt_for(seq) == "accepted"
        child.wait_for(rf"a handler failed: trace_id='trace-{target}\\n\\x1b\[2J'\s+Traceback")
        assert_serves(child, honest, peer)
        peer.send_close()
        peer.read_until_close()
        assert peer.aside == []
        assert RAISED not in str(peer.close_record)


@pytest.mark.attack(32)
def test_handlers_that_never_end_or_end_too_late_disturb_nobody(child: TwistdChild) -> None:
    with child.peer() as honest:
        with child.peer() as peer:
            for target in ("never", "wait-for-end"):
                assert peer.receipt_for(peer.send_envelope(KIND, b"", target=target, trace_id="late")) == "accepted"
            peer.abort()
        child.wait_for(r"a handler failed: trace_id='late'[^\0]*ipc_twisted\.errors\.NotConnected: not_connected")
        assert_serves(child, honest)


@pytest.mark.attack(33)
def test_what_a_peer_writes_is_escaped_in_every_line(child: TwistdChild) -> None:
    evil = "evil\n2026-01-01T00:00:00+0000 [ipc_twisted#info] listening on 127.0.0.1:1\x1b[2J"
    with child.peer() as peer:
        assert peer.receipt_for(peer.send_envelope(evil, trace_id=evil, headers={evil: evil})) == "kind_not_allowed"
        child.wait_for("rejected an envelope")
    assert "\x1b" not in child.log
    assert len([line for line in child.log.splitlines() if line.startswith("2026-01-01T00:00:00+0000")]) == 0


# --- how one ends -----------------------------------------------------------------------------------------------------


@pytest.mark.attack(39)
def test_at_sigterm_it_tells_its_clients_removes_its_files_and_ends_by_the_signal() -> None:
    with TwistdChild(handler=None) as child:
        folder = child.connection_file.parent
        with child.peer() as peer, Peer.open(child.port) as stranger:
            seq = peer.send_envelope(KIND, b"answer me", trace_id="t", reply_to="me")
            assert peer.receipt_for(seq) == "accepted"
            assert peer.read_envelope()["target"] == "me"  # without options it echoes
            peer.send_receipt()
            child.signal(signal.SIGTERM)
            assert peer.read_until_close()["category"] == "shutting_down"
            peer.send_close()
            assert peer.wait_eof() == b""
            assert stranger.wait_eof() == b""
        ended = child.wait()
        assert ended.code == -signal.SIGTERM
        assert "Server Shut Down." in ended.output
        assert "Traceback" not in ended.output
        assert [*folder.iterdir()] == []


@pytest.mark.attack(32)
def test_twist_runs_it_as_well_and_a_handler_may_stop_it() -> None:
    with TwistdChild(runner=TWIST, python=("-X", "dev", "-W", "error")) as child:
        folder = child.connection_file.parent
        assert_serves(child)
        with child.peer() as peer:
            peer.send_envelope(KIND, b"", target="stop")
            assert peer.read_until_close()["category"] == "shutting_down"
        assert child.wait().code == 0
        assert [*folder.iterdir()] == []
        assert "Traceback" not in child.log


def test_a_server_that_was_killed_does_not_keep_the_next_one_from_starting(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with TwistdChild(folder=tmp_path) as killed:
        key = killed.key
        with killed.peer() as peer:
            assert peer.receipt_for(peer.send_envelope(KIND, b"", target=ALIVE)) == "accepted"
            killed.kill()
            assert peer.wait_eof() == b""
        left = killed.connection_file.read_bytes()
        with pytest.raises(ConnectionRefusedError):
            Peer.open(killed.port)
        with TwistdChild(folder=tmp_path, handler="ipc_twisted.handlers:log") as child:
            assert child.connection_file == killed.connection_file
            assert child.connection_file.read_bytes() != left
            assert child.key != key
            assert_serves(child)
            child.wait_for(r"received kind='job\.run' trace_id=None target='alive' payload_bytes=0 from 127\.0\.0\.1:")


# --- what clients are told --------------------------------------------------------------------------------------------


@pytest.mark.attack(36)
@pytest_twisted.ensureDeferred
async def test_a_client_of_a_server_that_is_gone_is_told_that_its_file_is_stale() -> None:
    from twisted.internet import reactor

    with TwistdChild() as child:
        path, port, pid = child.connection_file, child.port, child.process.pid
        child.kill()
        with pytest.raises(NotConnected) as raised:
            await within(connect(reactor, path))
        assert raised.value.category == Category.NOT_CONNECTED
        said = str(raised.value)
        assert f"nobody listens on 127.0.0.1:{port}" in said
        assert f"the connection file is stale: its server (process {pid}) is gone" in said
        with pytest.raises(NotConnected) as raised:
            await within(connect(reactor, port, Keyring([SECRET])))
        assert "stale" not in str(raised.value)
        path.unlink()
        with pytest.raises(ConnectionFileError, match="the server is not running"):
            await within(connect(reactor, path))


@pytest.mark.attack(22)
@pytest_twisted.ensureDeferred
async def test_a_client_with_another_key_is_told_what_it_can_be(child: TwistdChild) -> None:
    from twisted.internet import reactor

    for where in (child.connection_file, child.port):
        with pytest.raises(HandshakeError) as raised:
            await within(connect(reactor, where, Keyring([SECRET])))
        assert raised.value.category == Category.HANDSHAKE_REFUSED
        said = str(raised.value)
        assert "another key" in said
        assert Keyring([SECRET]).current.key_id("execution_ipc").hex() in said
        assert (f"The server's current key id is {child.info['key_id']}" in said) == (where == child.connection_file)


@pytest.mark.attack(22)
@pytest_twisted.ensureDeferred
async def test_a_client_for_another_service_is_told_what_it_can_be(child: TwistdChild) -> None:
    from twisted.internet import reactor

    with pytest.raises(HandshakeError) as raised:
        await within(connect(reactor, child.connection_file, service="jobs"))
    assert raised.value.category == Category.HANDSHAKE_REFUSED
    assert "for service 'jobs'" in str(raised.value)
    assert "The connection file is for service 'execution_ipc'" in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_a_client_of_what_is_no_server_of_ours_is_told_so() -> None:
    from twisted.internet import reactor

    def play() -> None:
        sock, _ = other.accept()
        with sock:
            sock.sendall(b"220 mail.example ESMTP\r\n")
            with suppress(ConnectionResetError):
                while sock.recv(1_000):
                    pass

    with socket.create_server((HOST, 0)) as other:
        playing = in_thread(play)
        with pytest.raises(HandshakeError, match="what listens there is no ipc_twisted server"):
            await within(connect(reactor, other.getsockname()[1], Keyring([SECRET])))
        await playing


@pytest.mark.attack(36)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.chmod(0o644), "chmod 600"),
        (lambda path: path.write_text(path.read_text()[:50]), "no connection file"),
        (lambda path: path.write_text(path.read_text().replace("127.0.0.1", "10.0.0.1")), "no connection file"),
        (lambda path: path.write_text(path.read_text().replace('"protocol": 1', '"protocol": 2')), "no connection"),
        (lambda path: path.write_text("[" * 4_000), "no connection file"),
        (lambda path: path.write_text(" " * 5_000), "larger than 4096 bytes"),
        (lambda path: path.symlink_to(path.rename(path.with_suffix(".x"))), "symbolic link"),
        (lambda path: path.unlink() or os.mkfifo(path, 0o600), "not a regular file"),  # type: ignore[func-returns-value]
        (lambda path: path.unlink() or path.mkdir(0o700), "not a regular file"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_file_that_cannot_be_trusted_is_refused(
    child: TwistdChild, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    from twisted.internet import reactor

    path = _write(tmp_path / "link.json", child.connection_file.read_text())
    damage(path)
    with pytest.raises(ConnectionFileError) as raised:
        await within(connect(reactor, path))
    assert raised.value.category == Category.CONNECTION_FILE_INVALID
    assert str(path) in str(raised.value)
    assert says in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_a_connection_file_whose_key_is_gone_is_refused(child: TwistdChild, tmp_path: Path) -> None:
    from twisted.internet import reactor

    info = {**child.info, "key_file": str(tmp_path / "gone.key")}
    with pytest.raises(KeyFileError, match="there is no key file"):
        await within(connect(reactor, _write(tmp_path / "link.json", json.dumps(info))))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"where": 0}, "port: must be an int from 1 to 65535"),
        ({"where": 65_536}, "port: must be an int from 1 to 65535"),
        ({"where": -1}, "port: must be an int from 1 to 65535"),
        ({"where": 1, "keyring": None}, "keyring: is needed"),
        ({"where": 1, "allowed_kinds": ["a"]}, "handler: is needed"),
        ({"where": 1, "allowed_kinds": "job.run", "handler": echo}, "allowed_kinds: must be a list of kinds"),
        ({"where": 1, "handler": echo}, "allowed_kinds: list the kinds"),
        ({"where": 1, "allowed_kinds": [""], "handler": echo}, "allowed_kinds: must be kinds"),
        ({"where": 1, "service": "a b"}, "service: must be 1 to 64 characters"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_client_that_is_called_wrongly_is_told_before_anything_is_dialled(
    arguments: dict[str, Any], says: str
) -> None:
    from twisted.internet import reactor

    with pytest.raises(ConfigError, match=says):
        await within(connect(reactor, **{"keyring": Keyring([SECRET]), **arguments}))


@pytest_twisted.ensureDeferred
async def test_a_reply_of_a_kind_that_the_client_does_not_take_is_logged_at_the_client(child: TwistdChild) -> None:
    """And at the server, whose handler did not wait for the outcome of its message."""
    from twisted.internet import reactor

    lines, received = Lines(), []
    globalLogPublisher.addObserver(lines)
    connection = await within(
        connect(reactor, child.connection_file, allowed_kinds=["job.done"], handler=lambda *it: received.append(it))
    )
    await within(connection.send(KIND, b"", trace_id="t\n1").as_deferred())
    await in_thread(
        child.wait_for,
        r"a message to 127\.0\.0\.1:\d+ was not accepted: kind_not_allowed kind='job\.run' trace_id='t\\n1'",
    )
    await within(connection.close())
    globalLogPublisher.removeObserver(lines)
    assert [line for line in lines if "rejected an envelope" in line] == [
        f"rejected an envelope from 127.0.0.1:{child.port}: kind_not_allowed kind='job.run' trace_id='t\\n1'"
    ]
    assert received == []


@pytest.mark.attack(39)
@pytest_twisted.ensureDeferred
async def test_every_sender_has_an_outcome_when_the_server_is_terminated_or_killed() -> None:
    from twisted.internet import reactor

    for number in (signal.SIGTERM, signal.SIGKILL):
        with TwistdChild() as child:
            connection = await within(connect(reactor, child.connection_file))
            outcomes = [connection.send(KIND, b"", target="keep").as_deferred() for _ in range(200)]
            await within(outcomes[0])
            child.signal(number)
            outcomes += [connection.send(KIND, b"", target="keep").as_deferred() for _ in range(200)]
            told = await within(DeferredList(outcomes, consumeErrors=True))
            await within(connection.wait_closed())
            await in_thread(child.wait)
            accepted = sum(good for good, _ in told)
            assert 1 <= accepted <= len(child.records)
            if number == signal.SIGTERM:
                failures = cast(list[Failure], [result for good, result in told if not good])
                assert [failure for failure in failures if not failure.check(Rejected)] == []
                assert accepted == len(child.records)
