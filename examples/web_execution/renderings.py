"""The picture that is asked for: which tiles are there, which are under way, which must be asked for again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable

import msgspec

from examples.web_execution.events import Events
from examples.web_execution.fractal import COLUMNS, ROWS, SCENES
from examples.web_execution.messages import RENDER, Pong
from ipc_twisted import IPCError, SecureEnvelope
from ipc_twisted.embed import Link

TILES = COLUMNS * ROWS
_MAX_TILE_BYTES = 64 * 1024


class Busy(Exception):
    """One picture at a time."""


class Picture:
    """One job.

    :ivar tiles: PNG files by the number of the tile: those that have come.
    :ivar asked: numbers of those that are on their way to the execution process.
    :ivar accepted: when those that it has were handed over, on this process's monotonic clock, by number.
    """

    def __init__(self, scene: str) -> None:
        self.id = secrets.token_hex(8)
        self.scene = scene
        self.tiles: dict[int, bytes] = {}
        self.asked: set[int] = set()
        self.accepted: dict[int, float] = {}
        self.asked_again = 0

    @property
    def is_complete(self) -> bool:
        return len(self.tiles) == TILES


class Renderings:
    """Ask for tiles over the link, and take them.

    *Accepted* means that a tile was handed over, not that it was rendered: what a process had when it was killed is
    lost with it. Asking twice does no harm here, so what is missing is asked for again, once it is known to be missing.

    """

    def __init__(self, link: Link, events: Events) -> None:
        self._link = link
        self._events = events
        self._tasks: set[asyncio.Task[None]] = set()
        self.picture: Picture | None = None

    def begin(self, scene: str) -> Picture:
        """Ask for all tiles of a picture. Works without a connection, too: the link keeps what it is given.

        :raises Busy: another one is not complete.
        """
        if self.picture is not None and not self.picture.is_complete:
            raise Busy
        self.picture = Picture(scene)
        self._events.log(f"“{SCENES[scene].name}”: {TILES} tiles were asked for.")
        self._ask(self.picture, range(TILES))
        return self.picture

    def take(self, envelope: SecureEnvelope) -> None:
        """A tile has come. It may be one that is no longer wanted, or that was asked for twice."""
        picture = self.picture
        number = str(envelope.target)
        if picture is None or envelope.trace_id != picture.id or picture.is_complete:
            return
        if number.isdecimal() and int(number) < TILES and len(envelope.payload_bytes) <= _MAX_TILE_BYTES:
            picture.tiles[int(number)] = envelope.payload_bytes
            if picture.is_complete:
                self._events.log("The picture is complete.", "good")
            self._tell(picture)

    def look(self, pinged_at: float, pong: Pong) -> None:
        """Ask again for what is missing: the link told that it was not accepted, or the execution process was handed it
        before it was pinged, and now says that it is at nothing.

        :param pinged_at: as ``Picture.accepted``.
        """
        picture = self.picture
        if picture is None or picture.is_complete:
            return
        missing = [
            number
            for number in range(TILES)
            if number not in picture.tiles
            and number not in picture.asked
            and (number not in picture.accepted or (pong.rendering == 0 and picture.accepted[number] < pinged_at))
        ]
        if missing:
            picture.asked_again += len(missing)
            self._events.log(f"{len(missing)} tiles did not come: asked for again.")
            self._ask(picture, missing)

    async def close(self) -> None:
        """Ask for nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ask(self, picture: Picture, numbers: Iterable[int]) -> None:
        for number in numbers:
            picture.asked.add(number)
            task = asyncio.create_task(self._ask_for_one(picture, number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._tell(picture)

    async def _ask_for_one(self, picture: Picture, number: int) -> None:
        row, column = divmod(number, COLUMNS)
        request = msgspec.json.encode({"scene": picture.scene, "column": column, "row": row})
        picture.accepted.pop(number, None)
        try:
            await self._link.send(RENDER, request, trace_id=picture.id, reply_to=str(number))
        except IPCError as problem:
            self._events.log(f"Tile {number + 1} was not accepted: {problem.category}.", "bad")
        else:
            picture.accepted[number] = time.monotonic()
        finally:
            picture.asked.discard(number)
        self._tell(picture)

    def _tell(self, picture: Picture) -> None:
        self._events.publish(
            "picture",
            {
                "id": picture.id,
                "title": SCENES[picture.scene].name,
                "columns": COLUMNS,
                "total": TILES,
                "tiles": sorted(picture.tiles),
                "accepted": len(picture.accepted.keys() | picture.tiles.keys()),
                "asked_again": picture.asked_again,
            },
        )
