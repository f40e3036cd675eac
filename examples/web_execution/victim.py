"""An honest client whose connection the hostile process gets hold of. It holds the key and writes down what it sends.

Blocking, and made of the parts that the package's own protocol is made of: a normal client never sees its own bytes.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from examples.web_execution.messages import RENDER, TileRequest
from ipc_twisted import Category, ConnectionFileError, Keyring, SecureEnvelope, connection_file
from ipc_twisted.config import LOOPBACK
from ipc_twisted.core.codec import canonical_payload
from ipc_twisted.core.framing import LENGTH_BYTES
from ipc_twisted.core.handshake import NONCE_BYTES, ClientHandshake, Endpoint, Limits
from ipc_twisted.core.signing import SIG_BYTES

_SECONDS = 10.0
_LIMITS = Limits(max_payload_bytes=65_536, ttl_seconds=30, messages=16, bytes=4 * 65_536)
_ENVELOPE = 1
"""The type of the record that carries a message."""


class Recording(NamedTuple):
    """Of one connection.

    :ivar sent: what the client wrote, one after the other: first message, proof, record.
    """

    port: int
    sent: list[bytes]


def record(where: Path, *, keep_open: bool) -> tuple[Recording, socket.socket]:
    """Connect as a client that holds the key, have one tile rendered, and write down what was sent.

    :param where: the server's connection file.
    :param keep_open: leave the connection as it is behind the handshake: the record is written down and not sent.
    :returns: the recording, and the socket, which is the caller's to close.
    :raises OSError: the server is not there, or ended the connection.
    """
    info = connection_file.read(where)
    if info.key_file is None:
        raise ConnectionFileError(Category.CONNECTION_FILE_INVALID, "the server's key must be a generated one")
    client = socket.create_connection((LOOPBACK, info.port), timeout=_SECONDS)
    try:
        own_host, own_port = client.getsockname()
        handshake = ClientHandshake(
            Keyring.from_file(info.key_file).current,
            info.service,
            _LIMITS,
            Endpoint(LOOPBACK, info.port, own_host, own_port),
            os.urandom(NONCE_BYTES),
        )
        sent = [handshake.start()]
        client.sendall(sent[0])
        proof, _ = handshake.receive(_read_frame(client))
        if handshake.outcome is None:
            raise ConnectionError("the handshake has not ended")
        sent.append(proof)
        payload = msgspec.json.encode(TileRequest("whole", 0, 0))
        envelope = SecureEnvelope(int(time.time()), os.urandom(12).hex(), RENDER, payload_bytes=payload)
        body = canonical_payload(envelope, 0)
        sig = handshake.outcome.send_key.sign(body)
        sent.append((SIG_BYTES + len(body)).to_bytes(LENGTH_BYTES, "big") + sig + body)
        client.sendall(proof)
        if not keep_open:
            client.sendall(sent[2])
            while _read_frame(client)[LENGTH_BYTES + SIG_BYTES] != _ENVELOPE:
                pass  # receipts
    except BaseException:
        client.close()
        raise
    return Recording(info.port, sent), client


def _read_frame(client: socket.socket) -> bytes:
    """One message or record, with its length."""
    length = _read(client, LENGTH_BYTES)
    return length + _read(client, int.from_bytes(length, "big"))


def _read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
        if not part:
            raise ConnectionError("the server has ended the connection")
        data += part
    return data
