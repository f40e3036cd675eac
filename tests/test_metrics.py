"""The metrics are what ``statistics()`` and the test say, to the message; a port that bounds what strangers get."""

from __future__ import annotations

import os
import re
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.web.server import NOT_DONE_YET

from ipc_twisted import (
    BindForbidden,
    Category,
    ConfigError,
    ExecutionIPCClientService,
    ExecutionIPCService,
    Keyring,
    Rejected,
    SecureEnvelope,
    Statistics,
)
from ipc_twisted import metrics_export as export
from ipc_twisted.metrics import AGE, AGE_BOUNDS, METRICS, Metrics, TimedHandler
from ipc_twisted.tap import Options
from tests.log_lines import Lines
from tests.memory_link import SECRET, config
from tests.serving import in_thread, within
from tests.twistd_child import TwistdChild, run_to_its_end

PREFIX = "ipc_twisted_"
GENEROUS_SECONDS = 0.25


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Value by name without the prefix, and the one label's value."""
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name.removeprefix(PREFIX), next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def expected(statistics: Statistics) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for metric in METRICS:
        name = metric.name + ("_total" if "Counter" in metric.kind.__name__ else "")
        value = getattr(statistics, metric.field)
        found |= {(name, label): count for label, count in value.items()} if metric.label else {(name, ""): value}
    return found


class Told:
    """Something with statistics."""

    def __init__(self, told: Statistics) -> None:
        self.told = told

    def statistics(self) -> Statistics:
        return self.told


def full() -> Statistics:
    """Every number another one; every dict has every category."""
    values: dict[str, Any] = {}
    for number, field in enumerate(Statistics.__struct_fields__, start=1):
        by_category = Statistics.__annotations__[field].startswith("dict")
        values[field] = {str(c): 1000 * number + at for at, c in enumerate(Category)} if by_category else number
    return Statistics(**values)


def test_every_number_of_the_statistics_has_one_metric() -> None:
    assert [metric.field for metric in METRICS] == list(dict.fromkeys(metric.field for metric in METRICS))
    assert {metric.field for metric in METRICS} == set(Statistics.__struct_fields__)
    told = full()
    assert samples(Metrics(Told(told)).registry) == expected(told)


def test_a_service_that_was_not_started_has_no_samples_and_starts_with_nothing() -> None:
    service = ExecutionIPCService(None, config(), Keyring([SECRET]), lambda *_: None)
    assert samples(Metrics(service).registry) == {}


def test_a_registry_of_ones_own_takes_it_and_two_need_two_prefixes() -> None:
    ours = CollectorRegistry(auto_describe=False)
    ours.register(Metrics(Told(full()), TimedHandler(lambda *_: None)))
    with pytest.raises(ValueError, match="Duplicated"):
        ours.register(Metrics(Told(full())))
    ours.register(Metrics(Told(full()), prefix="other"))
    assert b"\nother_in_flight " in generate_latest(ours)


# --- the age of messages ----------------------------------------------------------------------------------------------


def test_ages_are_whole_seconds_and_what_comes_from_the_future_is_of_now() -> None:
    now = [1_000_000.9]
    handed: list[tuple[Any, Any]] = []

    def handler(*arguments: Any) -> Any:
        handed.append(arguments)
        return "what it returns"

    timed = TimedHandler(handler, wall=lambda: now[0])
    link: Any = object()
    for ts in (1_000_000, 999_999, 999_990, 1_000_020, 1):
        envelope = SecureEnvelope(ts, "n", "k")
        assert timed(envelope, link) == "what it returns"
        assert handed[-1] == (envelope, link)
    found = samples(Metrics(Told(full()), timed).registry)
    below = [found[f"{AGE}_bucket", f"{bound:.1f}"] for bound in AGE_BOUNDS]
    assert below == [2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4]
    assert (found[f"{AGE}_bucket", "+Inf"], found[f"{AGE}_count", ""]) == (5, 5)
    assert found[f"{AGE}_sum", ""] == 0 + 1 + 10 + 0 + 999_999


# --- to the message ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def both(
    handler: Callable[..., Any],
) -> AsyncIterator[tuple[ExecutionIPCService, ExecutionIPCClientService, Any]]:
    from twisted.internet import reactor

    timed = TimedHandler(handler)
    service = ExecutionIPCService(reactor, config(), Keyring([SECRET]), timed)
    metrics = Metrics(service, timed)
    service.startService()
    client = ExecutionIPCClientService(reactor, service.port, Keyring([SECRET]))
    client.startService()
    try:
        yield service, client, metrics
    finally:
        await within(client.stopService())
        await within(service.stopService())


@pytest_twisted.ensureDeferred
async def test_what_a_test_did_is_what_the_metrics_say(logged_failures: list[Failure]) -> None:
    waiting: Deferred[None] = Deferred()

    def handler(envelope: SecureEnvelope, _: Any) -> Any:
        if envelope.payload_bytes == b"wait":
            return waiting
        if envelope.payload_bytes == b"raise":
            raise RuntimeError("wrong")
        return None

    async with both(handler) as (service, client, metrics):
        theirs = Metrics(client)
        for payload in (b"", b"", b"raise", b"wait"):
            await within(client.send("job.run", payload).as_deferred())
        for _ in range(3):
            with pytest.raises(Rejected):
                await within(client.send("other", b"").as_deferred())
        found = samples(metrics.registry)
        assert {key: value for key, value in found.items() if not key[0].startswith(AGE)} == expected(
            service.statistics()
        )
        assert found["accepted_total", ""] == found[f"{AGE}_count", ""] == 4
        assert found["rejected_total", "kind_not_allowed"] == 3
        assert (found["handler_failures_total", ""], found["in_flight", ""], found["connections", ""]) == (1, 1, 1)
        assert (found["guard_entries", ""], found["handshakes_total", "authenticated"]) == (4, 1)
        at_client = samples(theirs.registry)
        assert at_client == expected(client.statistics())
        assert (at_client["sent_total", "accepted"], at_client["sent_total", "kind_not_allowed"]) == (4, 3)
        assert at_client["sent_bytes_total", ""] == found["received_bytes_total", ""] > 0
        waiting.callback(None)
        assert samples(metrics.registry)["in_flight", ""] == 0
    logged_failures.clear()


# --- HTTP -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def port(registry: CollectorRegistry | None = None, number: int = 0) -> AsyncIterator[export.MetricsPort]:
    from twisted.internet import reactor

    service = export.MetricsPort(reactor, registry or Metrics(Told(full())).registry, number)
    service.startService()
    try:
        yield service
    finally:
        await within(service.stopService())


def ask(number: int, request: str) -> tuple[int, str, str]:
    """Status, head and body of the answer; status 0 for none."""
    with socket.create_connection(("127.0.0.1", number), timeout=20) as connection:
        connection.sendall(request.replace("\n", "\r\n").replace("PORT", str(number)).encode("latin-1"))
        answer = b""
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


@pytest_twisted.ensureDeferred
async def test_get_metrics_is_answered_and_the_connection_closed() -> None:
    told = full()
    async with port(Metrics(Told(told)).registry) as service:
        for name in ("127.0.0.1", "localhost", "LocalHost"):
            status, head, body = await in_thread(ask, service.port, f"GET /metrics HTTP/1.1\nHost: {name}:PORT\n\n")
            assert status == 200
            assert "Content-Type: text/plain; version=0.0.4" in head
            assert parsed(body) == expected(told)
    assert service.port == 0


REFUSED = [
    (403, "GET /metrics HTTP/1.1\nHost: evil.example:PORT\n\n"),
    (403, "GET /metrics HTTP/1.1\nHost: evil.example\n\n"),
    (403, "GET /metrics HTTP/1.1\nHost: 127.0.0.1\n\n"),
    (403, "GET /metrics HTTP/1.1\nHost: 127.0.0.1:PORT.evil.example\n\n"),
    (403, "GET /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\nHost: evil.example\n\n"),
    (403, "GET /metrics HTTP/1.1\nHost:\n\n"),
    (403, "GET /metrics HTTP/1.0\n\n"),
    (403, "GET http://evil.example/metrics HTTP/1.1\nHost: evil.example\n\n"),
    (404, "GET / HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (404, "GET /metrics/ HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (404, "GET /metrics?x=1 HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (404, "GET /Metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (403, "HEAD /metrics HTTP/1.1\nHost: evil.example\n\n"),
    (404, "HEAD /nothing HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (405, "HEAD /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (200, "OPTIONS * HTTP/1.1\nHost: evil.example\n\n"),  # Twisted's own answer, which says nothing
    (405, "OPTIONS /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (405, "POST /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\nContent-Length: 0\n\n"),
    (405, "get /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"),
    (0, "POST /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\nContent-Length: 1000000000\n\nxxx"),
    (0, "POST /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\nTransfer-Encoding: chunked\n\n5\nhello\n"),
]


@pytest.mark.parametrize(("status", "request_"), REFUSED, ids=[request.partition("\n\n")[0] for _, request in REFUSED])
@pytest_twisted.ensureDeferred
async def test_nothing_else_is_answered_with_a_number(
    status: int, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "DEADLINE_SECONDS", 120.0)  # it must not be this that ends it
    async with port() as service:
        with capturedLogs() as logged:
            is_now, _, body = await in_thread(ask, service.port, request_)
        assert is_now == status
        assert PREFIX not in body
        assert logged == []  # strangers would write the log


ASK = "GET /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n"


def hold(number: int, said: bytes) -> list[socket.socket]:
    """As many as there are places."""
    held = [socket.create_connection(("127.0.0.1", number), timeout=20) for _ in range(export.MAX_CONNECTIONS)]
    for connection in held:
        connection.sendall(said)
    return held


def end(connection: socket.socket) -> bytes:
    try:
        return connection.recv(100)
    except ConnectionResetError:
        return b""


@pytest_twisted.ensureDeferred
async def test_the_oldest_that_has_not_asked_makes_place_for_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "DEADLINE_SECONDS", 120.0)  # it must not be this that ends any

    def play(number: int) -> tuple[int, bytes, bool]:
        oldest, *others = held = hold(number, b"GET /metrics HTTP/1.1\r\n")
        for connection in reversed(held):
            connection.sendall(b"a: b\r\n")  # a line now and then would not help it
        status, _, _ = ask(number, ASK)
        said = end(oldest)
        untouched = select.select(others, [], [], 0)[0] == []
        for connection in held:
            connection.close()
        return status, said, untouched

    async with port() as service:
        assert await in_thread(play, service.port) == (200, b"", True)


@pytest_twisted.ensureDeferred
async def test_where_all_have_asked_a_fifth_is_closed_at_once_and_each_has_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "DEADLINE_SECONDS", 1.0)
    asked = threading.Semaphore(0)

    def never(_page: object, _request: object) -> int:
        asked.release()
        return NOT_DONE_YET

    def play(number: int) -> tuple[bytes, list[bytes]]:
        held = hold(number, ASK.replace("\n", "\r\n").encode())
        for _ in held:
            assert asked.acquire(timeout=20)
        with socket.create_connection(("127.0.0.1", number), timeout=20) as fifth:
            refused = end(fifth)
            assert select.select(held, [], [], 0)[0] == []  # all are open, so it was no deadline that ended the fifth
        ended = [end(connection) for connection in held]
        for connection in held:
            connection.close()
        return refused, ended

    async with port() as service:
        with monkeypatch.context() as patched:
            patched.setattr(export._Page, "render", never)
            assert await in_thread(play, service.port) == (b"", [b""] * export.MAX_CONNECTIONS)
        for idle in await in_thread(hold, service.port, b"GET /metrics HTTP/1.1\r\n"):
            with idle:
                assert await in_thread(end, idle) == b""
        assert (await in_thread(ask, service.port, ASK))[0] == 200


def test_who_makes_place_is_counted_until_it_is_gone() -> None:
    """Many are accepted in one turn, and what was cut off in it still has its descriptor."""
    factory = export._Limit(Clock(), CollectorRegistry())
    transports = []
    for _ in range(20):
        protocol = factory.buildProtocol(None)
        if protocol is not None:
            transports.append(StringTransport())
            protocol.makeConnection(transports[-1])
    assert len(factory.protocols) == len(transports) == export.MAX_CONNECTIONS + 1
    assert [transport.disconnecting for transport in transports] == [True] + [False] * export.MAX_CONNECTIONS


@pytest_twisted.ensureDeferred
async def test_who_is_connected_at_the_stop_is_cut_off() -> None:
    async with port() as service:
        held = socket.create_connection(("127.0.0.1", service.port), timeout=20)
        held.sendall(b"GET")
        status, _, _ = await in_thread(ask, service.port, "GET /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n")
        assert status == 200  # so the first was accepted, too
    with held, pytest.raises(ConnectionResetError):
        await in_thread(held.recv, 1)


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken_and_a_socket_that_is_elsewhere_are_errors() -> None:
    from twisted.internet import reactor

    registry = Metrics(Told(full())).registry
    async with port() as service:
        with pytest.raises(CannotListenError):
            export.MetricsPort(reactor, registry, service.port).startService()

    class Elsewhere:
        callLater = reactor.callLater
        seconds = reactor.seconds

        def listenTCP(self, number: int, factory: Any, interface: str) -> Any:  # noqa: N802  # Twisted's name
            assert interface == "127.0.0.1"
            return reactor.listenTCP(number, factory, interface="127.0.0.2")

    elsewhere = export.MetricsPort(Elsewhere(), registry, 0)
    with pytest.raises(BindForbidden, match="bound to"):
        elsewhere.startService()
    await within(maybeDeferred(elsewhere.stopService))


@pytest_twisted.ensureDeferred
async def test_a_scrape_with_every_category_and_512_connections_costs_little() -> None:
    """5 ms are promised; the bound here is for machines that do other things, too."""
    told = full()

    class Counting(Told):
        def statistics(self) -> Statistics:
            credit = [connection.send_credit for connection in service.factory.connections]  # type: ignore[union-attr]
            assert len(credit) == 1
            service.factory.connections = Many(service.factory.connections)  # type: ignore[union-attr]
            try:
                real = service.statistics()
            finally:
                service.factory.connections = set(service.factory.connections)  # type: ignore[union-attr]
            assert real.credit_messages == 512 * credit[0][0]
            return self.told

    class Many(set[Any]):
        """The one there is, 512 times."""

        def __iter__(self) -> Any:
            return iter(list(super().__iter__()) * 512)

        def __len__(self) -> int:
            return 512

    timed = TimedHandler(lambda *_: None)
    async with both(timed) as (service, client, _):
        await within(client.send("job.run", b"").as_deferred())
        registry = Metrics(Counting(told), timed).registry
        took = []
        for _ in range(20):
            began = time.perf_counter()
            generate_latest(registry)
            took.append(time.perf_counter() - began)
        print(f"a scrape took {1000 * sorted(took)[10]:.2f} ms")
        assert min(took) < GENEROUS_SECONDS


# --- file -------------------------------------------------------------------------------------------------------------


def test_the_file_is_replaced_every_15_seconds_readable_by_all_and_gone_at_the_stop(tmp_path: Path) -> None:
    clock, told, path = Clock(), Told(full()), tmp_path / "link.prom"
    service = export.MetricsFile(clock, Metrics(told).registry, path)
    old = os.umask(0o077)
    try:
        service.startService()
    finally:
        os.umask(old)
    assert parsed(path.read_text()) == expected(full())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    first = path.stat().st_ino
    told.told = Statistics(**{**{name: getattr(full(), name) for name in Statistics.__struct_fields__}, "accepted": 99})
    with path.open() as reading:
        clock.advance(export.FILE_SECONDS)
        assert parsed(reading.read()) == expected(full())  # the old one, whole
    assert parsed(path.read_text())["accepted_total", ""] == 99
    assert path.stat().st_ino != first
    service.stopService()
    assert list(tmp_path.iterdir()) == []
    assert clock.getDelayedCalls() == []


def test_a_file_that_another_has_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "link.prom"
    service = export.MetricsFile(Clock(), Metrics(Told(full())).registry, path)
    service.startService()
    (tmp_path / "new").write_text("another's")
    os.replace(tmp_path / "new", path)
    service.stopService()
    assert path.read_text() == "another's"


def test_a_file_that_cannot_be_written_is_an_error_at_the_start_and_one_line_later(tmp_path: Path) -> None:
    from twisted.logger import globalLogPublisher

    registry = Metrics(Told(full())).registry
    with pytest.raises(ConfigError, match=r"must end in \.prom"):
        export.MetricsFile(Clock(), registry, "link.txt")
    for name in ("none/link.prom", "nul\0.prom"):
        with pytest.raises(ConfigError, match="cannot be written"):
            export.MetricsFile(Clock(), registry, tmp_path / name).startService()
    folder = tmp_path / "folder"
    folder.mkdir()
    clock = Clock()
    service = export.MetricsFile(clock, registry, folder / "link.prom")
    service.startService()
    (folder / "link.prom").unlink()
    folder.rmdir()
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    try:
        clock.pump([export.FILE_SECONDS] * 3)
        assert len(lines) == 1
        folder.mkdir()
        clock.advance(export.FILE_SECONDS)
        assert (folder / "link.prom").exists()
        (folder / "link.prom").unlink()
        (folder / "link.prom").mkdir()  # in its place: the new one cannot be moved there, and does not stay
        clock.advance(export.FILE_SECONDS)
        assert len(lines) == 2
        assert os.listdir(folder) == ["link.prom"]
    finally:
        globalLogPublisher.removeObserver(lines)
    service.stopService()


# --- twistd ipc -------------------------------------------------------------------------------------------------------


def test_twistd_serves_and_writes_metrics_of_what_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "link.prom"
    with TwistdChild("--metrics-port", "0", "--metrics-file", str(file)) as child:
        number = int(child.wait_for(r"metrics at http://127\.0\.0\.1:(\d+)/metrics")[1])
        with child.peer() as peer:
            for _ in range(3):
                assert peer.receipt_for(peer.send_envelope("job.run", target="alive")) == "accepted"
            assert peer.receipt_for(peer.send_envelope("other")) == "kind_not_allowed"
            status, _, body = ask(number, "GET /metrics HTTP/1.1\nHost: 127.0.0.1:PORT\n\n")
        found = parsed(body)
        assert (status, found["accepted_total", ""], found["rejected_total", "kind_not_allowed"]) == (200, 3, 1)
        assert found[f"{AGE}_count", ""] == 3
        assert file.exists()
        taken = run_to_its_end("--metrics-port", str(number))
        assert taken.code == 1
        assert "twistd ipc: " in taken.output
        assert "Traceback" not in taken.output
        child.terminate()
    assert not file.exists()


def test_what_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    ended = run_to_its_end("--metrics-file", str(tmp_path / "none" / "link.prom"), folder=runtime)
    assert ended.code == 1
    assert "cannot be written" in ended.output
    assert [path.name for path in runtime.rglob("*") if path.is_file() and path.suffix in (".json", ".key")] == []


def test_the_descriptors_of_the_port_are_counted() -> None:
    from twisted.internet import reactor

    service = ExecutionIPCService(reactor, config({"max_connections": 10**6}), Keyring([SECRET]), lambda *_: None)
    service.further_descriptors = export.DESCRIPTORS
    with pytest.raises(ConfigError, match=rf", {export.DESCRIPTORS} for the metrics and 64 .* -n 1000199$"):
        service.startService()


def test_without_the_extra_it_says_what_to_type() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from ipc_twisted.tap import Options\n"
        "Options().parseOptions(['--metrics-port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert re.search(r"UsageError: .*pip install 'ipc_twisted\[metrics\]'", done.stderr, re.DOTALL)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_explains_each_metric_and_no_other() -> None:
    from tests.test_docs import read, table

    rows = table(read("docs/metrics.md"), "metric", "type", "label", "what it is")
    listed = {(name, type_, label) for name, type_, label, _ in rows}
    families = Metrics(Told(full()), TimedHandler(lambda *_: None)).describe()
    expected_rows = set()
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        label = next((m.label for m in METRICS if PREFIX + m.name == family.name), "le")
        expected_rows.add((f"`{name}`", family.type, f"`{label}`" if label else "–"))
    assert listed == expected_rows
    assert len(rows) == len(METRICS) + 1


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        *(("--metrics-port", value, "0 to 65535") for value in ("-1", "65536", "080", "٣", "http", "", "1 ", "1\n")),
        *(("--metrics-file", value, r"must end in \.prom") for value in ("", "link.txt", "link.prom.tmp")),
    ],
)
def test_a_wrong_option_is_a_usage_error(option: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"{option}: .*{says}"):
        Options().parseOptions([option, value])


def test_nothing_of_the_extra_is_loaded_unless_asked_for() -> None:
    code = (
        "import sys\n"
        "from ipc_twisted.tap import Options, makeService\n"
        "options = Options(); options.parseOptions([]); makeService(options)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'prometheus_client'}), "
        "'twisted.web' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[] False\n"
