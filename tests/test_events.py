"""Every line of the log has a name and fields that others may rely on: the page lists exactly those of the code."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from ipc_twisted import SecureIPCProtocol
from tests.memory_link import MemoryServer
from tests.test_docs import read, sources, table

LEVELS = {"debug", "info", "warn", "error", "critical", "failure"}


def calls() -> Iterator[tuple[str, str, str | None, list[str]]]:
    """Where, a level, the name, the fields of each call that logs; for each of its levels."""
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            holder, called = ast.unparse(node.func.value), node.func.attr
            limited = holder == "self" and called in ("_warn", "_say")
            if not limited and not (holder == "_log" and called in LEVELS):
                continue
            if limited and any(keyword.arg is None for keyword in node.keywords):
                continue  # _warn itself, which hands its arguments on
            levels = [{"failure": "critical", "_warn": "warn"}.get(called, called)]
            by_limit = ["category", "left_out"] if limited else []
            if called == "_say":
                how, category = map(ast.unparse, node.args[:2])
                levels = re.findall(r"LogLevel\.(\w+)", how)
                by_limit = by_limit[category == "None" :]
            fields = {keyword.arg: keyword.value for keyword in node.keywords}
            name = fields.pop("event", None)
            value = str(name.value) if isinstance(name, ast.Constant) else None
            for level in levels:
                yield f"{module}:{node.lineno}", level, value, [*map(str, fields), *by_limit]


def test_every_line_has_a_name() -> None:
    assert [where for where, _, name, _ in calls() if not name] == []


def rows() -> list[list[str]]:
    """What the page says, without when."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for _, level, name, given in calls():
        levels[str(name)].add(level)
        fields[str(name)].update(given)
    order = ["debug", "info", "warn", "error", "critical"]
    return [
        [
            f"`{name}`",
            ", ".join(sorted(levels[name], key=order.index)),
            ", ".join(f"`{f}`" for f in sorted(fields[name])) or "–",
        ]
        for name in sorted(levels)
    ]


def test_the_page_lists_each_event_with_its_levels_and_fields() -> None:
    assert [row[:3] for row in table(read("docs/metrics.md"), "event", "level", "fields", "when")] == rows()


def test_an_event_has_the_fields_it_is_listed_with() -> None:
    listed = {
        name.strip("`"): fields
        for name, _, fields, _ in table(read("docs/metrics.md"), "event", "level", "fields", "when")
    }
    events: list[LogEvent] = []
    observer = events.append
    globalLogPublisher.addObserver(observer)  # type: ignore[arg-type]
    try:
        server = MemoryServer()
        link = server.connect()
        link.peer.send_envelope("other", b"", ts=int(server.wall()))
        link.protocol.send("job.run", b"")
        server.turn()
        assert isinstance(link.protocol, SecureIPCProtocol)
        link.protocol.close()
        link.peer.send_close()
        server.turn()
        link.peer.close()
        server.turn(2)
        stranger = server.accept()
        stranger.peer.send(b"GET / HTTP/1.1\r\n\r\n") if hasattr(stranger.peer, "send") else None
    finally:
        globalLogPublisher.removeObserver(observer)  # type: ignore[arg-type]
    seen = {event["event"]: event for event in events if "event" in event}
    assert {"connection_authenticated", "envelope_rejected", "connection_ended"} <= seen.keys()
    for name, event in seen.items():
        assert event["log_namespace"] == "ipc_twisted"
        assert isinstance(event["log_level"], type(LogLevel.info))
        for field in listed[name].replace("`", "").split(", "):
            assert field in event, (name, field)
