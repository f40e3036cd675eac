"""Who sends: the process and thread that a connection belongs to, and the messages that it makes."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

from ipc_twisted.core.codec import encode_checked, encode_header
from ipc_twisted.delivery import Delivery
from ipc_twisted.errors import Category, EnvelopeError, NotConnected
from ipc_twisted.nonces import process_nonces

_EMPTY: dict[str, str] = {}  # only encoded


class Origin:
    """The process and thread in which this is made.

    :param wall: wall-clock time in unix seconds.
    """

    __slots__ = ("_kind", "_process", "_thread", "_ts", "_wall")

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._process = process_nonces.prefix
        self._thread = get_ident()
        self._kind: str | None = None  # of the last message, and its ts: encoded and found good
        self._ts: int | None = None

    @property
    def is_here(self) -> bool:
        """Not in a fork: a child must not say anything under its parent's keys."""
        return self._process is process_nonces.prefix

    def message(
        self,
        kind: str,
        payload_bytes: bytes,
        trace_id: str | None,
        reply_to: str | None,
        target: str | list[str] | None,
        headers: dict[str, str] | None,
    ) -> Delivery:
        """Check a new message as far as any receiver's limits go, and make its :class:`Delivery`.

        :raises EnvelopeError: ``malformed``, naming the field and its rule.
        :raises RuntimeError: in another thread.
        :raises NotConnected: in a fork.
        """
        if self._thread != get_ident():
            raise RuntimeError("send() in another thread than the reactor's; use reactor.callFromThread")
        if self._process is not process_nonces.prefix:  # as is_here, without a call: every message comes by
            raise NotConnected(Category.NOT_CONNECTED, "this connection belongs to the process that was forked")
        if type(payload_bytes) is not bytes:
            raise EnvelopeError(Category.MALFORMED, f"payload_bytes must be bytes, not {type(payload_bytes).__name__}")
        ts = int(self._wall())
        fields = (ts, process_nonces.next(), kind, trace_id, reply_to, target, _EMPTY if headers is None else headers)
        plain = trace_id is None and reply_to is None and target is None and headers is None
        if plain and kind is self._kind and ts == self._ts:
            header = encode_checked(fields)  # but for the nonce, which is ours, each was found good before
        else:
            header = encode_header(fields)
            self._kind, self._ts = kind, ts
        return Delivery(ts, kind, trace_id, header, payload_bytes)
