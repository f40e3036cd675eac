"""The outcome of a message, and room for more of them, as something that Twisted code and asyncio code await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ipc_twisted.core import outbox

_log = Logger(namespace="ipc_twisted")


@dataclass(frozen=True)
class _Guarded:
    """What a callback raises is logged; two of one callback are equal, so that it can be taken back."""

    callback: Callable[[outbox.Delivery], None]

    def __call__(self, delivery: outbox.Delivery) -> None:
        try:
            self.callback(delivery)
        except BaseException:  # as Deferred does: whoever else waits must learn it, too
            _log.failure(
                "a callback of a delivery failed: trace_id={trace_id!r}",
                event="callback_failed",
                trace_id=delivery.trace_id,
            )


class Delivery(outbox.Delivery, eq=False):
    """What becomes of one message. ``await`` it: None for accepted.

    :raises Rejected: on ``await``: it was not handed over; ``.category`` says why.
    :raises DeliveryUnknown: on ``await``: the connection ended before the outcome was known.
    """

    def add_done_callback(self, callback: Callable[[outbox.Delivery], None]) -> None:
        """Call ``callback(self)`` once done, at once if it is. What it raises is logged, and disturbs nobody else."""

        super().add_done_callback(_Guarded(callback))

    def remove_done_callback(self, callback: Callable[[outbox.Delivery], None]) -> None:
        """``callback`` is not called any more. Of one that is done, nobody waits."""
        super().remove_done_callback(_Guarded(callback))

    def as_deferred(self) -> Deferred[None]:
        """A new Deferred of the outcome; may be asked for any number of times. Cancelling it only ends this wait."""
        remove = super().remove_done_callback
        deferred: Deferred[None] = Deferred(lambda _: remove(settled))

        def settled(delivery: outbox.Delivery) -> None:
            if deferred.called:  # cancelled by who was told just before
                return
            error = delivery.exception()
            if error is None:
                deferred.callback(None)
            else:
                deferred.errback(error)

        super().add_done_callback(settled)  # a Deferred keeps what its callbacks raise to itself
        return deferred

    def __await__(self) -> Generator[Any, Any, None]:
        """For Twisted's coroutines and for asyncio's, also where both run on one loop.

        Which of them awaits cannot be seen from here, but what comes back tells: Twisted hands back at once what is
        yielded and is no Deferred, asyncio waits for a future and sends None.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return (yield from self.as_deferred().__await__())
        if not self.done():
            future = loop.create_future()

            def settled(_: outbox.Delivery) -> None:
                if not future.done():  # it may have been cancelled in this turn
                    future.set_result(None)

            super().add_done_callback(settled)
            try:
                sent = yield next(future.__await__())
            finally:
                super().remove_done_callback(settled)
            if sent is future:
                return (yield from self.as_deferred().__await__())
        if (error := self.exception()) is not None:
            raise error


def when_drained(box: outbox.Outbox) -> Deferred[None]:
    """Fires once at least half of the outbox's bound is free, for one waiter after the other."""

    def drained() -> None:
        done.callback(None)

    done: Deferred[None] = Deferred(lambda _: box.not_when_drained(drained))
    box.when_drained(drained)
    return done
