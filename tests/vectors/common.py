"""What all record cases start from, and how a case is put together; see the README of this folder for the format."""

from __future__ import annotations

from typing import Any, TypeAlias

from tests.wire_peer import (
    CLOSE,
    ENVELOPE,
    RECEIPT,
    Keys,
    Limits,
    connection_keys,
    endpoint,
    frame,
    key_id,
    m1,
    m2_head,
    pack,
    prk,
    record_body,
    tags,
    transcript,
)

Case: TypeAlias = dict[str, Any]

# The inputs of the frozen vector, section 4.4.
SECRET = bytes(range(32))
SERVICE = "execution_ipc"
SERVER = ("127.0.0.1", 40001)
CLIENT = ("127.0.0.1", 50000)
LIMITS: Limits = (16_777_216, 30, 1_024, 67_108_864)
INSTANCE = bytes.fromhex("a1a2a3a4a5a6a7a8")
NONCE_C = b"\xc1" * 32
NONCE_S = b"\x51" * 32
OTHER_SECRET = bytes(range(32, 64))
NOW = 1_763_900_000

PRK = prk(SECRET)
M1_MESSAGE = m1(key_id(PRK, SERVICE), LIMITS, NONCE_C)
M2_HEAD = m2_head(INSTANCE, LIMITS, NONCE_S)
TH = transcript(SERVICE, endpoint(SERVER, CLIENT), M1_MESSAGE, M2_HEAD)
KEYS: Keys = connection_keys(PRK, TH)
TAG_S, TAG_C = tags(KEYS, TH)

#: Categories of steps 7 to 9; all others end the connection. ``replayed`` is both and said by the case.
_MESSAGE_ONLY = {
    "kind_not_allowed",
    "shutting_down",
    "expired",
    "not_yet_valid",
    "outside_replay_window",
    "replay_cache_full",
}


def address(end: tuple[str, int]) -> str:
    """``127.0.0.1:40001``"""
    return f"{end[0]}:{end[1]}"


def named_limits(limits: Limits) -> dict[str, int]:
    """``limits`` of M1 and M2 by name."""
    return dict(zip(("max_payload_bytes", "ttl_seconds", "messages", "bytes"), limits, strict=True))


def receiver(**changes: Any) -> dict[str, Any]:
    """The state of the side that judges the frame, in what concerns the records that come in."""
    state: dict[str, Any] = {
        "expected_seq": 0,
        "now": NOW,
        "ttl_seconds": 30,
        "max_payload_bytes": 16_777_216,
        "allowed_kinds": ["job.run"],
        "credit": {"messages": 1_024, "bytes": 67_108_864},
        "used": {"messages": 0, "bytes": 0},
        "nonce_cache_size": 1_000,
        "accepted_before": [],
        "floor": 0,
        "shutting_down": False,
    }
    return _changed(state, changes)


def sender(**changes: Any) -> dict[str, Any]:
    """The state of the same side in what concerns the records it sent, which RECEIPTs and CLOSEs are about."""
    state = {"sent": "", "through": -1, "credit": {"messages": 1_024, "bytes": 67_108_864}}
    return _changed(state, changes)


def _changed(state: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    unknown = changes.keys() - state.keys()
    if unknown:
        raise KeyError(f"no such state: {sorted(unknown)}")
    return state | changes


def fields(**changes: Any) -> dict[str, Any]:
    """The header of an envelope by field, the plainest one unless told."""
    plain = {
        "ts": NOW,
        "nonce": "n-1",
        "kind": "job.run",
        "trace_id": None,
        "reply_to": None,
        "target": None,
        "headers": {},
    }
    return _changed(plain, changes)


def signed(
    record_type: int,
    header: bytes,
    payload: bytes = b"",
    *,
    seq: int = 0,
    direction: str = "c2s",
    key: bytes | None = None,
    sig: bytes | None = None,
    header_len: int | None = None,
) -> bytes:
    """A frame of the frozen connection; everything that is not None takes the place of what belongs there."""
    right_key: bytes = getattr(KEYS, direction)
    body = record_body(record_type, seq, header, payload, header_len=header_len)
    return frame(right_key if key is None else key, body, sig)


def record_case(
    name: str,
    description: str,
    data: bytes,
    *,
    direction: str = "c2s",
    state: dict[str, Any] | None = None,
    outgoing: dict[str, Any] | None = None,
    expect: dict[str, Any] | None = None,
    category: str | None = None,
    ends: bool | None = None,
) -> Case:
    """One case: an accept case has ``expect``, a reject case ``category``."""
    case: Case = {
        "id": name,
        "description": description,
        "direction": direction,
        "receiver": receiver() if state is None else state,
        "sender": sender() if outgoing is None else outgoing,
        "frame": data.hex(),
    }
    if category is None:
        return case | {"expect": expect}
    return case | {
        "category": category,
        "ends_connection": category not in _MESSAGE_ONLY if ends is None else ends,
    }


def envelope(
    name: str,
    description: str,
    *,
    state: dict[str, Any] | None = None,
    header: bytes | None = None,
    payload: bytes = b"",
    reads: dict[str, Any] | None = None,
    category: str | None = None,
    ends: bool | None = None,
    direction: str = "c2s",
    seq: int | None = None,
    wire: dict[str, Any] | None = None,
    **changes: Any,
) -> Case:
    """A case of one ENVELOPE.

    :param header: the header's bytes in place of the fields.
    :param reads: what the receiver makes of fields that are spelt in another way.
    :param seq: the expected one unless told.
    :param wire: further keywords of :func:`signed`.
    :param changes: of :func:`fields`.
    """
    state = receiver() if state is None else state
    seq = state["expected_seq"] if seq is None else seq
    values = fields(**changes)
    raw = pack(list(values.values())) if header is None else header
    data = signed(ENVELOPE, raw, payload, seq=seq, direction=direction, **(wire or {}))
    expect = {"type": "envelope", "seq": seq, **values, **(reads or {}), "payload": payload.hex()}
    return record_case(
        name, description, data, direction=direction, state=state, expect=expect, category=category, ends=ends
    )


def receipt(
    name: str,
    description: str,
    through: object = -1,
    rejected: object = (),
    messages: object = 1_024,
    octets: object = 67_108_864,
    *,
    header: bytes | None = None,
    payload: bytes = b"",
    outgoing: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    reads: dict[str, Any] | None = None,
    category: str | None = None,
    seq: int | None = None,
    wire: dict[str, Any] | None = None,
) -> Case:
    """A case of one RECEIPT from the server, judged by the client."""
    state = receiver() if state is None else state
    seq = state["expected_seq"] if seq is None else seq
    raw = pack([through, rejected, messages, octets]) if header is None else header
    data = signed(RECEIPT, raw, payload, seq=seq, direction="s2c", **(wire or {}))
    expect = {"type": "receipt", "seq": seq, "through": through, "rejected": rejected, "messages": messages}
    expect |= {"bytes": octets} | (reads or {})
    return record_case(
        name, description, data, direction="s2c", state=state, outgoing=outgoing, expect=expect, category=category
    )


def close(
    name: str,
    description: str,
    what: object = "closed",
    through: object = -1,
    rejected: object = (),
    cause: object = None,
    *,
    header: bytes | None = None,
    payload: bytes = b"",
    outgoing: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    category: str | None = None,
) -> Case:
    """A case of one CLOSE from the server, judged by the client."""
    state = receiver() if state is None else state
    raw = pack([what, through, rejected, cause]) if header is None else header
    data = signed(CLOSE, raw, payload, seq=state["expected_seq"], direction="s2c")
    expect = {"type": "close", "seq": state["expected_seq"], "category": what, "through": through}
    expect |= {"rejected": rejected, "cause": cause}
    return record_case(
        name, description, data, direction="s2c", state=state, outgoing=outgoing, expect=expect, category=category
    )
