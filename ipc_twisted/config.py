"""``runtime.platform.execution_ipc.*`` in typed form.

The framework hands over a mapping; a TOML or JSON file works too. Every mistake is found at once, and named by its full
path. Defaults and rules are those of the tables below, and nowhere else.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from ipc_twisted.core.envelope import Kind
from ipc_twisted.core.framing import FRAME_OVERHEAD
from ipc_twisted.core.handshake import Limits
from ipc_twisted.errors import Category, ConfigError

SECTION = ("runtime", "platform", "execution_ipc")
LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535
DEFAULT_SERVICE = "execution_ipc"
MIB = 1024 * 1024
U32_MAX = 2**32 - 1
SPARE_DESCRIPTORS = 64
"""Descriptors that the rest of the process may need beside the connections."""

Service = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
_Positive = Annotated[int, Meta(gt=0)]
_PositiveSeconds = Annotated[float, Meta(gt=0)]
_U32 = Annotated[int, Meta(ge=1, le=U32_MAX)]


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``auth.*``."""

    mode: Literal["hmac"] = "hmac"
    kdf: Literal["hkdf_sha256"] = "hkdf_sha256"
    secret_mode: Literal["static", "generated"] = "generated"  # noqa: S105  # the name of a mode, not a secret
    key_file: str | None = None
    ttl_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 30
    nonce_cache_size: _Positive = 1_000_000


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``limits.*``."""

    handshake_timeout_seconds: _PositiveSeconds = 10
    max_pending_handshakes: _Positive = 128
    max_connections: _Positive = 512
    frame_timeout_seconds: _PositiveSeconds = 30
    max_inflight: _U32 = 16_384
    max_inflight_bytes: _U32 = 64 * MIB
    send_buffer_bytes: _Positive = 64 * MIB
    write_stall_seconds: _PositiveSeconds = 30
    receipt_timeout_seconds: _PositiveSeconds = 60
    drain_seconds: _PositiveSeconds = 10


class ExecutionIPCConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one link. Make it with :meth:`from_mapping` or :meth:`from_file`: only these check it.

    :ivar allowed_kinds: the kinds that this side takes, compared exactly.
    """

    allowed_kinds: tuple[str, ...]
    transport: Literal["tcp_local"] = "tcp_local"
    bind_host: str = LOOPBACK
    bind_port: Annotated[int, Meta(ge=0, le=MAX_PORT)] = 0
    service: Service = DEFAULT_SERVICE
    max_payload_bytes: Annotated[int, Meta(ge=1, le=1024 * MIB)] = 16 * MIB
    auth: AuthConfig = AuthConfig()
    limits: LimitsConfig = LimitsConfig()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ExecutionIPCConfig:
        """Check and convert a configuration.

        :param mapping: the section itself, or a whole configuration that holds it as
            ``runtime.platform.execution_ipc``.
        :raises ConfigError: one line for each mistake.
        """
        section: Any = mapping
        if isinstance(mapping, Mapping) and SECTION[0] in mapping:
            for at, name in enumerate(SECTION):
                if not isinstance(section, Mapping) or name not in section:
                    raise ConfigError([f"{'.'.join(SECTION[: at + 1])}: is missing; the settings of the link go there"])
                section = section[name]
        problems = _problems(section)
        if problems:
            raise ConfigError(problems)
        return msgspec.convert(section, cls)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ExecutionIPCConfig:
        """Read a TOML file, or a JSON file if its name ends in ``.json``.

        :raises ConfigError: also where the file cannot be read or parsed.
        """
        name = os.fspath(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
            mapping = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
        except OSError as problem:
            raise ConfigError([f"{name}: cannot be read: {problem.strerror}"]) from None
        except (ValueError, RecursionError) as problem:  # not UTF-8, not TOML, not JSON, nested too deep
            form = "JSON" if name.endswith(".json") else "TOML (JSON needs a name that ends in .json)"
            raise ConfigError([f"{name}: is no {form}: {problem}"]) from None
        return cls.from_mapping(mapping)

    @property
    def endpoint(self) -> str:
        """The endpoint description that is listened on."""
        return f"tcp:{self.bind_port}:interface={LOOPBACK}"

    @property
    def wire_limits(self) -> Limits:
        """What the other side is told in the handshake."""
        return Limits(
            self.max_payload_bytes, self.auth.ttl_seconds, self.limits.max_inflight, self.limits.max_inflight_bytes
        )

    @property
    def descriptors(self) -> int:
        """File descriptors that a server with this configuration may need."""
        return self.limits.max_connections + self.limits.max_pending_handshakes + SPARE_DESCRIPTORS


_RULES = {
    "transport": "must be 'tcp_local'",
    "bind_port": f"must be an int from 0 to {MAX_PORT} (0: any free port)",
    "service": "must be 1 to 64 characters of A-Z a-z 0-9 . _ -",
    "max_payload_bytes": "must be an int from 1 to 1073741824 (1 GiB)",
    "auth.mode": "must be 'hmac'",
    "auth.kdf": "must be 'hkdf_sha256' (every connection gets fresh keys; leave the key out, it is the default)",
    "auth.secret_mode": "must be 'static' (a key file) or 'generated' (made at start, gone at stop)",
    "auth.key_file": "must be the path of a key file, as text",
    "auth.ttl_seconds": "must be an int from 1 to 86400",
    "auth.nonce_cache_size": "must be an int above 0",
    "limits.max_pending_handshakes": "must be an int above 0",
    "limits.max_connections": "must be an int above 0",
    "limits.max_inflight": f"must be an int from 1 to {U32_MAX}",
    "limits.max_inflight_bytes": f"must be an int from 1 to {U32_MAX}",
    "limits.send_buffer_bytes": "must be an int above 0",
}
_SECONDS_RULE = "must be a number of seconds above 0"


def _problems(section: Any) -> list[str]:
    """Every mistake in the section, one line each."""
    problems: list[str] = []
    if not isinstance(section, Mapping):
        return [f"{_path()}: must be a table of settings"]
    if SECTION[-1] in section:
        problems.append(f"{SECTION[-1]}: the table is named [{_path()}]")
    if "allowed_kinds" not in section:
        problems.append(
            f"{_path('allowed_kinds')}: is missing; list the kinds that may be received, such as ['job.run']"
        )
    good = _check_fields(ExecutionIPCConfig, section, (), problems)
    if good.get("auth.key_file") is not None and good.get("auth.secret_mode") == "generated":
        problems.append(
            f"{_path('auth', 'key_file')}: is not used with secret_mode 'generated', which is the default; "
            "set auth.secret_mode = 'static', or leave the key file out"
        )
    for name in ("max_inflight_bytes", "send_buffer_bytes"):
        payload, limit = good.get("max_payload_bytes"), good.get(f"limits.{name}")
        if payload is None or limit is None:
            continue  # wrong in itself
        at_least = payload + FRAME_OVERHEAD
        if limit < at_least:
            problems.append(
                f"{_path('limits', name)}: must hold one largest frame, at least {at_least} "
                f"(max_payload_bytes {payload} and {FRAME_OVERHEAD} of overhead); raise it, or lower max_payload_bytes"
            )
    return problems


def _check_fields(
    struct: type[msgspec.Struct], values: Mapping[str, Any], under: tuple[str, ...], problems: list[str]
) -> dict[str, Any]:
    """Check the values of one table; return the good ones, defaults among them, by their dotted name."""
    fields = _fields(struct)
    good: dict[str, Any] = {}
    for name in values:
        if name not in fields:
            problems.append(f"{_path(*under, str(name))}: unknown key; known here are {', '.join(fields)}")
    for name, field in fields.items():
        value = values.get(name, UNSET)
        dotted = ".".join((*under, name))
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            if value is UNSET or isinstance(value, Mapping):
                good |= _check_fields(field.type, {} if value is UNSET else value, (*under, name), problems)
            else:
                problems.append(f"{_path(*under, name)}: must be a table of settings, not {value!r}")
        elif value is UNSET or value is field.default:
            good[dotted] = field.default
        elif problem := _problem(dotted, field.type, value):
            problems.append(f"{_path(*under, name)}: {problem}")
        else:
            good[dotted] = value
    return good


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """By name. To find them takes longer than all checks, and every ``connect()`` checks."""
    return {field.name: field for field in msgspec.structs.fields(struct)}


def _problem(dotted: str, type_: Any, value: Any) -> str | None:
    if dotted == "bind_host":
        # Nothing that a resolver or parser could read as another address: exactly this text.
        if type(value) is str and value == LOOPBACK:
            return None
        return f"{Category.BIND_FORBIDDEN}: must be exactly '{LOOPBACK}', not {value!r}"
    if dotted == "allowed_kinds":
        if isinstance(value, list | tuple | set | frozenset) and value:
            bad = [kind for kind in value if not _fits(kind, Kind)]
            return f"must be kinds of 1 to 128 characters, not {bad[0]!r}" if bad else None
        return f"must be a list of at least one kind, such as ['job.run'], not {value!r}"
    if _fits(value, type_):
        return None
    return f"{_RULES.get(dotted, _SECONDS_RULE)}, not {value!r}"


def _fits(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError:
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _path(*names: str) -> str:
    return ".".join((*SECTION, *names))
