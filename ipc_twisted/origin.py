"""Who sends: the process and thread that a connection belongs to, and the ``ts`` and ``nonce`` of its messages."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

from ipc_twisted.core.envelope import HeaderFields
from ipc_twisted.errors import Category, NotConnected
from ipc_twisted.nonces import process_nonces


class Origin:
    """The process and thread in which this is made.

    :param wall: wall-clock time in unix seconds.
    """

    __slots__ = ("_process", "_thread", "_wall")

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._process = process_nonces.prefix
        self._thread = get_ident()

    @property
    def is_here(self) -> bool:
        """Not in a fork: a child must not say anything under its parent's keys."""
        return self._process is process_nonces.prefix

    def fields(
        self,
        kind: str,
        trace_id: str | None,
        reply_to: str | None,
        target: str | list[str] | None,
        headers: dict[str, str] | None,
    ) -> HeaderFields:
        """The header of a new message, in the order of the wire, unchecked.

        :raises RuntimeError: in another thread.
        :raises NotConnected: in a fork.
        """
        if self._thread != get_ident():
            raise RuntimeError("send() in another thread than the reactor's; use reactor.callFromThread")
        if self._process is not process_nonces.prefix:  # as is_here, without a call: every message comes by
            raise NotConnected(Category.NOT_CONNECTED, "this connection belongs to the process that was forked")
        return (
            int(self._wall()),
            process_nonces.next(),
            kind,
            trace_id,
            reply_to,
            target,
            {} if headers is None else headers,
        )
