"""What systemd is told about a service of ``Type=notify``, as ``sd_notify(3)`` has it; without systemd, nothing."""

from __future__ import annotations

import os
import socket
import time

from twisted.logger import Logger

_log = Logger(namespace="ipc_twisted")

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> None:
    """Send ``state`` to the socket that the environment names in ``NOTIFY_SOCKET``, if it names one.

    Never fails and never waits: a server that serves is worth more than one whose state is known. What went wrong is a
    line in the log.

    :param state: such as ``READY=1``; several are separated by line feeds.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        if address[0] not in "/@":
            raise ValueError("must be an absolute path, or an abstract name behind @")
        name = "\0" + address[1:] if address[0] == "@" else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), name)
    except (OSError, ValueError) as problem:  # ValueError also for a NUL
        _log.warn(
            "systemd was not told {state!r}: NOTIFY_SOCKET {address!r}: {problem}",
            event="notify_failed",
            state=state,
            address=address,
            problem=problem,
        )


def reloading() -> str:
    """``RELOADING=1`` with the time that systemd asks for beside it; to be followed by :data:`READY`."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
