"""The configuration: where it may come from, and what is made of it. Its settings are in ``test_config.py``."""

from __future__ import annotations

import json
from collections import ChainMap
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from ipc_twisted.config import ExecutionIPCConfig
from ipc_twisted.core.handshake import Limits
from ipc_twisted.errors import ConfigError
from tests.test_config import MIB, PREFIX, problems, section


def test_the_section_is_found_in_a_whole_configuration() -> None:
    whole = {"runtime": {"platform": {"execution_ipc": section({"bind_port": 1}), "other": 1}}, "more": 2}
    assert ExecutionIPCConfig.from_mapping(whole).bind_port == 1


@pytest.mark.parametrize(
    ("whole", "missing"),
    [
        ({"runtime": {}}, "runtime.platform"),
        ({"runtime": None}, "runtime.platform"),
        ({"runtime": {"platform": {}}}, PREFIX),
        ({"runtime": {"platform": []}}, PREFIX),
    ],
)
def test_a_section_that_is_missing_is_said(whole: dict[str, Any], missing: str) -> None:
    assert problems(whole) == (f"{missing}: is missing; the settings of the link go there",)


@pytest.mark.parametrize("kind", [MappingProxyType, ChainMap, dict])
def test_any_mapping_will_do(kind: Any) -> None:
    config = ExecutionIPCConfig.from_mapping(kind(section({"auth.ttl_seconds": 5})))
    assert config.auth.ttl_seconds == 5
    nested = kind(section({"auth": kind({"ttl_seconds": 6})}))
    assert ExecutionIPCConfig.from_mapping(nested).auth.ttl_seconds == 6


@pytest.mark.attack(30)
def test_it_cannot_be_changed_after_it_was_checked() -> None:
    """Nor through what it was made of."""
    kinds = ["job.run"]
    config = ExecutionIPCConfig.from_mapping({"allowed_kinds": kinds})
    kinds.append("job.drop")
    assert config.allowed_kinds == ("job.run",)
    with pytest.raises(AttributeError):
        config.bind_port = 1  # type: ignore[misc]


TOML = """
[runtime.platform.execution_ipc]
allowed_kinds = ["job.run"]
[runtime.platform.execution_ipc.auth]
ttl_seconds = 7
"""


def test_toml_and_json_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "b.json").write_text(json.dumps(section({"auth.ttl_seconds": 7})))
    for name in ("a.toml", "b.json"):
        assert ExecutionIPCConfig.from_file(tmp_path / name).auth.ttl_seconds == 7
        assert ExecutionIPCConfig.from_file(str(tmp_path / name)).auth.ttl_seconds == 7


FILES = {
    "bad.toml": b"allowed_kinds = ",
    "twice.toml": b"a = 1\na = 2",
    "latin.toml": b"# \xe9",
    "deep.toml": b"a = " + b"[" * 20_000,
    "bad.json": b"{",
    "latin.json": b'"\xe9"',
    "deep.json": b"[" * 200_000,
    "list.json": b"[]",
    "nan.json": b'{"allowed_kinds": ["a"], "limits": {"drain_seconds": NaN}}',
}


@pytest.mark.parametrize("name", [*FILES, "none.toml", "folder.toml"])
def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in FILES:
        path.write_bytes(FILES[name])
    elif name.startswith("folder"):
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        ExecutionIPCConfig.from_file(path)
    assert len(caught.value.problems) == 1


def test_a_file_with_a_name_that_cannot_be_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        ExecutionIPCConfig.from_file("a\0b")


# What is made of it


def test_the_endpoint_names_loopback_and_nothing_else() -> None:
    assert ExecutionIPCConfig.from_mapping(section({"bind_port": 40001})).endpoint == "tcp:40001:interface=127.0.0.1"
    assert ExecutionIPCConfig.from_mapping(section()).endpoint == "tcp:0:interface=127.0.0.1"


def test_the_peer_is_told_the_limits_that_were_configured() -> None:
    config = ExecutionIPCConfig.from_mapping(section({"limits.max_inflight": 5, "max_payload_bytes": 9}))
    assert config.wire_limits == Limits(9, 30, 5, 64 * MIB)


def test_the_descriptors_leave_room_for_the_rest_of_the_process() -> None:
    assert ExecutionIPCConfig.from_mapping(section()).descriptors == 512 + 128 + 64


def test_a_table_of_a_wrong_name_is_told_the_right_one() -> None:
    with pytest.raises(ConfigError) as raised:
        ExecutionIPCConfig.from_mapping({"execution_ipc": {"allowed_kinds": ["job.run"]}})
    assert "execution_ipc: the table is named [runtime.platform.execution_ipc]" in raised.value.problems
