"""jupyter_client's ``Session``: signed messages over pyzmq's sockets, the payload as a buffer, which it signs too."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq
from jupyter_client.session import Session

from benchmarks.systems import blocking
from benchmarks.work import OnMessage


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    key = os.urandom(32).hex()
    session = Session(key=key.encode())
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    announce({"port": router.bind_to_random_port("tcp://127.0.0.1"), "key": key})
    while True:
        identity, message = _receive(session, router)
        answer = on_message(message)
        if answer is not None:
            session.send(router, "work", ident=identity, buffers=[answer])


def _receive(session: Session, socket: Any) -> tuple[Any, bytes]:
    identity, message = session.recv(socket, mode=0)
    if message is None:
        raise EOFError("no message")
    return identity, bytes(message["buffers"][0])


_context = zmq.Context()


class Link:
    def __init__(self, where: Any) -> None:
        self._session = Session(key=where["key"].encode())
        self._socket = _context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{where['port']}")

    def send(self, message: bytes) -> None:
        self._session.send(self._socket, "work", buffers=[message])

    def receive(self) -> bytes:
        return _receive(self._session, self._socket)[1]

    def close(self) -> None:
        self._socket.close()


flood, ping, dial = (partial(work, Link) for work in (blocking.flood, blocking.ping, blocking.dial))
