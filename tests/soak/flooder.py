"""A process that connects to a port again and again and says nothing.

``python -m tests.soak.flooder OPTIONS``, as a process of :class:`tests.soak.common.Program`. It does not wait for a
connect to succeed, and resets its oldest connection when it has too many.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress

import msgspec

_RESET = struct.pack("ii", 1, 0)
_AT_ONCE = 50
"""Connects between two looks at the clock, at full speed."""


class Options(msgspec.Struct, kw_only=True):
    """Of the command line.

    :ivar rate: connects a second; 0: as many as go.
    :ivar held: connections at a time.
    """

    port: int
    rate: float
    seconds: float
    held: int = 500


def main() -> None:
    options = msgspec.json.decode(sys.argv[1].encode(), type=Options)
    held: deque[socket.socket] = deque()
    count = 0
    begin = time.monotonic()
    print(json.dumps({"event": "begun"}), flush=True)
    while (passed := time.monotonic() - begin) < options.seconds:
        due = int(passed * options.rate) - count if options.rate else _AT_ONCE
        for _ in range(due):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.setblocking(False)
            with suppress(OSError):
                sock.connect(("127.0.0.1", options.port))
            held.append(sock)
            count += 1
            if len(held) > options.held:
                held.popleft().close()
        if not due:
            time.sleep(min(0.005, 1 / options.rate))  # this is what sets the pace
    for sock in held:
        sock.close()
    print(json.dumps({"event": "ended", "count": count, "seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    main()
