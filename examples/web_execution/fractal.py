"""The work: a piece of the Mandelbrot set as PNG, by the standard library."""

from __future__ import annotations

import math
import struct
import zlib
from typing import NamedTuple

COLUMNS, ROWS = 8, 6
TILE_PIXELS = 64
"""Width and height of a tile."""

_ITERATIONS = 240
_ESCAPED = 16.0  # squared radius; larger than the 4 it takes, for smooth colours
_INSIDE = b"\x0b\x10\x20"


class Scene(NamedTuple):
    """What is looked at.

    :ivar width: of the whole picture, in the plane.
    """

    name: str
    centre: complex
    width: float


SCENES = {
    "whole": Scene("The whole set", -0.65 + 0j, 3.4),
    "seahorses": Scene("Valley of the seahorses", -0.7463 + 0.1102j, 0.012),
    "spiral": Scene("A spiral", -0.761574 - 0.0847596j, 0.0012),
}


def _palette() -> list[bytes]:
    def shade(at: float, phase: float) -> int:
        return round(255 * (0.5 + 0.5 * math.cos(2 * math.pi * (at + phase))))

    return [bytes((shade(n / 64, 0.55), shade(n / 64, 0.45), shade(n / 64, 0.3))) for n in range(64)]


_PALETTE = _palette()


def render(scene: str, column: int, row: int) -> bytes:
    """One tile as PNG. Takes some 50 ms of one CPU, so it does not belong in the reactor's thread."""
    chosen = SCENES[scene]
    step = chosen.width / (COLUMNS * TILE_PIXELS)
    left = chosen.centre.real + (column - COLUMNS / 2) * TILE_PIXELS * step
    top = chosen.centre.imag - (row - ROWS / 2) * TILE_PIXELS * step
    lines = [
        b"".join([_colour(complex(left + x * step, top - y * step)) for x in range(TILE_PIXELS)])
        for y in range(TILE_PIXELS)
    ]
    return png(TILE_PIXELS, TILE_PIXELS, lines)


def _colour(point: complex) -> bytes:
    z = 0j
    for n in range(_ITERATIONS):
        z = z * z + point
        size = z.real * z.real + z.imag * z.imag
        if size > _ESCAPED:
            smooth = n + 1 - math.log2(math.log(size) / 2)
            return _PALETTE[int(12 * math.sqrt(max(smooth, 0.0))) % len(_PALETTE)]
    return _INSIDE


def png(width: int, height: int, lines: list[bytes]) -> bytes:
    """A PNG file of 8 bits each of red, green and blue (RFC 2083).

    :param lines: ``height`` of them, each of ``3 * width`` bytes.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    unfiltered = b"".join(b"\0" + line for line in lines)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(unfiltered)) + chunk(b"IEND", b"")
    )
