"""Peers that do not read what is written to them, or read it and say nothing: found by two deadlines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Connection as TCPConnection

from ipc_twisted.config import LimitsConfig
from ipc_twisted.core.outbox import Delivery
from ipc_twisted.deadline import Deadline
from ipc_twisted.errors import Category

_LOOKS = 4
"""In the time of a stall. With one, a peer that stops reading just behind a look has twice the time, and with the
default limits its ``receipt_timeout`` comes first."""


class PeerWatch:
    """Watch one open connection.

    Arming costs two comparisons a write; a deadline that runs out looks whether anything is really overdue.

    :param limits: ``write_stall_seconds``: the transport did not drain at all that long; ``receipt_timeout_seconds``:
        a written envelope has no receipt.
    :param in_flight: envelopes without a receipt, oldest first.
    :param on_missed: called with ``write_stalled`` or ``receipt_timeout``.
    """

    __slots__ = (
        "_clock",
        "_drained",
        "_in_flight",
        "_on_missed",
        "_receipts",
        "_stall",
        "_still",
        "_timeout",
        "_transport",
        "_written",
    )

    def __init__(
        self,
        clock: IReactorTime,
        limits: LimitsConfig,
        transport: TCPConnection,
        in_flight: deque[Delivery],
        on_missed: Callable[[Category], None],
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._in_flight = in_flight
        self._on_missed = on_missed
        self._written = 0
        self._drained = 0
        self._still = 0  # looks in a row at which nothing had drained
        self._timeout = limits.receipt_timeout_seconds
        self._stall = Deadline(clock, limits.write_stall_seconds / _LOOKS, self._stall_over)
        self._receipts = Deadline(clock, self._timeout, self._receipts_over)

    def wrote(self, size: int) -> None:
        """So many bytes were handed to the transport."""
        self._written += size
        if self._stall.due is None:
            self._drained = self._written - held(self._transport)
            self._still = 0
            self._stall.start()
        if self._in_flight and self._receipts.due is None:
            self._receipts.start()

    def cancel(self) -> None:
        """The connection is not open any more."""
        self._stall.close()
        self._receipts.close()

    def _stall_over(self) -> None:
        left = held(self._transport)
        if not left:
            return  # the next write begins anew
        drained = self._written - left
        self._still = self._still + 1 if drained == self._drained else 0
        self._drained = drained
        if self._still == _LOOKS:
            self._on_missed(Category.WRITE_STALLED)
        else:
            self._stall.start()

    def _receipts_over(self) -> None:
        if not self._in_flight:
            return
        left = self._in_flight[0].written_at + self._timeout - self._clock.seconds()
        if left <= 0:
            self._on_missed(Category.RECEIPT_TIMEOUT)
        else:
            self._receipts.start(left)


def held(transport: TCPConnection) -> int:
    """Bytes that lie in the transport. Twisted has no public name for all of them."""
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen
