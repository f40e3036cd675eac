"""The receiver of sections 4.2, 4.3 and 5 as plain functions over one case: what a frame or a script ends in.

Slow and short on purpose: it is there to be read, and to check that each frozen case fails or passes for the reason it
states. It shares nothing with the package.
"""

from __future__ import annotations

import hmac
import struct
from typing import Any, NoReturn

from tests import wire_peer as wire
from tests.tiny_msgpack import hidden_pairs
from tests.vectors.common import Case
from tests.wire_peer import CLOSE, ENVELOPE, MAX_HEADER, MIN_LENGTH, RECEIPT, WireError

REJECTIONS = (
    *("kind_not_allowed", "expired", "not_yet_valid", "replayed", "outside_replay_window", "replay_cache_full"),
    "shutting_down",
)
CLOSES = (
    *("malformed", "payload_too_large", "signature_missing", "signature_invalid", "sequence_gap", "replayed"),
    *("credit_exceeded", "frame_timeout", "closed", "shutting_down", "too_many_connections", "key_unknown"),
    *("clock_stepped", "write_stalled", "receipt_timeout"),
)
"""The categories of section 7 that are told; all others a side finds by itself."""

# --- records ----------------------------------------------------------------------------------------------------------


def judge_record(case: Case, keys: dict[str, str]) -> dict[str, Any]:
    """What the receiver reads out of ``case["frame"]``, in the form of ``expect``.

    :param keys: ``k_c2s`` and ``k_s2c`` in hex.
    :raises WireError: with the category of the check that failed.
    """
    state = case["receiver"]
    data = bytes.fromhex(case["frame"])
    _check_lengths(data, state["max_payload_bytes"])
    content = data[4:]
    record = wire.open_content(bytes.fromhex(keys["k_" + case["direction"]]), content)
    if record.seq != state["expected_seq"]:
        raise WireError("replayed" if record.seq < state["expected_seq"] else "sequence_gap")
    if record.type == ENVELOPE:
        used, credit = state["used"], state["credit"]
        if used["messages"] + 1 > credit["messages"] or used["bytes"] + len(data) > credit["bytes"]:
            raise WireError("credit_exceeded")
    try:
        header, hidden = wire.unpack(record.header), hidden_pairs(record.header)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error
    if record.type == ENVELOPE:
        fields = _envelope(header, hidden)
        found = {"type": "envelope", "seq": record.seq, **fields, "payload": record.payload.hex()}
        return found | _admit(fields, state)
    found = {"seq": record.seq} | _told(record, header, case["sender"])
    return {"type": wire.KINDS_OF_RECORD[record.type]} | found


def _check_lengths(data: bytes, max_payload: int) -> None:
    """Steps 2 and 3, on no more than the bytes that they need."""
    (length,) = struct.unpack_from(">I", data)
    if length < MIN_LENGTH:
        raise WireError("malformed", "length")
    if length > MIN_LENGTH + MAX_HEADER + max_payload:
        raise WireError("payload_too_large", "length")
    (header_len,) = struct.unpack_from(">H", data, 45)
    if length - MIN_LENGTH - header_len > max_payload:
        raise WireError("payload_too_large", "payload")
    if length - MIN_LENGTH - header_len < 0:
        raise WireError("malformed", "header_len")
    if len(data) != 4 + length:
        raise AssertionError("the case is no whole frame and no reason to refuse it was found")


def _malformed(what: str) -> NoReturn:
    raise WireError("malformed", what)


def _text(value: Any, longest: int) -> bool:
    return type(value) is str and 1 <= len(value) <= longest


def _envelope(header: Any, hidden: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Step 6 for an ENVELOPE: section 3; ``hidden`` are the headers whose name comes again."""
    if type(header) is not list or len(header) != 7:
        _malformed("header")
    ts, nonce, kind, trace_id, reply_to, target, headers = header
    if type(ts) is not int or not 0 <= ts < 2**53:
        _malformed("ts")
    if not _text(nonce, 64):
        _malformed("nonce")
    if not _text(kind, 128):
        _malformed("kind")
    if not all(value is None or _text(value, 256) for value in (trace_id, reply_to)):
        _malformed("trace_id or reply_to")
    if type(target) is list:
        if not 1 <= len(target) <= 64 or not all(_text(item, 256) for item in target):
            _malformed("target list")
    elif target is not None and not _text(target, 256):
        _malformed("target")
    if type(headers) is not dict or len(headers) + len(hidden) > 64:
        _malformed("headers")
    if not all(type(part) is str for pair in (*hidden, *headers.items()) for part in pair):
        _malformed("a header")
    names = ("ts", "nonce", "kind", "trace_id", "reply_to", "target", "headers")
    return dict(zip(names, header, strict=True))


def _told(record: wire.Record, header: Any, sender: dict[str, Any]) -> dict[str, Any]:
    """Step 6 for the other types: 4.3, against what this side sent."""
    sent = [{"E": ENVELOPE, "R": RECEIPT, "C": CLOSE}[letter] for letter in sender["sent"]]
    if record.type not in (RECEIPT, CLOSE) or type(header) is not list or len(header) != 4 or record.payload:
        _malformed("type, header or payload")
    if record.type == RECEIPT:
        through, rejected, messages, octets = header
        before = sender["credit"]
        fault = wire.credit_fault((before["messages"], before["bytes"]), messages, octets)
        fields = {"through": through, "rejected": rejected, "messages": messages, "bytes": octets}
    else:
        category, through, rejected, cause = header
        legal = category in CLOSES and (cause is None or (type(cause) is int and cause >= 0))
        fault = None if legal else "category or cause"
        fields = {"category": category, "through": through, "rejected": rejected, "cause": cause}
    fault = fault or wire.receipt_fault(sent, sender["through"], through, rejected)
    if not fault and any(category not in REJECTIONS for _, category in rejected):
        fault = "a category that no receipt tells"
    if fault:
        _malformed(fault)
    return fields


def _admit(fields: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Steps 7 to 9; returns ``floor_after`` if the floor rose."""
    if fields["kind"] not in state["allowed_kinds"]:
        raise WireError("kind_not_allowed")
    if state["shutting_down"]:
        raise WireError("shutting_down")
    guard = Guard(state["nonce_cache_size"], state["ttl_seconds"])
    for nonce, ts in state["accepted_before"]:
        guard.admit(nonce, ts, state["now"])
    if guard.floor != state["floor"]:
        raise AssertionError(f"floor is {guard.floor} after what was accepted before")
    guard.admit(fields["nonce"], fields["ts"], state["now"])
    return {} if guard.floor == state["floor"] else {"floor_after": guard.floor}


class Guard:
    """Section 6, in the plainest way."""

    def __init__(self, size: int, ttl: int) -> None:
        self.size = size
        self.ttl = ttl
        self.floor = 0
        self.seen: dict[str, int] = {}

    def admit(self, nonce: str, ts: int, now: int) -> None:
        """Remember the nonce or raise."""
        if abs(now - ts) > self.ttl:
            raise WireError("expired" if ts < now else "not_yet_valid")
        if ts < self.floor:
            raise WireError("outside_replay_window")
        if nonce in self.seen:
            raise WireError("replayed")
        if len(self.seen) >= self.size:
            seconds = sorted(set(self.seen.values()))
            if len(seconds) <= 2:
                raise WireError("replay_cache_full")
            self.floor = seconds[0] + 1
            self.seen = {other: second for other, second in self.seen.items() if second >= self.floor}
        self.seen[nonce] = ts


# --- handshake --------------------------------------------------------------------------------------------------------


def judge_handshake(case: Case) -> str:
    """The category that the script of a reject case ends in.

    :raises AssertionError: when it ends well, or when this side sends something else than the script says.
    """
    try:
        _play(case)
    except WireError as error:
        return error.category
    raise AssertionError("nothing was refused")


def complete_handshake(case: Case) -> None:
    """Play a script that ends well.

    :raises WireError: when it is refused. :raises AssertionError: when this side sends something else, or less.
    """
    _play(case)


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:40001`` as host and port."""
    host, port = text.split(":")
    return host, int(port)


def _play(case: Case) -> None:
    server, client = parse_address(case["server"]), parse_address(case["client"])
    steps = list(case["steps"])
    role = _server if case["role"] == "server" else _client
    conversation = role(case, wire.endpoint(server, client), server == client)
    # Each side is a generator: it yields a message to send, or None to receive, and is handed what came.
    try:
        message = next(conversation)
        while True:
            step = steps.pop(0) if steps else {}
            if message is None:
                message = conversation.send(None if "eof" in step else bytes.fromhex(step["receive"]))
            elif step == {"send": wire.prefixed(message).hex()}:
                message = next(conversation)
            else:
                raise AssertionError(f"sends something else than {step}")
    except StopIteration:
        if steps:
            raise AssertionError(f"ends before {steps}") from None


def _message(data: bytes, size: int, *, more: bool) -> bytes:
    """The handshake message in ``data``; ``more`` says whether bytes may follow it."""
    if struct.unpack_from(">I", data)[0] != size:
        raise WireError("handshake_malformed", "length")
    if len(data) > 4 + size and not more:
        raise WireError("early_data")
    return data[4 : 4 + size]


def _keyring(case: Case) -> dict[bytes, bytes]:
    prks = [wire.prk(bytes.fromhex(secret)) for secret in case["secrets"]]
    return {wire.key_id(prk, case["service"]): prk for prk in prks}


def _own(case: Case) -> tuple[wire.Limits, bytes]:
    limits = case["own"]["limits"]
    ordered = (limits["max_payload_bytes"], limits["ttl_seconds"], limits["messages"], limits["bytes"])
    return ordered, bytes.fromhex(case["own"]["nonce"])


def _server(case: Case, ends: bytes, self_connected: bool) -> Any:
    limits, nonce = _own(case)
    m1 = _message((yield None), 64, more=False)
    key_id = wire.parse_m1(m1).key_id
    keyring = _keyring(case)
    if key_id not in keyring:
        raise WireError("key_unknown")
    head = wire.m2_head(bytes.fromhex(case["own"]["instance"]), limits, nonce)
    th = wire.transcript(case["service"], ends, m1, head)
    tag_s, tag_c = wire.tags(wire.connection_keys(keyring[key_id], th), th)
    yield wire.m2(head, tag_s)
    if not hmac.compare_digest(wire.parse_m3(_message((yield None), 40, more=True)), tag_c):
        raise WireError("authentication_failed")


def _client(case: Case, ends: bytes, self_connected: bool) -> Any:
    if self_connected:
        raise WireError("self_connect")
    limits, nonce = _own(case)
    ((key_id, prk),) = _keyring(case).items()
    m1 = wire.m1(key_id, limits, nonce)
    yield m1
    data = yield None
    if data is None:
        raise WireError("handshake_refused")
    m2 = wire.parse_m2(_message(data, 96, more=False))
    if m2.nonce == nonce:
        raise WireError("authentication_failed", "nonce_s is nonce_c")
    th = wire.transcript(case["service"], ends, m1, m2.head)
    tag_s, tag_c = wire.tags(wire.connection_keys(prk, th), th)
    if not hmac.compare_digest(m2.tag, tag_s):
        raise WireError("authentication_failed")
    yield wire.m3(tag_c)
