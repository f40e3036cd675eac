"""Credit: what may be written, and what may be granted. Both count totals since the connection began, which never fall.

Flow is controlled by credit and never by leaving the socket unread: receipts travel in the same stream, so a side that
stopped reading could wait for ever for a receipt that lies unread.
"""

from __future__ import annotations


class SendCredit:
    """What the other side lets us write. Plain counters, since the outbox's loop keeps them inline.

    :ivar messages: envelopes granted in total; ``bytes``: of their frames, with the 4 bytes of length.
    :ivar used_messages: of that, written; ``used_bytes`` likewise.
    """

    __slots__ = ("_window_bytes", "bytes", "messages", "used_bytes", "used_messages")

    def __init__(self, messages: int, bytes_: int) -> None:
        self.messages = messages
        self.bytes = bytes_
        self.used_messages = 0
        self.used_bytes = 0
        self._window_bytes = bytes_

    def can_ever_fit(self, size: int) -> bool:
        """A frame of ``size`` bytes fits once every handler of the other side has ended."""
        return size <= self._window_bytes or self.used_bytes + size <= self.bytes

    def raise_to(self, messages: int, bytes_: int) -> bool:
        """Take the totals of a RECEIPT; False if one of them fell, which is a lie."""
        if messages < self.messages or bytes_ < self.bytes:
            return False
        self.messages, self.bytes = messages, bytes_
        return True


class ReceiveCredit:
    """What we let the other side write: at any time at most ``messages`` envelopes and ``bytes`` of frames unfinished.

    Plain counters, since the verifier's loop and the hand-over keep them inline.

    :ivar told_messages: the total that the other side has been told; ``told_bytes`` likewise. It is held to these.
    :ivar used_messages: received in total; ``used_bytes`` likewise.
    :ivar finished_messages: of those, rejected or done with by their handler; ``finished_bytes`` likewise.
    """

    __slots__ = (
        "_window_bytes",
        "_window_messages",
        "finished_bytes",
        "finished_messages",
        "told_bytes",
        "told_messages",
        "used_bytes",
        "used_messages",
    )

    def __init__(self, messages: int, bytes_: int) -> None:
        self._window_messages = self.told_messages = messages
        self._window_bytes = self.told_bytes = bytes_
        self.used_messages = self.used_bytes = 0
        self.finished_messages = self.finished_bytes = 0

    @property
    def in_flight(self) -> int:
        """Envelopes handed over whose handlers have not ended."""
        return self.used_messages - self.finished_messages

    def finish(self, size: int) -> None:
        """The handler of an envelope whose frame had ``size`` bytes has ended. The chain counts what it rejects."""
        self.finished_messages += 1
        self.finished_bytes += size

    @property
    def due(self) -> bool:
        """Credit has come back that the other side has not been told of."""
        return self._window_messages + self.finished_messages > self.told_messages

    def tell(self) -> tuple[int, int]:
        """The totals to put into a RECEIPT that is written now."""
        self.told_messages = self._window_messages + self.finished_messages
        self.told_bytes = self._window_bytes + self.finished_bytes
        return self.told_messages, self.told_bytes
