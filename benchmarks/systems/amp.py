"""Twisted's AMP: a command for each message, its answer awaited, a thousand at a time. Values end at 65,535 bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.protocols import amp

from benchmarks.systems import reactor as work
from benchmarks.work import OnMessage

AT_A_TIME = 1_000


class Message(amp.Command):
    arguments = [(b"payload", amp.String())]  # noqa: RUF012  # AMP reads it, nobody writes it
    response = [(b"answer", amp.String())]  # noqa: RUF012  # likewise


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    class Receiver(amp.AMP):
        @Message.responder
        def message(self, payload: bytes) -> dict[str, bytes]:
            return {"answer": on_message(payload) or b""}

    async def start(reactor: Any) -> None:
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(Factory.forProtocol(Receiver))
        announce(port.getHost().port)

    work.serve(start)


class Link(amp.AMP):
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self._answers = work.Answers()
        self.receive = self._answers.receive
        self._ended: Deferred[None] = Deferred()

    def send(self, message: bytes) -> None:
        self.callRemote(Message, payload=message).addCallback(self._came)

    def _came(self, reply: dict[str, bytes]) -> None:
        if reply["answer"]:
            self._answers.came(reply["answer"])

    async def send_many(self, payload: bytes, count: int) -> None:
        places = DeferredSemaphore(AT_A_TIME)
        for _ in range(count):
            await places.acquire()
            sent = self.callRemote(Message, payload=payload)
            sent.addCallback(self._came).addCallback(lambda _: places.release())

    def close(self) -> Awaitable[Any]:
        self.transport.loseConnection()
        return self._ended

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self._ended.callback(None)


def _open(reactor: Any) -> work.Open:
    return lambda where: connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", where), Link())


flood, ping, dial = (work.under_a_reactor(each, _open) for each in (work.flood, work.ping, work.dial))
