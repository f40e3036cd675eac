"""The outbox of a client that connects again: what it keeps, what it sends again, and when it must not.

A message is sent again with the same ``ts`` and ``nonce``, so the replay guard of a receiver that may have handed it
over knows it. What is kept of each message is only whether anybody may have: :attr:`Delivery.seen_by`, the instance of
the guard that it was written to when a connection ended without a word. An instance lives exactly as long as its
guard's memory, so:

=======================================================  ============================================================
what is known when a connection ended                    what happens
=======================================================  ============================================================
never written                                            kept: goes to the next connection, any instance
rejected ``shutting_down``, or beyond ``through`` of a   it was not handed over by this connection: kept as it was
CLOSE
the record that caused the CLOSE                         rejected with its category
written, no receipt, no CLOSE                            kept: sent again to the same instance
the next connection has another instance                 unknown: nobody can tell any more
sent again: accepted, or ``replayed``                    accepted: the guard knows it, so it was handed over, once
sent again: ``replay_cache_full``, ``not_yet_valid``     again later, until ``ts + ttl``, then unknown
sent again: rejected otherwise                           unknown: that says nothing of the first time
past ``ts + ttl``                                        never handed over: rejected, ``expired``; else unknown
=======================================================  ============================================================
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from ipc_twisted.core.codec import NO_SEQ
from ipc_twisted.core.framing import HEAD_BYTES
from ipc_twisted.core.outbox import UNSENT, Delivery, Outbox, unknown
from ipc_twisted.errors import Category, DeliveryUnknown, Rejected

_AGAIN_LATER = (Category.REPLAY_CACHE_FULL, Category.NOT_YET_VALID)


class ResendingOutbox(Outbox):
    """See the module's docstring. It outlives its connections, of which it has one at a time.

    :ivar later: to be sent again, but not at once: :meth:`requeue` puts them back.
    """

    def __init__(self, limit_bytes: int, tally: Counter[str], on_unclaimed: Callable[[Delivery], None]) -> None:
        super().__init__(limit_bytes, tally, on_unclaimed)
        self.later: deque[Delivery] = deque()
        self._instance: bytes | None = None

    @property
    def unsettled(self) -> int:
        return super().unsettled + len(self.later)

    def attach(self, instance: bytes, refusal: Callable[[int, int], str | None]) -> None:
        """End what another guard may have handed over, and what would end this connection, too."""
        self.requeue()
        self._instance = instance
        self._through = NO_SEQ
        kept: deque[Delivery] = deque()
        ended: list[tuple[Delivery, Rejected | DeliveryUnknown]] = []
        for delivery in self.queue:
            payload = len(delivery.payload)
            why = refusal(payload, HEAD_BYTES + len(delivery.header) + payload)
            if delivery.seen_by not in (None, instance):
                ended.append((delivery, unknown()))
            elif why is not None:
                ended.append((delivery, _end(delivery, Category.PAYLOAD_TOO_LARGE, why)))
            else:
                kept.append(delivery)
        self.queue = kept
        for delivery, error in ended:  # last, since who is told may send, or stop everything
            self._settle(delivery, error)

    def expire(self, oldest: int) -> None:
        """End what is older than ``oldest`` and still not written, or not decided and not written again."""
        for waiting in (self.queue, self.later):
            while waiting and waiting[0].ts < oldest:
                delivery = waiting.popleft()
                self._settle(delivery, _end(delivery, Category.EXPIRED, UNSENT))

    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        """Keep what lies beyond the CLOSE, for the next connection; but what caused it would cause it again."""
        at_fault = None
        for delivery in self._take_back():
            if delivery.seq == seq:
                at_fault = delivery
            else:
                self.queue.appendleft(delivery)
        if at_fault is not None:
            self._settle(at_fault, _end(at_fault, category, "the receiver closed the connection because of it"))

    def closed_here(self, category: Category) -> None:
        """What is queued waits for the next connection."""

    def lose(self) -> None:
        """Whatever was written may have been handed over by the instance it was written to."""
        for delivery in self._take_back():
            delivery.seen_by = self._instance
            self.queue.appendleft(delivery)

    def requeue(self) -> None:
        """Send again now what was put off."""
        while self.later:
            self.queue.appendleft(self.later.pop())

    def give_up(self, category: Category) -> None:
        """Nothing will be sent any more: end all that is left."""
        self.lose()
        self.requeue()
        while self.queue:
            delivery = self.queue.popleft()
            self._settle(delivery, _end(delivery, category, "unsent: the service was stopped"))

    def _take_back(self) -> list[Delivery]:
        """What is in flight, last first, so that it can be put before what is queued."""
        taken = list(reversed(self.in_flight))
        self.in_flight.clear()
        return taken

    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category is Category.SHUTTING_DOWN:  # judged before the nonce: says nothing of another time
            self.later.append(delivery)
        elif delivery.seen_by is None:
            super()._rejected(delivery, category)
        elif category is Category.REPLAYED:
            self._settle(delivery, None)
        elif category in _AGAIN_LATER:
            self.later.append(delivery)
        else:
            self._settle(delivery, unknown())


def _end(delivery: Delivery, category: Category, why: str) -> Rejected | DeliveryUnknown:
    """Of one that is not in flight: nobody has handed it over, or nobody can tell."""
    return Rejected(category, why) if delivery.seen_by is None else unknown()
