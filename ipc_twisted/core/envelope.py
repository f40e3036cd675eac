"""The envelope of the contract: nine fields, their types and their limits."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_HEADER_BYTES = 65_535
"""Limit of the encoded header (all fields but ``payload_bytes`` and ``sig``), bytes."""

Seconds = Annotated[int, Meta(ge=0, lt=2**53)]
Nonce = Annotated[str, Meta(min_length=1, max_length=64)]
Kind = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Names = Annotated[list[Name], Meta(min_length=1, max_length=64)]
Headers = Annotated[dict[str, str], Meta(max_length=64)]

HeaderFields = tuple[Seconds, Nonce, Kind, Name | None, Name | None, Name | Names | None, Headers]
"""The signed header in the order of the wire: ts, nonce, kind, trace_id, reply_to, target, headers. Lengths are
characters."""

FIELD_RULES = {
    "ts": (Seconds, "an int, unix seconds, 0 <= ts < 2**53"),
    "nonce": (Nonce, "a str of 1 to 64 characters"),
    "kind": (Kind, "a str of 1 to 128 characters"),
    "trace_id": (Name | None, "None or a str of 1 to 256 characters"),
    "reply_to": (Name | None, "None or a str of 1 to 256 characters"),
    "target": (Name | Names | None, "None, a str of 1 to 256 characters, or a list of 1 to 64 of them"),
    "headers": (Headers, "a dict of at most 64 str to str"),
}
"""Each field of the header with its type and its rule in words, in the order of the wire."""


class SecureEnvelope(msgspec.Struct, frozen=True):
    """One message as the contract has it. Immutable, compared by value; its ``repr`` shows neither payload nor
    signature.

    :ivar ts: unix seconds at which the sender queued it.
    :ivar nonce: the sender's, never the same twice.
    :ivar sig: 64 hex digits, HMAC-SHA256 of the canonical payload under the connection's key; ``""`` until signed. Of a
        received envelope it has been verified, and means nothing once its connection has ended.
    """

    ts: int
    nonce: str
    kind: str
    trace_id: str | None = None
    reply_to: str | None = None
    target: str | list[str] | None = None
    headers: dict[str, str] = {}
    payload_bytes: bytes = b""
    sig: str = ""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("", repr(self))]

    def __repr__(self) -> str:
        return (
            f"<SecureEnvelope kind={self.kind!r} trace_id={self.trace_id!r} reply_to={self.reply_to!r} "
            f"target={self.target!r} ts={self.ts} nonce={self.nonce!r} payload_bytes=<{len(self.payload_bytes)} bytes>>"
        )
