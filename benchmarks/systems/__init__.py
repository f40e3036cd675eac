"""The systems, each a module with

* ``receive(on_message, announce)``: call ``announce(where)`` once it listens, hand each message to ``on_message``, send
  back what it returns; until the process is ended. ``where`` is whatever a sender must know, as JSON can hold it.
* ``flood(where, size, warm, count)``: send as fast as it goes; what that cost both sides, without the warm-up.
* ``ping(where, size, count)``: the round-trip times of one message after the other.
* ``dial(where, count)``: connect, prove oneself, send one message, have its answer, close; one after the other.
* ``paced(where, size, count, rate)``: send so many a second; how long they were on their way. Not every system has it.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class System(NamedTuple):
    """One system.

    :ivar name: what ``--systems`` takes.
    :ivar file: its module here.
    :ivar package: the distribution that it is of; "" for the standard library.
    """

    name: str
    title: str
    file: str
    package: str


SYSTEMS = {
    system.name: system
    for system in (
        System("ipc_twisted", "ipc_twisted", "ours", "ipc_twisted"),
        System("curve", "pyzmq, CURVE", "zmq_curve", "pyzmq"),
        System("zmq", "pyzmq, no security", "zmq_plain", "pyzmq"),
        System("multiprocessing", "multiprocessing.connection, authkey", "multiprocessing_", ""),
        System("asyncio", "asyncio streams, no security", "asyncio_streams", ""),
        System("int32", "Int32StringReceiver, no security", "int32", "Twisted"),
        System("amp", "AMP, no security", "amp", "Twisted"),
        System("session", "jupyter_client Session", "jupyter_session", "jupyter_client"),
        System("grpc", "grpcio, local credentials", "grpc_local", "grpcio"),
    )
}


def load(name: str) -> Any:
    """The module of a system, or of a variation of ours."""
    file = SYSTEMS[name].file if name in SYSTEMS else name
    return importlib.import_module(f"benchmarks.systems.{file}")
