"""Who has not proved itself: bounded places, and who has to go when there are too many."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import islice

from ipc_twisted.errors import Category
from ipc_twisted.protocol import SecureIPCProtocol

_LOOKED_AT = 16
"""How many of the oldest are asked whether their first bytes lie unread."""


class Strangers:
    """Connections that are pending, in two classes: those that have not named a key of ours, and those that have.

    The oldest goes, not the newcomer: who holds places must give them up to who comes. Who has not named a key goes
    first, since another uid does not know the id of one; but those who have named one keep at most half of the places,
    so that somebody who has seen a key id cannot keep others out. And of either class, one whose bytes already lie in
    its socket is spared: an honest client writes at once and is read in this turn or the next.

    :param places: for both classes together.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._silent: dict[SecureIPCProtocol, None] = {}  # both: oldest first
        self._named: dict[SecureIPCProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._silent) + len(self._named)

    def __iter__(self) -> Iterator[SecureIPCProtocol]:
        yield from self._named
        yield from self._silent

    def add(self, protocol: SecureIPCProtocol) -> None:
        """A newcomer; somebody may have to go for it (``evicted``)."""
        self._silent[protocol] = None
        if len(self._silent) + len(self._named) > self._places:
            self._evict()

    def named_a_key(self, protocol: SecureIPCProtocol) -> None:
        """It has, and was answered."""
        if protocol in self._silent:
            del self._silent[protocol]
            self._named[protocol] = None

    def discard(self, protocol: SecureIPCProtocol) -> None:
        """It is in, or gone."""
        self._silent.pop(protocol, None)
        self._named.pop(protocol, None)

    def _evict(self) -> None:
        if len(self._named) > max(1, self._places // 2):
            oldest = list(islice(self._named, _LOOKED_AT))
        else:
            oldest = list(islice(self._silent, min(_LOOKED_AT, len(self._silent) - 1))) or list(islice(self._named, 1))
        silent = (protocol for protocol in oldest if not _has_spoken(protocol))
        next(silent, oldest[0]).abandon(Category.EVICTED)


def _has_spoken(protocol: SecureIPCProtocol) -> bool:
    """Bytes lie in its socket that have not been read."""
    try:
        return bool(protocol.transport.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except (OSError, AttributeError):  # nothing yet, or gone; no real socket
        return False
