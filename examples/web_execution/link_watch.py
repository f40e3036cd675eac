"""How the link is: pinged once a second, for the panel."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import msgspec

from examples.web_execution.events import Events
from examples.web_execution.messages import PING, Pong
from ipc_twisted import IPCError, SecureEnvelope, SecureIPCProtocol
from ipc_twisted.embed import Link

PING_SECONDS = 1.0
_PONG_SECONDS = 3.0
_KEPT_ROUND_TRIPS = 60
_NO_REFUSALS = {"authenticated", "closed", "shutting_down", "connection_lost"}


def refusals(pong: Pong) -> dict[str, int]:
    """What the execution process has refused since it started, by ``where: category``."""
    statistics = pong.statistics
    counted = {"handshake": statistics.handshakes, "connection": statistics.ended, "message": statistics.rejected}
    return {
        f"{where}: {category}": count
        for where, categories in counted.items()
        for category, count in categories.items()
        if category not in _NO_REFUSALS
    }


class LinkWatch:
    """Ping the execution process and tell the page how the link is.

    :param on_pong: called with each pong that came in time, and when its ping was sent.
    """

    def __init__(self, link: Link, events: Events, on_pong: Callable[[float, Pong], None]) -> None:
        self._link = link
        self._events = events
        self._on_pong = on_pong
        self._asked: dict[str, asyncio.Future[tuple[Pong, SecureIPCProtocol]]] = {}
        self._number = 0
        self._round_trips: deque[float] = deque(maxlen=_KEPT_ROUND_TRIPS)
        self._latest: Pong | None = None
        self._connection: SecureIPCProtocol | None = None
        self._connected_since: float | None = None
        self._ended: dict[str, int] = {}

    def take(self, envelope: SecureEnvelope, connection: SecureIPCProtocol) -> None:
        """A pong has come."""
        waiting = self._asked.get(envelope.trace_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result((msgspec.json.decode(envelope.payload_bytes, type=Pong), connection))

    async def ping(self) -> Pong:
        """Ask how the execution process is.

        :raises IPCError: the link did not take it.
        :raises TimeoutError: no answer came.
        """
        self._number += 1
        trace_id = f"ping-{self._number}"
        waiting: asyncio.Future[tuple[Pong, SecureIPCProtocol]] = asyncio.get_running_loop().create_future()
        self._asked[trace_id] = waiting
        try:
            async with asyncio.timeout(_PONG_SECONDS):
                sent_at = time.monotonic()
                await self._link.send(PING, b"", trace_id=trace_id)
                pong, connection = await waiting
                self._round_trips.append(1000 * (time.monotonic() - sent_at))
                self._latest, self._connection = pong, connection
        finally:
            del self._asked[trace_id]
        self._on_pong(sent_at, pong)
        return pong

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                if self._link.state.connected_since is not None:
                    await self.ping()
            except (IPCError, TimeoutError):
                pass  # the state says it
            self.tell()
            await asyncio.sleep(PING_SECONDS)

    def tell(self) -> None:
        """Tell the page."""
        state = self._link.state
        since = state.connected_since
        statistics = self._link.statistics()
        for category, count in statistics.ended.items():
            if count > self._ended.get(category, 0):
                self._events.log(f"The link is lost: {category}.", "bad")
        self._ended = statistics.ended
        if since is not None and since != self._connected_since:
            self._events.log("The link is up: both ends have proved that they hold the key.", "good")
        self._connected_since = since
        pong, connection = self._latest, self._connection
        if connection is None or not connection.is_open:
            pong = connection = None  # of a connection that is no more
        self._events.publish(
            "link",
            {
                "connected": since is not None,
                "attempts": state.attempts,
                "last_error": _category(state.last_error),
                "ended": statistics.ended,
                "key_id": connection.key_id.hex() if connection is not None and connection.key_id else None,
                "peer": connection.peer_address if connection is not None else None,
                "round_trips": [round(milliseconds, 2) for milliseconds in self._round_trips],
                "waiting": state.unsettled,
                "sent": statistics.sent,
                "execution": None
                if pong is None
                else {
                    "pid": pong.pid,
                    "accepted": pong.statistics.accepted,
                    "in_flight": pong.statistics.in_flight,
                    "rendered": pong.rendered,
                    "refusals": refusals(pong),
                },
            },
        )


def _category(problem: IPCError | None) -> str | None:
    return None if problem is None else str(problem.category)
