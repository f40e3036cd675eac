"""The example as a whole: two real processes, and a third that is hostile; HTTP as the page speaks it."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.example_child import TIMEOUT, ExampleChild

ROOT = Path(__file__).parent.parent
if not (ROOT / "examples").is_dir():
    pytest.skip("a wheel has no examples: they are tested in the checkout", allow_module_level=True)

TILES = 48


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExampleChild]:
    """One that no test kills."""
    with ExampleChild(tmp_path_factory.mktemp("example")) as child:
        yield child


@pytest.fixture
def example(tmp_path: Path) -> Iterator[ExampleChild]:
    with ExampleChild(tmp_path) as child:
        yield child


def is_up(link: dict[str, Any]) -> bool:
    return bool(link["connected"] and link["execution"])


def is_complete(picture: dict[str, Any]) -> bool:
    return len(picture["tiles"]) == TILES


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the lines of a PNG, each behind its filter byte. Checks all that is in it."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, rest = {}, png[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        name, content, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", checksum) == (zlib.crc32(name + content),)
        chunks[name], rest = content, rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    return width, height, zlib.decompress(chunks[b"IDAT"])


# --- what it is for ---


def test_a_picture_comes_tile_by_tile(shared: ExampleChild) -> None:
    with shared.events() as events:
        events.wait_for("link", is_up)
        ordered = shared.post("/pictures", {"scene": "spiral"})["id"]
        partial = events.wait_for("picture", lambda now: now["id"] == ordered and now["tiles"])
        assert 0 < len(partial["tiles"]) < TILES
        complete = events.wait_for("picture", is_complete)
        assert (complete["id"], complete["asked_again"]) == (ordered, 0)
    status, headers, tile = shared.ask("GET", f"/pictures/{ordered}/20.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    width, height, lines = pixels(tile)
    assert (width, height, len(lines)) == (64, 64, 64 * (1 + 3 * 64))
    assert len(set(lines)) > 8


def test_one_picture_at_a_time(shared: ExampleChild) -> None:
    with shared.events() as events:
        ordered = shared.post("/pictures", {"scene": "whole"})["id"]
        status, _, answer = shared.ask("POST", "/pictures", {"scene": "whole"})
        assert status == 409
        assert b"wait until it is complete" in answer
        events.wait_for("picture", lambda now: now["id"] == ordered and is_complete(now))


@pytest.mark.parametrize(
    "order", [{}, {"scene": "nowhere"}, {"scene": 1}, {"scene": "whole", "width": 10**9}, [], "whole"]
)
def test_an_order_that_is_none_is_refused(shared: ExampleChild, order: object) -> None:
    status, _, _ = shared.ask("POST", "/pictures", order)
    assert status == 422


@pytest.mark.parametrize("path", ["/pictures/0/0.png", "/page.py", "/..%2f__main__.py", "/docs", "/openapi.json"])
def test_what_is_not_there_is_not_found(shared: ExampleChild, path: str) -> None:
    assert shared.ask("GET", path)[0] == 404


# --- the hostile process ---


@pytest.mark.parametrize(
    ("attack", "refused"),
    [("replay", "handshake: authentication_failed"), ("forge", "connection: signature_invalid")],
)
def test_an_attack_is_refused_and_shown_and_harms_nobody(shared: ExampleChild, attack: str, refused: str) -> None:
    with shared.events() as events:
        events.wait_for("link", is_up)
        before = events.wait_for("link", is_up)  # the one before may be from before the last test ended
        result = shared.post(f"/attacks/{attack}")
        assert result["refused"] == [refused]
        assert "ended the connection" in result["saw"]
        counted = before["execution"]["refusals"].get(refused, 0) + 1
        after = events.wait_for("link", lambda now: now["execution"]["refusals"].get(refused) == counted)
        assert after["peer"] == before["peer"]  # the application's own connection is untouched
        honest = 1 if attack == "replay" else 0  # the recorded client had one tile rendered, the replay none
        assert after["execution"]["rendered"] == before["execution"]["rendered"] + honest
        events.wait_for("link", is_up)
        assert any(f"refused ({refused})" in line for line in events.log)


def test_an_unknown_attack_is_not_found(shared: ExampleChild) -> None:
    assert shared.ask("POST", "/attacks/other")[0] == 422


def test_nobody_can_be_attacked_while_the_execution_process_is_down(example: ExampleChild) -> None:
    with example.events() as events:
        events.wait_for("link", is_up)
        example.post("/execution/kill")
        status, _, answer = example.ask("POST", "/attacks/replay")
        assert status == 409
        assert b"not possible now" in answer


# --- the execution process dies ---


def test_a_picture_survives_that_its_process_is_killed_half_way(example: ExampleChild) -> None:
    with example.events() as events:
        first = events.wait_for("link", is_up)
        example.post("/pictures", {"scene": "whole"})
        events.wait_for("picture", lambda now: now["tiles"])
        example.post("/execution/kill")
        assert events.wait_for("process")["pid"] is None
        lost = events.wait_for("link", lambda now: not now["connected"])
        assert (lost["peer"], lost["key_id"], lost["execution"]) == (None, None, None)
        assert lost["ended"] == {"connection_lost": 1}
        example.post("/execution/start")
        again = events.wait_for("link", is_up)
        assert again["execution"]["pid"] != first["execution"]["pid"]
        assert again["key_id"] != first["key_id"]  # a key of its own, which the link has found
        complete = events.wait_for("picture", is_complete)
        assert complete["asked_again"] > 0


def test_what_is_ordered_while_the_process_is_down_waits_and_is_sent_by_the_link(example: ExampleChild) -> None:
    with example.events() as events:
        events.wait_for("link", is_up)
        example.post("/execution/kill")
        events.wait_for("link", lambda now: not now["connected"])
        example.post("/pictures", {"scene": "whole"})
        events.wait_for("link", lambda now: now["waiting"] == TILES)
        example.post("/execution/start")
        complete = events.wait_for("picture", is_complete)
        assert complete["asked_again"] == 0


def test_killing_and_starting_twice_is_as_once(example: ExampleChild) -> None:
    with example.events() as events:
        pid = events.wait_for("process", lambda now: now["pid"])["pid"]
        example.post("/execution/start")
        example.post("/execution/kill")
        example.post("/execution/kill")
        example.post("/execution/start")
        assert events.wait_for("process", lambda now: now["pid"] not in (None, pid))
        assert sum("was started" in line for line in events.log) <= 2


# --- who may ask ---


@pytest.mark.parametrize(
    "host",
    ["evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", None],
)
@pytest.mark.parametrize("path", ["/", "/events", "/page.js"])
def test_another_host_than_ours_is_refused(shared: ExampleChild, host: str | None, path: str) -> None:
    """DNS rebinding: a page of somebody else's whose name resolves to 127.0.0.1 sends its own name."""
    status, _, content = shared.ask("GET", path, Host=host and host.format(port=shared.port))
    assert status in (400, 421)  # 400: the web server itself refuses a request without Host
    assert b"<html" not in content


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "null", None],
)
@pytest.mark.parametrize("path", ["/pictures", "/attacks/forge", "/execution/kill", "/execution/start"])
def test_a_page_of_another_origin_can_do_nothing(shared: ExampleChild, origin: str | None, path: str) -> None:
    asked = {"scene": "whole"} if path == "/pictures" else None
    status, _, _ = shared.ask("POST", path, asked, Origin=origin and origin.format(port=shared.port))
    assert status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_page_of_another_origin_cannot_listen(shared: ExampleChild, origin: str) -> None:
    assert shared.ask("GET", "/events", Origin=origin)[0] == 403


def test_what_is_sent_is_short(shared: ExampleChild) -> None:
    assert shared.ask("POST", "/pictures", {"scene": "x" * 4096})[0] == 413
    assert shared.ask("POST", "/pictures", {"scene": "x" * 4000})[0] == 422
    for length in (b"", b"Content-Length: 5\r\n"):  # with both, the length is not what counts
        with socket.create_connection(("127.0.0.1", shared.port), timeout=TIMEOUT) as connection:
            head = f"POST /pictures HTTP/1.1\r\nHost: 127.0.0.1:{shared.port}\r\nOrigin: {shared.origin}\r\n"
            connection.sendall(head.encode() + length + b"Transfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_localhost_is_the_same_origin(shared: ExampleChild) -> None:
    host = f"localhost:{shared.port}"
    assert shared.ask("GET", "/", Host=host)[0] == 200
    assert shared.ask("POST", "/execution/start", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/style.css", "/page.js", "/icon.svg", "/nothing", "/pictures/0/0.png"])
def test_every_answer_tells_the_browser_to_load_nothing_from_elsewhere(shared: ExampleChild, path: str) -> None:
    _, headers, _ = shared.ask("GET", path)
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"


def test_it_listens_on_no_other_address(shared: ExampleChild) -> None:
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True, check=False).stdout
    if not listening:
        pytest.skip("needs /proc/net/tcp")
    lines = [line.split() for line in listening.splitlines() if f":{shared.port:04X} 00000000:0000 0A" in line]
    assert [address for _, address, *_ in lines] == [f"0100007F:{shared.port:04X}"]


# --- how it starts and ends ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_both_processes_in_order_though_a_page_is_open(tmp_path: Path, number: signal.Signals) -> None:
    with ExampleChild(tmp_path) as example, example.events() as events:
        pid = events.wait_for("link", is_up)["execution"]["pid"]
        assert list(tmp_path.iterdir())
        assert example.end(number) == 0
        events.wait_for_end()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert not list(tmp_path.iterdir())
        assert not re.search("Traceback|Warning|Error", example.log)
        assert "Server Shut Down" in example.log


def test_a_port_that_is_taken_or_none_is_said(shared: ExampleChild) -> None:
    for port, problem in [(str(shared.port), "Address already in use"), ("70000", "must be from 0 to 65535")]:
        done = subprocess.run(
            [sys.executable, "-m", "examples.web_execution", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 2
        assert problem in done.stderr


def test_the_page_of_the_documents_says_how_it_is_started() -> None:
    page = (ROOT / "docs" / "example.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^<!-- setup: example -->\n```sh\n(.*)\n```$", page, re.MULTILINE)
    assert "pip install -q -e '.[example]'" in command
    assert command.endswith("python -m examples.web_execution")
    files = set(re.findall(r"`([\w.]+\.(?:py|toml))`", page.partition("## How it is made")[2]))
    made = {path.name for path in (ROOT / "examples" / "web_execution").iterdir() if path.is_file()}
    assert made - {"__init__.py", "__main__.py"} <= files


def test_the_extra_is_named_where_it_is_missing() -> None:
    code = (
        "import runpy, sys; sys.modules['fastapi'] = None; runpy.run_module('examples.web_execution', None, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "fastapi is missing: pip install -e '.[example]', in the checkout\n"
