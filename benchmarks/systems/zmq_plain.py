"""pyzmq, one PAIR socket a side, without security; ``dial`` with a ROUTER, since a PAIR takes one peer only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from benchmarks.systems import blocking
from benchmarks.work import OnMessage

Secure = Callable[[Any, Any], None]
"""Sets a socket's options for security; the second argument is ``where``."""


def nothing(_socket: Any, _where: Any) -> None:
    """No security."""


def receive(
    on_message: OnMessage,
    announce: Callable[[Any], None],
    secure: Secure = nothing,
    keys: dict[str, str] | None = None,
) -> None:
    where: dict[str, Any] = dict(keys or {})
    context = zmq.Context()
    pair, router = context.socket(zmq.PAIR), context.socket(zmq.ROUTER)
    for name, socket in (("pair", pair), ("router", router)):
        secure(socket, where)
        where[name] = socket.bind_to_random_port("tcp://127.0.0.1")
    announce(where)
    poller = zmq.Poller()
    poller.register(pair, zmq.POLLIN)
    poller.register(router, zmq.POLLIN)
    for socket, _ in poller.poll():  # what comes first decides
        while True:
            *envelope, message = socket.recv_multipart() if socket is router else (socket.recv(),)
            answer = on_message(message)
            if answer is not None:
                socket.send_multipart([*envelope, answer])


class Link:
    def __init__(self, kind: int, name: str, secure: Secure, where: Any) -> None:
        self._socket = socket = _context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        secure(socket, where)
        socket.connect(f"tcp://127.0.0.1:{where[name]}")
        self.send, self.receive, self.close = socket.send, socket.recv, socket.close


_context = zmq.Context()


def sender(secure: Secure) -> tuple[Callable[..., Any], ...]:
    """``flood``, ``ping``, ``dial`` and ``paced`` with these options."""
    pair = partial(Link, zmq.PAIR, "pair", secure)
    dealer = partial(Link, zmq.DEALER, "router", secure)
    flood, ping, paced = (partial(each, pair) for each in (blocking.flood, blocking.ping, blocking.paced))
    return flood, ping, partial(blocking.dial, dealer), paced


flood, ping, dial, paced = sender(nothing)
