"""A second implementation of wire protocol 1, from section 4 of the design alone: pure functions, bytes in, bytes out.

It imports nothing of the package, so that the tests compare two readings of the design and not one with itself. The
sockets are in :mod:`tests.raw_peer`, the frozen cases in ``tests/vectors/``. Nothing here judges freshness, kinds or
credit; :mod:`tests.vectors.reference` does.

All integers on the wire are big endian. A *content* is a frame without its ``u32`` length: a handshake message, or
``sig[32] ‖ body`` of a record.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any, NamedTuple, TypeAlias

from tests.tiny_msgpack import Raw as Raw
from tests.tiny_msgpack import pack as pack
from tests.tiny_msgpack import unpack as unpack

#: Record types.
ENVELOPE, RECEIPT, CLOSE = 1, 2, 3
KINDS_OF_RECORD = {ENVELOPE: "envelope", RECEIPT: "receipt", CLOSE: "close"}

#: ``length`` of a record: sig, type, seq and header_len; then at most this much header, then the payload.
MIN_LENGTH = 32 + 1 + 8 + 2
MAX_HEADER = 65_535
MAX_REJECTIONS = 1_000

#: (max_payload_bytes, ttl_seconds, messages, bytes): what one side takes, the last two as first credit.
Limits: TypeAlias = tuple[int, int, int, int]
Address: TypeAlias = tuple[str, int]


class WireError(Exception):
    """What the other side sent breaks section 4.

    :ivar category: the category of section 7.
    """

    def __init__(self, category: str, detail: str = "") -> None:
        super().__init__(f"{category}: {detail}" if detail else category)
        self.category = category


class Keys(NamedTuple):
    """The four connection keys, 32 bytes each."""

    fin_s: bytes
    fin_c: bytes
    c2s: bytes
    s2c: bytes


class M1(NamedTuple):
    """What the client says first; ``key_id`` 8 bytes, ``nonce`` 32."""

    key_id: bytes
    limits: Limits
    nonce: bytes


class M2(NamedTuple):
    """The server's answer; ``instance`` 8 bytes, ``nonce`` and ``tag`` 32, ``head`` the 64 bytes before the tag."""

    instance: bytes
    limits: Limits
    nonce: bytes
    tag: bytes
    head: bytes


class Record(NamedTuple):
    """The parts of a record body; nothing about them is checked but their lengths."""

    type: int
    seq: int
    header: bytes
    payload: bytes


# --- 4.1 keys ---------------------------------------------------------------------------------------------------------


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def lp(data: bytes) -> bytes:
    """``LP(x)``: a ``u16`` length and ``x``, which has at most 65,535 bytes."""
    return struct.pack(">H", len(data)) + data


def prk(secret: bytes) -> bytes:
    """HKDF-Extract (RFC 5869, 2.2) under the fixed salt; 32 bytes."""
    return _hmac(b"ipc_twisted/1 extract", secret)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869, 2.3); ``length`` at most 8,160 bytes."""
    okm = block = b""
    for counter in range(1, -(-length // 32) + 1):
        block = _hmac(prk, block + info + bytes([counter]))
        okm += block
    return okm[:length]


def key_id(prk: bytes, service: str) -> bytes:
    """The 8 bytes that name a key for one service."""
    return hkdf_expand(prk, b"ipc_twisted/1 key id\0" + lp(service.encode()), 8)


# --- 4.2 handshake ----------------------------------------------------------------------------------------------------

_MAGIC, _VERSION = b"IPCT", 1
_SIZES = {1: 64, 2: 96, 3: 40}


def prefixed(message: bytes) -> bytes:
    """A handshake message as a frame: ``u32`` length, then the message."""
    return struct.pack(">I", len(message)) + message


def _preamble(message_type: int) -> bytes:
    return struct.pack(">4sBBH", _MAGIC, _VERSION, message_type, 0)


def _check(message: bytes, message_type: int) -> None:
    """Length, magic, version, type, flags, in the order in which they come over the wire."""
    if len(message) != _SIZES[message_type]:
        raise WireError("handshake_malformed", f"M{message_type} of {len(message)} bytes")
    magic, version, found, flags = struct.unpack_from(">4sBBH", message)
    if magic != _MAGIC:
        raise WireError("handshake_malformed", "magic")
    if version != _VERSION:
        raise WireError("version_unsupported", f"version {version}")
    if found != message_type or flags:
        raise WireError("handshake_malformed", f"type {found}, flags {flags} where M{message_type} belongs")


def m1(key_id: bytes, limits: Limits, nonce: bytes) -> bytes:
    """M1, 64 bytes."""
    return _preamble(1) + key_id + struct.pack(">4I", *limits) + nonce


def parse_m1(message: bytes) -> M1:
    """The fields of M1.

    :raises WireError: ``handshake_malformed`` or ``version_unsupported``; also of the other two parsers.
    """
    _check(message, 1)
    max_payload, ttl, messages, octets = struct.unpack_from(">4I", message, 16)
    return M1(message[8:16], (max_payload, ttl, messages, octets), message[32:64])


def m2_head(instance: bytes, limits: Limits, nonce: bytes) -> bytes:
    """M2 up to its tag, 64 bytes: the part that the transcript covers."""
    return _preamble(2) + instance + struct.pack(">4I", *limits) + nonce


def m2(head: bytes, tag_s: bytes) -> bytes:
    """M2, 96 bytes."""
    return head + tag_s


def parse_m2(message: bytes) -> M2:
    """The fields of M2; its tag is not checked."""
    _check(message, 2)
    max_payload, ttl, messages, octets = struct.unpack_from(">4I", message, 16)
    return M2(message[8:16], (max_payload, ttl, messages, octets), message[32:64], message[64:], message[:64])


def m3(tag_c: bytes) -> bytes:
    """M3, 40 bytes."""
    return _preamble(3) + tag_c


def parse_m3(message: bytes) -> bytes:
    """The tag that M3 carries, unchecked."""
    _check(message, 3)
    return message[8:]


def endpoint(server: Address, client: Address) -> bytes:
    """Both ends of the connection as one side sees them, 12 bytes."""
    return b"".join(IPv4Address(host).packed + struct.pack(">H", port) for host, port in (server, client))


def transcript(service: str, endpoint: bytes, m1: bytes, m2_head: bytes) -> bytes:
    """``th``, 32 bytes; ``m1`` and ``m2_head`` without their length prefix."""
    parts = (b"ipc_twisted/1 transcript", service.encode(), endpoint, m1, m2_head)
    return hashlib.sha256(b"".join(map(lp, parts))).digest()


def connection_keys(prk: bytes, th: bytes) -> Keys:
    """The keys of the connection whose transcript is ``th``."""
    okm = hkdf_expand(prk, b"ipc_twisted/1 connection keys\0" + th, 128)
    return Keys(okm[:32], okm[32:64], okm[64:96], okm[96:])


def tags(keys: Keys, th: bytes) -> tuple[bytes, bytes]:
    """``(tag_s, tag_c)``, 32 bytes each."""
    tag_s = _hmac(keys.fin_s, b"server finished\0" + th)
    return tag_s, _hmac(keys.fin_c, b"client finished\0" + th + tag_s)


# --- 4.3 records ------------------------------------------------------------------------------------------------------


def record_body(
    record_type: int, seq: int, header: bytes, payload: bytes = b"", *, header_len: int | None = None
) -> bytes:
    """The body of any record; ``header_len`` other than None is written in place of the true one."""
    claimed = len(header) if header_len is None else header_len
    return struct.pack(">BQH", record_type, seq, claimed) + header + payload


def envelope_body(seq: int, header_fields: Sequence[object] | bytes, payload: bytes) -> bytes:
    """The canonical payload of an envelope.

    :param header_fields: ``ts, nonce, kind, trace_id, reply_to, target, headers``, or the header's bytes as they are.
    """
    header = header_fields if isinstance(header_fields, bytes) else pack(list(header_fields))
    return record_body(ENVELOPE, seq, header, payload)


def receipt_body(seq: int, through: int, rejected: Sequence[tuple[int, str]], messages: int, octets: int) -> bytes:
    """The body of a RECEIPT; ``messages`` and ``octets`` are credit since the connection began."""
    return record_body(RECEIPT, seq, pack([through, list(rejected), messages, octets]))


def close_body(seq: int, category: str, through: int, rejected: Sequence[tuple[int, str]], cause: int | None) -> bytes:
    """The body of a CLOSE; ``cause`` is the sequence number expected where the fault lay."""
    return record_body(CLOSE, seq, pack([category, through, list(rejected), cause]))


def sign(key: bytes, body: bytes) -> bytes:
    """The signature of a record body, 32 bytes; as 64 hex digits it is the contract's ``sig``."""
    return _hmac(key, body)


def frame(key: bytes, body: bytes, sig: bytes | None = None) -> bytes:
    """A record as it goes out; ``sig`` other than None is written in place of the true one."""
    return prefixed((sign(key, body) if sig is None else sig) + body)


def split_frames(stream: bytes) -> tuple[list[bytes], bytes]:
    """The contents of all whole frames in ``stream``, and the bytes left over. Any length is taken."""
    contents: list[bytes] = []
    at = 0
    while len(stream) - at >= 4:
        (length,) = struct.unpack_from(">I", stream, at)
        if len(stream) - at - 4 < length:
            break
        contents.append(stream[at + 4 : at + 4 + length])
        at += 4 + length
    return contents, stream[at:]


def parse_body(body: bytes) -> Record:
    """The parts of a record body.

    :raises WireError: ``malformed`` when it is too short for its own ``header_len``.
    """
    if len(body) < 11:
        raise WireError("malformed", f"body of {len(body)} bytes")
    record_type, seq, header_len = struct.unpack_from(">BQH", body)
    if len(body) < 11 + header_len:
        raise WireError("malformed", "header_len beyond the body")
    return Record(record_type, seq, body[11 : 11 + header_len], body[11 + header_len :])


def open_content(key: bytes, content: bytes) -> Record:
    """The record in ``sig ‖ body``, once its signature holds.

    :raises WireError: ``malformed`` (too short), ``signature_missing`` (all zero) or ``signature_invalid``.
    """
    if len(content) < MIN_LENGTH:
        raise WireError("malformed", f"frame of {len(content)} bytes")
    record = parse_body(content[32:])
    if content[:32] == bytes(32):
        raise WireError("signature_missing")
    if not hmac.compare_digest(content[:32], sign(key, content[32:])):
        raise WireError("signature_invalid")
    return record


def receipt_fault(sent: Sequence[int], before: int, through: Any, rejected: Any) -> str | None:
    """What is wrong with ``through`` and the rejections of a RECEIPT or CLOSE, None if nothing.

    :param sent: the types of the records sent so far, by seq.
    :param before: the previous ``through``, −1 at first.
    """
    if type(through) is not int or not before <= through < len(sent):
        return f"through is {through!r} after {before}, with {len(sent)} records sent"
    if not isinstance(rejected, list) or len(rejected) > MAX_REJECTIONS:
        return "rejections are no list, or too many"
    last = before
    for item in rejected:
        if not isinstance(item, list) or [type(part) for part in item] != [int, str]:
            return f"a rejection is {item!r}"
        if not last < item[0] <= through:
            return f"rejected seq {item[0]} is not between {last} and {through}"
        if sent[item[0]] != ENVELOPE:
            return f"rejected seq {item[0]} is no envelope"
        last = item[0]
    return None


def credit_fault(before: tuple[int, int], messages: Any, octets: Any) -> str | None:
    """What is wrong with the credit of a RECEIPT, None if nothing; ``before`` is the previous (messages, bytes)."""
    if type(messages) is not int or type(octets) is not int:
        return f"credit is {messages!r} messages, {octets!r} bytes"
    if messages < before[0] or octets < before[1]:
        return f"credit fell from {before} to {(messages, octets)}"
    return None
