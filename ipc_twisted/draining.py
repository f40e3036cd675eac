"""Stopping in order, within a time: let what is under way end, say CLOSE, cut off who does not answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime

from ipc_twisted.errors import Category
from ipc_twisted.protocol import LINGER_SECONDS, SecureIPCProtocol


def grace(seconds: float) -> float:
    """How much of ``seconds`` is kept for saying CLOSE and hearing the other side's end."""
    return min(LINGER_SECONDS, seconds / 2)


async def ended(what: Iterable[Deferred[Any]], clock: IReactorTime, seconds: float) -> bool:
    """Wait for all of ``what``, but no longer than ``seconds``; whatever is late is left alone."""
    waiting: Deferred[object] = Deferred()
    DeferredList(list(what)).addCallback(waiting.callback)
    try:
        await waiting.addTimeout(seconds, clock)
    except TimeoutError:
        return False
    return True


async def end_in_order(
    connections: Iterable[SecureIPCProtocol], handlers: Deferred[None], clock: IReactorTime, seconds: float
) -> bool:
    """Stop a server's connections with ``shutting_down``.

    New envelopes are rejected, handlers end and still send, what we sent gets its outcome, then CLOSE is said. Who is
    not done shortly before the time is up gets CLOSE then; who does not answer that is cut off.

    :param connections: all whose transport is not gone.
    :param handlers: fires once none runs, of connections that are gone, too.
    :returns: whether all was done in time.
    """
    connections = list(connections)
    for connection in connections:
        connection.drain(Category.SHUTTING_DOWN)
    last = grace(seconds)
    strangers = clock.callLater(last, _abandon_strangers, connections)
    closed = [connection.wait_closed() for connection in connections]
    in_time = await ended([*closed, handlers], clock, seconds - last)
    if strangers.active():
        strangers.cancel()
    if in_time:
        return True
    for connection in connections:
        connection.end(Category.SHUTTING_DOWN)
    await ended((connection.wait_closed() for connection in connections), clock, last)
    for connection in connections:
        connection.abandon(Category.SHUTTING_DOWN)
    await DeferredList([connection.wait_closed() for connection in connections])
    return False


def _abandon_strangers(connections: Iterable[SecureIPCProtocol]) -> None:
    for connection in connections:
        if not connection.authenticated:
            connection.abandon(Category.SHUTTING_DOWN)
