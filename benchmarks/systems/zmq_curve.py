"""pyzmq with CURVE: as :mod:`zmq_plain`, each end with a key pair of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from benchmarks.systems import zmq_plain
from benchmarks.work import OnMessage


def receive(on_message: OnMessage, announce: Callable[[Any], None]) -> None:
    public, own_secret = zmq.curve_keypair()

    def secure(socket: Any, _where: Any) -> None:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = public, own_secret

    zmq_plain.receive(on_message, announce, secure, {"server": public.decode()})


_own = zmq.curve_keypair()


def _secure(socket: Any, where: Any) -> None:
    socket.curve_publickey, socket.curve_secretkey = _own
    socket.curve_serverkey = where["server"].encode()


flood, ping, dial, paced = zmq_plain.sender(_secure)
