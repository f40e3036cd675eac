"""A key holder that misbehaves, for ``ipc-twisted demo``: it signs what no honest sender would send.

Blocking, one connection, built from the core's own parts; not for anything else.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType

from ipc_twisted.config import LOOPBACK
from ipc_twisted.core.codec import Close, Receipt, canonical_payload, deserialize
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.framing import LENGTH_BYTES
from ipc_twisted.core.handshake import NONCE_BYTES, ClientHandshake, Endpoint, Limits, Outcome
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.signing import SIG_BYTES

_TIMEOUT_SECONDS = 10.0
_LIMITS = Limits(max_payload_bytes=1024 * 1024, ttl_seconds=30, messages=16, bytes=4 * 1024 * 1024)


class DemoPeer:
    """Connect to a server on this host, shake hands, and send whatever is asked for.

    :param prk: the key to shake hands with, right or wrong.
    :ivar outcome: of the handshake; None: the server ended it without an answer.
    """

    def __init__(self, port: int, prk: Prk, service: str) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), timeout=_TIMEOUT_SECONDS)
        host, own_port = self._socket.getsockname()
        handshake = ClientHandshake(
            prk, service, _LIMITS, Endpoint(LOOPBACK, port, host, own_port), os.urandom(NONCE_BYTES)
        )
        self._socket.sendall(handshake.start())
        self._seq = 0
        self.outcome: Outcome | None = None
        answer = self._read_frame()
        if answer is not None:
            reply, _ = handshake.receive(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
            self._socket.sendall(reply)
            self.outcome = handshake.outcome

    def __enter__(self) -> DemoPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    @staticmethod
    def envelope(kind: str = "job.run", *, age: int = 0) -> SecureEnvelope:
        """An envelope that is in order but for what is asked for.

        :param age: seconds that its ``ts`` lies back.
        """
        return SecureEnvelope(int(time.time()) - age, os.urandom(12).hex(), kind, payload_bytes=b"xxxxx")

    def frame(self, envelope: SecureEnvelope) -> bytes:
        """The next record, correctly signed."""
        if self.outcome is None:
            raise ConnectionError("the handshake was refused")
        body = canonical_payload(envelope, self._seq)
        self._seq += 1
        sig = self.outcome.send_key.sign(body)
        return (SIG_BYTES + len(body)).to_bytes(LENGTH_BYTES, "big") + sig + body

    def write(self, data: bytes) -> None:
        """Any bytes."""
        self._socket.sendall(data)

    def answer(self) -> Receipt | Close | None:
        """The next RECEIPT that decides something, or CLOSE; None: the connection ended without one."""
        while (frame := self._read_frame()) is not None:
            _, record = deserialize(frame[SIG_BYTES:])
            if isinstance(record, Close) or (isinstance(record, Receipt) and record.through >= self._seq - 1):
                return record
        return None

    def _read_frame(self) -> bytes | None:
        head = self._read(LENGTH_BYTES)
        return None if head is None else self._read(int.from_bytes(head, "big"))

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return data
