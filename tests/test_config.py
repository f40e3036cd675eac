"""The configuration: the table of section 8 of the design, row by row, and every mistake at once by its full path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from ipc_twisted.config import SECTION, ExecutionIPCConfig
from ipc_twisted.errors import Category, ConfigError

PREFIX = ".".join(SECTION)
MIB = 1024 * 1024
OVERHEAD = 65_582

DEFAULTS: dict[str, object] = {
    "transport": "tcp_local",
    "bind_host": "127.0.0.1",
    "bind_port": 0,
    "service": "execution_ipc",
    "max_payload_bytes": 16 * MIB,
    "auth.mode": "hmac",
    "auth.kdf": "hkdf_sha256",
    "auth.secret_mode": "generated",
    "auth.key_file": None,
    "auth.ttl_seconds": 30,
    "auth.nonce_cache_size": 1_000_000,
    "limits.handshake_timeout_seconds": 10,
    "limits.max_pending_handshakes": 128,
    "limits.max_connections": 512,
    "limits.frame_timeout_seconds": 30,
    "limits.max_inflight": 16_384,
    "limits.max_inflight_bytes": 64 * MIB,
    "limits.send_buffer_bytes": 64 * MIB,
    "limits.write_stall_seconds": 30,
    "limits.receipt_timeout_seconds": 60,
    "limits.drain_seconds": 10,
}
NO_INT: list[Any] = [None, True, False, 1.0, 1.5, math.nan, math.inf, "1", "", b"1", "\u0661", [1], {}]
NO_TEXT: list[Any] = [None, True, 0, 1.0, b"x", ["x"], {}]
HUGE = [2**63, 2**64, 10**400]
SECONDS = ([0.001, 1, 2.5, 86_400], [*NO_INT[:3], 0, -1, 0.0, -0.0, *NO_INT[5:], -math.inf, 10**400])
BAD_HOSTS: list[Any] = [
    *("localhost", "LOCALHOST", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "127.0.0.2"),
    *("::1", "::ffff:127.0.0.1", "[::1]", "0.0.0.0", "0", "", "*", "127.0.0.1.", "127.0.0.01", "example.org"),
    *(" 127.0.0.1", "127.0.0.1 ", "127.0.0.1\n", "127.0.0.1\0", "\uff11\uff12\uff17.0.0.1", "127\u30020.0.1"),
    *("127.0.0.1:0", "127.0.0.1/8", "127.0.0.1:interface=0.0.0.0", *NO_TEXT, b"127.0.0.1"),
]

ROWS: dict[str, tuple[list[Any], list[Any]]] = {
    # dotted name: good values, bad values
    "transport": (["tcp_local"], ["tcp", "TCP_LOCAL", "tcp_local ", "", "unix", *NO_TEXT]),
    "bind_host": (["127.0.0.1"], BAD_HOSTS),
    "bind_port": ([0, 1, 40001, 65_535], [-1, 65_536, *NO_INT, *HUGE]),
    "service": (
        ["s", "execution_ipc", "A-z.0_9", "s" * 64],
        ["", "s" * 65, "a b", "a/b", "..\\", "s\n", "\u017f", "caf\u00e9", *NO_TEXT],
    ),
    "allowed_kinds": (
        [["job.run"], ["a", "b"], ("a",), {"a"}, frozenset({"a"}), ["k" * 128], ["\u00e9" * 128]],
        [
            [],
            (),
            set(),
            "job.run",
            b"job.run",
            [""],
            ["k" * 129],
            ["a", ""],
            [1],
            [None],
            ["a", b"a"],
            None,
            {},
            {"a": 1},
        ],
    ),
    "max_payload_bytes": ([1, 65_536, 1024 * MIB], [0, -1, 1024 * MIB + 1, *NO_INT, *HUGE]),
    "auth.mode": (["hmac"], ["none", "HMAC", "", *NO_TEXT]),
    "auth.kdf": (["hkdf_sha256"], ["none", "None", "scrypt", "", *NO_TEXT]),
    "auth.secret_mode": (["static", "generated"], ["env", "Static", "", *NO_TEXT]),
    "auth.key_file": ([None, "/etc/link.key", "relative"], [True, 0, 1.0, b"/etc/link.key", ["x"], {}]),
    "auth.ttl_seconds": ([1, 30, 86_400], [0, -1, 86_401, *NO_INT, *HUGE]),
    "auth.nonce_cache_size": ([1, 10**9, 2**63], [0, -1, *NO_INT]),
    "limits.handshake_timeout_seconds": SECONDS,
    "limits.max_pending_handshakes": ([1, 10_000], [0, -1, *NO_INT]),
    "limits.max_connections": ([1, 10_000], [0, -1, *NO_INT]),
    "limits.frame_timeout_seconds": SECONDS,
    "limits.max_inflight": ([1, 2**32 - 1], [0, -1, 2**32, *NO_INT, *HUGE]),
    "limits.max_inflight_bytes": ([16 * MIB + OVERHEAD, 2**32 - 1], [0, -1, 2**32, *NO_INT, *HUGE]),
    "limits.send_buffer_bytes": ([16 * MIB + OVERHEAD, 2**40], [0, -1, *NO_INT]),
    "limits.write_stall_seconds": SECONDS,
    "limits.receipt_timeout_seconds": SECONDS,
    "limits.drain_seconds": SECONDS,
}


def section(settings: Mapping[str, object] = MappingProxyType({})) -> dict[str, Any]:
    """A section that is right but for these settings, by dotted name."""
    made: dict[str, Any] = {"allowed_kinds": ["job.run"]}
    for dotted, value in settings.items():
        *tables, name = dotted.split(".")
        inner = made
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[name] = value
    return made


def problems(mapping: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        ExecutionIPCConfig.from_mapping(mapping)
    assert caught.value.category is Category.CONFIG_INVALID
    return caught.value.problems


def value_of(config: ExecutionIPCConfig, dotted: str) -> object:
    found: object = config
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def test_the_table_has_every_setting() -> None:
    def names(struct: type[msgspec.Struct], under: str = "") -> set[str]:
        found = set()
        for field in msgspec.structs.fields(struct):
            inner = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
            found |= names(field.type, f"{field.name}.") if inner else {under + field.name}
        return found

    assert names(ExecutionIPCConfig) == set(ROWS) == {*DEFAULTS, "allowed_kinds"}


@pytest.mark.parametrize(("dotted", "default"), DEFAULTS.items())
def test_the_defaults_are_those_of_the_design(dotted: str, default: object) -> None:
    assert value_of(ExecutionIPCConfig.from_mapping(section()), dotted) == default


@pytest.mark.parametrize("dotted", ROWS)
def test_good_values_are_taken(dotted: str) -> None:
    for value in ROWS[dotted][0]:
        settings = {dotted: value}
        if dotted == "auth.key_file":
            settings |= {"auth.secret_mode": "static"}
        if dotted == "max_payload_bytes":
            settings |= {"limits.max_inflight_bytes": 2**32 - 1, "limits.send_buffer_bytes": 2**31}
        if dotted == "auth.key_file":
            settings |= {"auth.secret_mode": "static"}
        config = ExecutionIPCConfig.from_mapping(section(settings))
        found = value_of(config, dotted)
        assert found == (tuple(value) if dotted == "allowed_kinds" else value)


def test_a_key_file_that_would_not_be_used_is_a_mistake() -> None:
    """Who forgets ``static`` would otherwise serve under another key without a word."""
    (problem,) = problems(section({"auth.key_file": "/etc/link.key"}))
    assert problem.startswith("runtime.platform.execution_ipc.auth.key_file: ")
    assert "secret_mode = 'static'" in problem


@pytest.mark.parametrize("dotted", ROWS)
def test_bad_values_are_refused_by_their_full_path(dotted: str) -> None:
    for value in ROWS[dotted][1]:
        found = problems(section({dotted: value}))
        assert len(found) == 1, (value, found)
        assert found[0].startswith(f"{PREFIX}.{dotted}: "), found
        assert "must" in found[0]


@pytest.mark.attack(34)
@pytest.mark.parametrize("host", BAD_HOSTS)
def test_another_host_carries_bind_forbidden(host: object) -> None:
    """Nothing that a resolver or a parser could read as another address is even tried."""
    (problem,) = problems(section({"bind_host": host}))
    assert problem == f"{PREFIX}.bind_host: bind_forbidden: must be exactly '127.0.0.1', not {host!r}"


class Text(str):
    """Says that it is any text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


def test_a_host_that_claims_to_be_equal_is_refused_too() -> None:
    assert len(problems(section({"bind_host": Text("0.0.0.0")}))) == 1


def test_no_kdf_is_refused_with_what_to_write_instead() -> None:
    (problem,) = problems(section({"auth.kdf": "none"}))
    assert problem == (
        f"{PREFIX}.auth.kdf: must be 'hkdf_sha256' (every connection gets fresh keys; leave the key out, "
        "it is the default), not 'none'"
    )


UNKNOWN = [
    ({"allowed_kind": []}, "allowed_kind"),
    ({"tls": True}, "tls"),
    ({"auth": {"secret": "swordfish"}}, "auth.secret"),
    ({"limits": {"Max_connections": 1}}, "limits.Max_connections"),
    ({"": 1}, ""),
    ({1: 2}, "1"),
]


@pytest.mark.parametrize(("more", "dotted"), UNKNOWN)
def test_an_unknown_key_is_refused_at_every_level(more: dict[Any, Any], dotted: str) -> None:
    """A typo in a limit would else be no limit. What it was set to is not repeated: it may be a secret."""
    (problem,) = problems(section() | more)
    assert problem.startswith(f"{PREFIX}.{dotted}: unknown key; known here are ")
    assert "swordfish" not in problem


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {
        "bind_host": "0.0.0.0",
        "bind_port": "80",
        "colour": "red",
        "auth": {"ttl_seconds": 0, "kdf": "none", "pepper": 1},
        "limits": {"max_connections": 0, "drain_seconds": -1},
    }
    found = problems(wrong)
    assert [problem.split(": ")[0].removeprefix(PREFIX + ".") for problem in found] == [
        "allowed_kinds",
        "colour",
        "bind_host",
        "bind_port",
        "auth.pepper",
        "auth.kdf",
        "auth.ttl_seconds",
        "limits.max_connections",
        "limits.drain_seconds",
    ]


def test_the_error_has_a_line_for_each() -> None:
    with pytest.raises(ConfigError) as caught:
        ExecutionIPCConfig.from_mapping({"bind_port": -1})
    first, *lines = str(caught.value).split("\n")
    assert first == "config_invalid:"
    assert tuple(line.strip() for line in lines) == caught.value.problems
    assert len(lines) == 2


@pytest.mark.parametrize("table", ["auth", "limits"])
@pytest.mark.parametrize("value", [None, [], "x", 1, [("ttl_seconds", 3)]])
def test_a_table_that_is_none_is_refused(table: str, value: object) -> None:
    (problem,) = problems(section({table: value}))
    assert problem == f"{PREFIX}.{table}: must be a table of settings, not {value!r}"


@pytest.mark.parametrize("whole", [[], None, "x", 3, [("allowed_kinds", ["a"])]])
def test_what_is_no_table_at_all_is_refused(whole: object) -> None:
    assert problems(whole) == (f"{PREFIX}: must be a table of settings",)


def test_no_kinds_are_no_default() -> None:
    (problem,) = problems({})
    assert problem == f"{PREFIX}.allowed_kinds: is missing; list the kinds that may be received, such as ['job.run']"


# What hangs together

FITS = [  # max_payload_bytes, max_inflight_bytes, send_buffer_bytes, the names that are too small
    (1_000, 1_000 + OVERHEAD, 1_000 + OVERHEAD, []),
    (1_000, 999 + OVERHEAD, 1_000 + OVERHEAD, ["max_inflight_bytes"]),
    (1_000, 1_000 + OVERHEAD, 999 + OVERHEAD, ["send_buffer_bytes"]),
    (1_000, 1, 1, ["max_inflight_bytes", "send_buffer_bytes"]),
    (64 * MIB - OVERHEAD, None, None, []),
    (64 * MIB - OVERHEAD + 1, None, None, ["max_inflight_bytes", "send_buffer_bytes"]),
    (None, 16 * MIB + OVERHEAD - 1, None, ["max_inflight_bytes"]),
    (None, None, 16 * MIB + OVERHEAD - 1, ["send_buffer_bytes"]),
]


@pytest.mark.parametrize(("payload", "inflight", "buffer", "small"), FITS)
def test_one_largest_frame_must_fit(
    payload: int | None, inflight: int | None, buffer: int | None, small: list[str]
) -> None:
    """Else the largest payload could be configured and never sent. Defaults are held to it too."""
    settings = {"max_payload_bytes": payload, "limits.max_inflight_bytes": inflight, "limits.send_buffer_bytes": buffer}
    made = section({dotted: value for dotted, value in settings.items() if value is not None})
    if not small:
        ExecutionIPCConfig.from_mapping(made)
        return
    at_least = (payload or 16 * MIB) + OVERHEAD
    found = problems(made)
    assert [problem.split(": ")[0] for problem in found] == [f"{PREFIX}.limits.{name}" for name in small]
    assert all(f"at least {at_least} " in problem for problem in found)


def test_a_key_file_that_would_not_be_used_is_refused() -> None:
    """Who names one believes that the link has its key."""
    (problem,) = problems(section({"auth.key_file": "/etc/link.key"}))
    assert problem.startswith(f"{PREFIX}.auth.key_file: is not used with secret_mode 'generated'")


def test_a_bad_value_is_not_held_against_another() -> None:
    """What was meant is not known."""
    assert len(problems(section({"max_payload_bytes": "1000", "limits.max_inflight_bytes": 70_000}))) == 1
    assert len(problems(section({"max_payload_bytes": 1024 * MIB, "limits": "x"}))) == 1
