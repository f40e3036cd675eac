"""The standard library's ``multiprocessing.connection`` over TCP, with an authkey: it proves both ends, no message."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from benchmarks.systems import blocking
from benchmarks.work import OnMessage


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    authkey = os.urandom(32)
    with Listener(("127.0.0.1", 0), authkey=authkey, backlog=100) as listener:
        announce({"port": listener.address[1], "authkey": authkey.hex()})
        while True:
            with listener.accept() as connection:
                _serve(connection, on_message)


def _serve(connection: Connection, on_message: OnMessage) -> None:
    try:
        while True:
            answer = on_message(connection.recv_bytes())
            if answer is not None:
                connection.send_bytes(answer)
    except EOFError:
        return


class Link:
    def __init__(self, where: Any) -> None:
        connection = Client(("127.0.0.1", where["port"]), authkey=bytes.fromhex(where["authkey"]))
        self.send, self.receive, self.close = connection.send_bytes, connection.recv_bytes, connection.close


flood, ping, dial = (partial(work, Link) for work in (blocking.flood, blocking.ping, blocking.dial))
