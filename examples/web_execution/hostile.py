"""The hostile process of the example. It has no key, knows nothing of ipc_twisted, and only has a socket.

Started as ``hostile.py replay`` or ``hostile.py forge``, with what it got hold of as JSON on standard input; writes
what it saw as JSON to standard output.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from typing import Any

SECONDS = 5.0
SIG_BYTES = 32


def replay(loot: dict[str, Any]) -> str:
    """Say everything that an honest client once said, to the byte, on a connection of its own."""
    first, *rest = map(bytes.fromhex, loot["recording"])
    with socket.create_connection(("127.0.0.1", loot["port"]), timeout=SECONDS) as connection:
        connection.sendall(first)
        challenge = connection.recv(1024)
        with suppress(ConnectionError):
            connection.sendall(b"".join(rest))
        answer = until_its_end(connection)
    return (
        f"the server answered with {len(challenge)} bytes, a new challenge; to the recorded proof and message it said "
        f"{answer}"
    )


def forge(loot: dict[str, Any]) -> str:
    """Write a record with a made-up signature into a connection of somebody else's, who has proved itself."""
    record = bytes.fromhex(loot["record"])
    length, body = record[:4], record[4 + SIG_BYTES :]
    with socket.socket(fileno=loot["descriptor"]) as connection:
        connection.settimeout(SECONDS)
        connection.sendall(length + os.urandom(SIG_BYTES) + body)
        answer = until_its_end(connection)
    return f"to a record of {len(record)} bytes with a made-up signature the server said {answer}"


def until_its_end(connection: socket.socket) -> str:
    """What came, and how it ended."""
    size = 0
    try:
        with suppress(ConnectionError):
            while data := connection.recv(4096):
                size += len(data)
    except TimeoutError:
        return f"{size} bytes, and left the connection open"
    return f"{size} bytes and ended the connection" if size else "nothing and ended the connection"


if __name__ == "__main__":
    attack = {"replay": replay, "forge": forge}[sys.argv[1]]
    json.dump({"saw": attack(json.load(sys.stdin))}, sys.stdout)
