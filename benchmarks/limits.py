"""What no transport of this kind can beat: signing a message, and copying it over loopback, each alone in a loop."""

from __future__ import annotations

import os
import socket
import threading
import time

from ipc_twisted.core.signing import MacKey

_SECONDS = 0.2


def limit(size: int) -> float:
    """Messages of ``size`` bytes a second that one processor can sign and write to a loopback socket, 64 KiB at a time
    where they are smaller."""
    return 1 / (_sign(size) + _copy(max(size, 65_536)) * size / max(size, 65_536))


def _sign(size: int) -> float:
    key, message = MacKey(os.urandom(32)), bytes(size)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        for _ in range(max(1, 65_536 // size)):
            key.sign(message)
            count += 1
    return (time.perf_counter() - began) / count


def _copy(size: int) -> float:
    """Processor time of the writing thread: the reading one is the other process's in truth."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as writer:
        reader, _ = server.accept()
        thread = threading.Thread(target=_read, args=(reader,))
        thread.start()
        message, count = bytes(size), 0
        began, spent = time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < _SECONDS:
            writer.sendall(message)
            count += 1
        spent = time.thread_time() - spent
        writer.shutdown(socket.SHUT_WR)
        thread.join()
        return spent / count


def _read(reader: socket.socket) -> None:
    room = bytearray(2**20)
    with reader:
        while reader.recv_into(room):
            pass
