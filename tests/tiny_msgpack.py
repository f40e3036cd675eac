"""MessagePack, as much of it as the wire protocol uses, from the specification at https://msgpack.org.

Written apart from the package (which uses ``msgspec``), so that a fault of one cannot hide in the other. Encodes
``None``, ``bool``, ``int``, ``float``, ``str``, ``bytes``, ``list``, ``tuple`` and ``dict``; refuses extension types.
"""

from __future__ import annotations

import struct
from typing import Any

#: Containers deeper than this are refused; the protocol itself needs three levels.
MAX_DEPTH = 32


class Raw(bytes):
    """MessagePack already encoded: :func:`pack` splices it in as it is. Tests forge other spellings with it."""


def _sized(count: int, fix: tuple[int, int] | None, codes: tuple[int | None, int, int]) -> bytes:
    """The shortest prefix that states ``count``; ``fix`` is (first code, how many counts it covers)."""
    if fix is not None and count < fix[1]:
        return bytes([fix[0] + count])
    for code, form, limit in zip(codes, ("B", "H", "I"), (1 << 8, 1 << 16, 1 << 32), strict=True):
        if code is not None and count < limit:
            return struct.pack(">B" + form, code, count)
    raise ValueError("too large for MessagePack")


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b" if value < 0 else ">B", value)
    if value >= 0:
        forms = ((0xCC, "B", 1 << 8), (0xCD, "H", 1 << 16), (0xCE, "I", 1 << 32), (0xCF, "Q", 1 << 64))
    else:
        forms = ((0xD0, "b", 1 << 7), (0xD1, "h", 1 << 15), (0xD2, "i", 1 << 31), (0xD3, "q", 1 << 63))
    for code, form, limit in forms:
        if value < limit and -value <= limit:
            return struct.pack(">B" + form, code, value)
    raise ValueError("integer too large for MessagePack")


def pack(value: object) -> bytes:
    """The canonical encoding: shortest forms, map keys sorted by code point.

    :raises TypeError: for a type this page does not name.
    :raises ValueError: for an integer below -2**63 or above 2**64-1.
    """
    match value:
        case Raw():
            return bytes(value)
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _pack_int(value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str():
            raw = value.encode()
            return _sized(len(raw), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + raw
        case bytes():
            return _sized(len(value), None, (0xC4, 0xC5, 0xC6)) + value
        case list() | tuple():
            return _sized(len(value), (0x90, 16), (None, 0xDC, 0xDD)) + b"".join(map(pack, value))
        case dict():
            pairs = list(value.items())
            if all(type(key) is str for key in value):
                pairs.sort()
            return _sized(len(pairs), (0x80, 16), (None, 0xDE, 0xDF)) + b"".join(pack(k) + pack(v) for k, v in pairs)
    raise TypeError(f"cannot pack {type(value).__name__}")


#: code -> struct form of the number that follows; for the sized ones it counts bytes, items or pairs.
_NUMBERS = {
    0xCA: "f",
    0xCB: "d",
    0xCC: "B",
    0xCD: "H",
    0xCE: "I",
    0xCF: "Q",
    0xD0: "b",
    0xD1: "h",
    0xD2: "i",
    0xD3: "q",
}
_BINARY = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_STRING = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_ARRAY = {0xDC: "H", 0xDD: "I"}
_MAP = {0xDE: "H", 0xDF: "I"}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.hidden: list[tuple[Any, Any]] = []

    def take(self, count: int) -> bytes:
        # Slicing never allocates more than is there, whatever count a prefix claims.
        chunk = self.data[self.at : self.at + count]
        if len(chunk) != count:
            raise ValueError("MessagePack ends early")
        self.at += count
        return chunk

    def number(self, form: str) -> Any:
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0]

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("MessagePack nested too deep")
        code = self.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self.pairs(code & 0x0F, depth)
        if code < 0xA0:
            return self.items(code & 0x0F, depth)
        if code < 0xC0:
            return self.take(code & 0x1F).decode("utf-8", "strict")
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code in _BINARY:
            return self.take(self.number(_BINARY[code]))
        if code in _STRING:
            return self.take(self.number(_STRING[code])).decode("utf-8", "strict")
        if code in _ARRAY:
            return self.items(self.number(_ARRAY[code]), depth)
        if code in _MAP:
            return self.pairs(self.number(_MAP[code]), depth)
        raise ValueError(f"MessagePack code {code:#04x} is not used here")

    def items(self, count: int, depth: int) -> list[Any]:
        # A loop and not a comprehension over range(count): it ends with the data, not with the claim.
        found: list[Any] = []
        while len(found) < count:
            found.append(self.value(depth + 1))
        return found

    def pairs(self, count: int, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            value = self.value(depth + 1)
            try:
                if key in found:
                    self.hidden.append((key, found[key]))
                found[key] = value
            except TypeError:
                raise ValueError("a MessagePack map key is a container") from None
        return found


def unpack(data: bytes) -> Any:
    """The one value that ``data`` holds, in any legal spelling; of a repeated map key the last one counts.

    :raises ValueError: for anything else: trailing bytes, an early end, bad UTF-8, extension types, nesting
        beyond :data:`MAX_DEPTH`. (``UnicodeDecodeError`` is a ``ValueError``.)
    """
    reader = _Reader(bytes(data))
    value = reader.value(0)
    if reader.at != len(reader.data):
        raise ValueError("bytes after the MessagePack value")
    return value


def hidden_pairs(data: bytes) -> list[tuple[Any, Any]]:
    """The pairs of all maps in ``data`` that :func:`unpack` does not show: their key comes again.

    :raises ValueError: as :func:`unpack`.
    """
    reader = _Reader(bytes(data))
    reader.value(0)
    return reader.hidden
