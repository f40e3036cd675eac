"""A process that connects to a port again and again and says nothing.

``python -m tests.soak.flooder OPTIONS``, as a process of :class:`tests.soak.common.Program`. It resets its oldest
connections when it has too many.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections import deque

import msgspec

_GRACE = 15  # seconds after its time for a thread to end; a connect takes five at most
_RESET = struct.pack("ii", 1, 0)


class Options(msgspec.Struct, kw_only=True):
    """Of the command line.

    :ivar rate: connects a second; 0: as many as go.
    :ivar threads: that connect, each one connection after the other.
    :ivar held: connections at a time.
    :ivar spray: do not even wait until a connect has succeeded.
    """

    port: int
    rate: float
    seconds: float
    threads: int = 1
    held: int = 500
    spray: bool = False


class Flooder(threading.Thread):
    """One thread of it.

    :ivar count: connects so far.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(daemon=True)  # so that one that hangs in the kernel does not keep the process
        self.count = 0
        self._options = options
        self._begin = time.monotonic()
        self._held: deque[socket.socket] = deque()

    def run(self) -> None:
        options = self._options
        while (passed := time.monotonic() - self._begin) < options.seconds:
            if options.rate and self.count >= passed * options.rate / options.threads:
                time.sleep(0.002)  # this is what sets the pace
            else:
                self._connect()
        for sock in self._held:
            sock.close()

    def _connect(self) -> None:
        options = self._options
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.settimeout(0 if options.spray else 5)
        self._held.append(sock)
        self.count += 1
        try:
            sock.connect(("127.0.0.1", options.port))
        except OSError:
            self.count -= not options.spray
        if len(self._held) > options.held // options.threads:
            self._held.popleft().close()


def main() -> None:
    options = msgspec.json.decode(sys.argv[1].encode(), type=Options)
    threads = [Flooder(options) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    print(json.dumps({"event": "begun"}), flush=True)
    deadline = time.monotonic() + options.seconds + _GRACE
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    count, hung = sum(thread.count for thread in threads), sum(thread.is_alive() for thread in threads)
    print(json.dumps({"event": "ended", "count": count, "hung": hung}), flush=True)


if __name__ == "__main__":
    main()
