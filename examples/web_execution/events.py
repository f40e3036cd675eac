"""What the page is told, as server-sent events. Who connects is first told how things are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

MAX_READERS = 32
_MAX_WAITING = 256
_KEPT_LOG_LINES = 30


class TooManyReaders(Exception):
    """Each reader costs a connection and a queue."""


class Events:
    """Publish to every page that is open."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Queue[bytes | None]] = set()
        self._latest: dict[str, bytes] = {}
        self._log: deque[bytes] = deque(maxlen=_KEPT_LOG_LINES)
        self._line = 0

    def publish(self, name: str, content: Any) -> None:
        """Tell how something is now, by its name."""
        event = _event(name, content)
        self._latest[name] = event
        self._send(event)

    def log(self, text: str, tone: str = "plain") -> None:
        """Tell that something happened.

        :param tone: ``plain``, ``good`` or ``bad``.
        """
        self._line += 1
        event = _event("log", {"line": self._line, "text": text, "tone": tone})
        self._log.append(event)
        self._send(event)

    async def read(self) -> AsyncIterator[bytes]:
        """Everything from now on, until :meth:`close`, or until this reader is too slow: it may connect again.

        :raises TooManyReaders: at the first step.
        """
        with self._reader() as queue:
            for event in (*self._latest.values(), *self._log):
                yield event
            while (event_or_end := await queue.get()) is not None:
                yield event_or_end

    @property
    def is_full(self) -> bool:
        """One more :meth:`read` would be refused."""
        return len(self._readers) >= MAX_READERS

    def close(self) -> None:
        """End what every reader reads."""
        for queue in self._readers:
            _end(queue)

    @contextmanager
    def _reader(self) -> Iterator[asyncio.Queue[bytes | None]]:
        if self.is_full:
            raise TooManyReaders
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_WAITING)
        self._readers.add(queue)
        try:
            yield queue
        finally:
            self._readers.discard(queue)

    def _send(self, event: bytes) -> None:
        for queue in self._readers:
            if queue.full():
                _end(queue)
            else:
                queue.put_nowait(event)


def _end(queue: asyncio.Queue[bytes | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


def _event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(content) + b"\n\n"  # JSON has no line breaks
