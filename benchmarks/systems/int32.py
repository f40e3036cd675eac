"""Twisted's ``Int32StringReceiver``: what this package would be without any of its checks and receipts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory
from twisted.protocols.basic import Int32StringReceiver
from zope.interface import implementer

from benchmarks.systems import reactor as work
from benchmarks.work import OnMessage

LARGEST = 64 * 2**20


class Receiver(Int32StringReceiver):
    transport: Any
    MAX_LENGTH = LARGEST

    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def stringReceived(self, string: bytes) -> None:
        answer = self._on_message(string)
        if answer is not None:
            self.sendString(answer)


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    async def start(reactor: Any) -> None:
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(Factory.forProtocol(lambda: Receiver(on_message)))
        announce(port.getHost().port)

    work.serve(start)


@implementer(IPushProducer)
class Link(Int32StringReceiver):
    transport: Any
    MAX_LENGTH = LARGEST

    def __init__(self) -> None:
        self._answers = work.Answers()
        self.receive = self._answers.receive
        self.send = self.sendString
        self._resumed: Deferred[None] = succeed(None)
        self._ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)

    def stringReceived(self, string: bytes) -> None:
        self._answers.came(string)

    def pauseProducing(self) -> None:
        if self._resumed.called:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        if not self._resumed.called:
            self._resumed.callback(None)

    def stopProducing(self) -> None:
        """The connection ends."""

    async def send_many(self, payload: bytes, count: int) -> None:
        send = self.sendString
        for _ in range(count):
            if not self._resumed.called:
                await self._resumed
            send(payload)

    def close(self) -> Awaitable[Any]:
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        return self._ended

    def connectionLost(self, reason: Any = None) -> None:
        self._ended.callback(None)


def _open(reactor: Any) -> work.Open:
    return lambda where: connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", where), Link())


flood, ping, dial = (work.under_a_reactor(each, _open) for each in (work.flood, work.ping, work.dial))
