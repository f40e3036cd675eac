"""The other processes of :mod:`tests.hostile.cost`; ``python -m tests.hostile.cost_children ROLE …``.

``abort`` listens on a free port of 127.0.0.1 and aborts each connection as soon as it is made: the least that a Twisted
server can do. It prints its port. ``honest FILE`` is a client of the package that always has messages under way, and
prints, ten times a second, the time of the system's monotonic clock and how many were accepted so far. Both run until
they are ended.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall, react

from ipc_twisted import connect
from ipc_twisted.endpoints import BACKLOG

UNDER_WAY = 256
PAYLOAD = bytes(200)
LONGEST_SECONDS = 300.0


def say(*words: object) -> None:
    """A line for the parent, now."""
    print(*words, flush=True)


class _Aborting(Protocol):
    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


def abort(reactor: Any) -> Deferred[None]:
    """Listen."""
    port = reactor.listenTCP(0, Factory.forProtocol(_Aborting), backlog=BACKLOG, interface="127.0.0.1")
    say(port.getHost().port)
    return _for_a_while(reactor)


def honest(reactor: Any, connection_file: str) -> Deferred[None]:
    """Send."""
    accepted = 0
    connection: Any = None

    def send() -> None:
        outcome = connection.send("job.run", PAYLOAD, target="alive").as_deferred()
        outcome.addCallbacks(sent, lambda _: None)  # a failure only at the end of the server

    def sent(_: object) -> None:
        nonlocal accepted
        accepted += 1
        send()

    async def play() -> None:
        nonlocal connection
        connection = await connect(reactor, connection_file)
        for _ in range(UNDER_WAY):
            send()
        LoopingCall(lambda: say(time.monotonic(), accepted)).start(0.1)
        await _for_a_while(reactor)

    return Deferred.fromCoroutine(play())


def _for_a_while(reactor: Any) -> Deferred[None]:
    ended: Deferred[None] = Deferred()
    reactor.callLater(LONGEST_SECONDS, ended.callback, None)
    return ended


ROLES: dict[str, Any] = {"abort": abort, "honest": honest}

if __name__ == "__main__":
    react(ROLES[sys.argv[1]], sys.argv[2:])
