"""What the two processes say to each other: JSON, checked by its receiver. The link carries it and does not look."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from examples.web_execution.fractal import COLUMNS, ROWS
from ipc_twisted import Statistics

RENDER = "tile.render"
"""To the execution process: a :class:`TileRequest`; ``reply_to`` says where the tile belongs."""
RENDERED = "tile.rendered"
"""And back: a PNG, with the ``trace_id`` of the request, and its ``reply_to`` as ``target``."""
PING = "link.ping"
PONG = "link.pong"
"""And back: a :class:`Pong`, with the ``trace_id`` of the ping."""


class TileRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Render this tile."""

    scene: Literal["whole", "seahorses", "spiral"]
    column: Annotated[int, Meta(ge=0, lt=COLUMNS)]
    row: Annotated[int, Meta(ge=0, lt=ROWS)]


class Pong(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the execution process is.

    :ivar rendering: tiles that it has been handed and not answered.
    :ivar rendered: tiles since it started.
    :ivar statistics: of its side of the link.
    """

    pid: int
    rendering: int
    rendered: int
    statistics: Statistics
