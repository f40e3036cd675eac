"""A blocking socket over :mod:`tests.wire_peer` that tests steer byte by byte; :mod:`tests.raw_peer` has its two roles.

What is *sent* is whatever the test asks for. What is *received* is held to the design: signature, sequence, canonical
encoding, our credit, truthful RECEIPTs and CLOSEs; a breach raises :class:`~tests.wire_peer.WireError`. (``strict =
False`` on a peer drops the last three, for tests in which both sides are of this module.)

Every read has one absolute deadline, ``timeout`` seconds from its call (10 unless told), and then raises
``TimeoutError``. An end of the stream raises :class:`PeerClosed`. Nothing here is thread-safe or knows Twisted: run
it in a thread (``deferToThread``) or against a child process.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias

from tests import wire_peer as wire
from tests.wire_peer import CLOSE, ENVELOPE, KINDS_OF_RECORD, RECEIPT, Limits, WireError

#: What :meth:`Channel.read_record` returns: ``"envelope"``, ``"receipt"`` or ``"close"``, and its fields.
Read: TypeAlias = tuple[str, dict[str, Any]]

DEFAULT_LIMITS: Limits = (16_777_216, 30, 1_024, 67_108_864)
DEFAULT_TIMEOUT = 10.0


class PeerClosed(ConnectionError):
    """The stream ended, or a CLOSE left the question open.

    :ivar close: the fields of the CLOSE that was read before, None if there was none.
    :ivar left_over: bytes of an unfinished frame.
    """

    def __init__(self, detail: str, close: dict[str, Any] | None = None, left_over: bytes = b"") -> None:
        super().__init__(f"{detail}; CLOSE {close!r}; {len(left_over)} bytes of a frame left over")
        self.close = close
        self.left_over = left_over


class Channel:
    """What the two roles share: one socket, the records of both directions, and what was learned from them.

    :ivar sent: the types of the records sent with a seq of their own accord, by seq.
    :ivar aside: envelopes read while something else was looked for; :meth:`read_envelope` takes from here first.
    :ivar through: of the last RECEIPT or CLOSE, −1 before.
    :ivar rejected: category by seq, of all RECEIPTs and CLOSEs so far.
    :ivar credit: (messages, bytes) that the other side has granted so far.
    :ivar granted: (messages, bytes) that this side has granted so far; ``used``: what came of that.
    :ivar close_record: the fields of the CLOSE once it was read.
    :ivar reset: whether the stream ended with a reset.
    """

    #: Whether what comes in must be canonical, within our credit, and its receipts truthful.
    strict: bool = True
    #: The names of the role's own and its peer's key in :class:`~tests.wire_peer.Keys`.
    _directions: ClassVar[tuple[str, str]]

    def __init__(self, sock: socket.socket, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.sock = sock
        # Small writes in turns would wait for each other's delayed acknowledgements, 40 ms a time.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout = timeout
        self.keys: wire.Keys | None = None
        self.limits: Limits = DEFAULT_LIMITS
        self.peer_limits: Limits = DEFAULT_LIMITS
        self.sent: list[int] = []
        self.received = 0
        self.last_envelope = -1
        self.aside: list[dict[str, Any]] = []
        self.through = -1
        self.rejected: dict[int, str] = {}
        self.credit: tuple[int, int] = (0, 0)
        self.granted: tuple[Any, Any] = (0, 0)
        self.used = (0, 0)
        self.close_record: dict[str, Any] | None = None
        self.reset = False
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the socket ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket; with unread bytes in it the system answers the peer with a reset."""
        self.sock.close()

    def abort(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def end_writing(self) -> None:
        """Send the end of our direction and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def send_raw(self, data: bytes) -> None:
        """Send exactly these bytes."""
        self.sock.settimeout(self.timeout)
        self.sock.sendall(data)

    def _receive(self, deadline: float) -> bytes:
        """What the socket has next, ``b""`` at its end."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{len(self._buffer)} bytes of a frame came before the deadline")
        self.sock.settimeout(left)
        try:
            return self.sock.recv(1 << 18)
        except ConnectionResetError:
            self.reset = True
            return b""

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def read_exactly(self, count: int, timeout: float | None = None) -> bytes:
        """The next ``count`` bytes.

        :raises PeerClosed: when the stream ends before.
        """
        deadline = self._deadline(timeout)
        while len(self._buffer) < count:
            chunk = self._receive(deadline)
            if not chunk:
                raise PeerClosed("the stream ended", self.close_record, bytes(self._buffer))
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read_content(self, timeout: float | None = None, *, limit: int | None = None) -> bytes:
        """The next frame without its length, unverified.

        :param limit: the longest handshake message that is taken; None where a record is expected, which our own
            limits bound.
        """
        deadline = self._deadline(timeout)
        (length,) = struct.unpack(">I", self.read_exactly(4, timeout))
        most = wire.MIN_LENGTH + wire.MAX_HEADER + self.limits[0] if limit is None else limit
        if length > most:
            raise WireError("payload_too_large" if limit is None else "handshake_malformed", f"frame of {length} bytes")
        return self.read_exactly(length, max(deadline - time.monotonic(), 0))

    def wait_eof(self, timeout: float | None = None) -> bytes:
        """Everything that still comes until the stream ends or is reset, unread bytes included; often ``b""``."""
        deadline = self._deadline(timeout)
        while chunk := self._receive(deadline):
            self._buffer += chunk
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    # --- sending records ----------------------------------------------------------------------------------------------

    def _established(self) -> wire.Keys:
        if self.keys is None:
            raise RuntimeError("no handshake yet")
        return self.keys

    def _adopt(self, keys: wire.Keys, limits: Limits, peer_limits: Limits) -> None:
        self.keys, self.limits, self.peer_limits = keys, limits, peer_limits
        self.granted, self.credit = limits[2:], peer_limits[2:]

    def record_frame(
        self,
        record_type: int,
        header: object,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        sig: bytes | None = None,
        header_len: int | None = None,
    ) -> tuple[int, bytes]:
        """``(seq, frame)`` of any record, for :meth:`send_raw`.

        :param header: what to pack, or the header's bytes as they are.
        :param seq: None takes the next one and counts it; any other leaves the count alone.
        :param sig: 32 bytes in place of the true signature.
        :param header_len: in place of the true one.
        """
        key: bytes = getattr(self._established(), self._directions[0])
        if seq is None:
            seq = len(self.sent)
            self.sent.append(record_type)
        raw = header if isinstance(header, bytes) else wire.pack(header)
        return seq, wire.frame(key, wire.record_body(record_type, seq, raw, payload, header_len=header_len), sig)

    def envelope_frame(
        self,
        kind: object,
        payload: bytes = b"",
        *,
        ts: object = None,
        nonce: object = None,
        trace_id: object = None,
        reply_to: object = None,
        target: object = None,
        headers: Mapping[Any, Any] | object = None,
        seq: int | None = None,
        sig: bytes | None = None,
        header: bytes | None = None,
    ) -> tuple[int, bytes]:
        """``(seq, frame)`` of an envelope; ``ts`` is now and ``nonce`` 24 random hex digits unless given.

        :param header: the header's bytes, in place of all fields. See :meth:`record_frame` for ``seq`` and ``sig``.
        """
        fields = [
            int(time.time()) if ts is None else ts,
            secrets.token_hex(12) if nonce is None else nonce,
            kind,
            trace_id,
            reply_to,
            target,
            {} if headers is None else headers,
        ]
        return self.record_frame(ENVELOPE, fields if header is None else header, payload, seq=seq, sig=sig)

    def send_envelope(self, kind: object, payload: bytes = b"", **overrides: Any) -> int:
        """Send one envelope and return its seq; the keywords are those of :meth:`envelope_frame`."""
        seq, frame = self.envelope_frame(kind, payload, **overrides)
        self.send_raw(frame)
        return seq

    def send_receipt(
        self,
        through: object = None,
        rejected: Sequence[object] = (),
        *,
        credit: tuple[object, object] | None = None,
        seq: int | None = None,
        sig: bytes | None = None,
        header: bytes | None = None,
        payload: bytes = b"",
    ) -> int:
        """Send a RECEIPT and return its seq; defaults: ``through`` the last envelope read, ``credit`` as before."""
        if credit is not None:
            self.granted = credit
        fields = [self.last_envelope if through is None else through, list(rejected), *self.granted]
        seq, frame = self.record_frame(RECEIPT, fields if header is None else header, payload, seq=seq, sig=sig)
        self.send_raw(frame)
        return seq

    def send_close(
        self,
        category: object = "closed",
        through: object = None,
        rejected: Sequence[object] = (),
        cause: object = None,
        *,
        seq: int | None = None,
        sig: bytes | None = None,
        header: bytes | None = None,
        payload: bytes = b"",
    ) -> int:
        """Send a CLOSE and return its seq; ``through`` is the last envelope read unless given."""
        fields = [category, self.last_envelope if through is None else through, list(rejected), cause]
        seq, frame = self.record_frame(CLOSE, fields if header is None else header, payload, seq=seq, sig=sig)
        self.send_raw(frame)
        return seq

    # --- reading records ----------------------------------------------------------------------------------------------

    def read_record(self, timeout: float | None = None) -> Read:
        """The next record from the socket, verified.

        The fields are ``seq`` and those of the header by name: of an envelope ``ts``, ``nonce``, ``kind``,
        ``trace_id``, ``reply_to``, ``target``, ``headers``, and ``payload``, ``sig`` (64 hex digits), ``frame_bytes``;
        of a receipt ``through``, ``rejected`` (a list of ``[seq, category]``), ``messages``, ``bytes``; of a close
        ``category``, ``through``, ``rejected``, ``cause``.

        :raises PeerClosed: when the stream ends. :raises WireError: when the record breaks section 4.
        """
        content = self.read_content(timeout)
        key: bytes = getattr(self._established(), self._directions[1])
        record = wire.open_content(key, content)
        if record.seq != self.received:
            raise WireError("sequence_gap", f"seq {record.seq} where {self.received} belongs")
        if self.close_record is not None:
            raise WireError("malformed", "a record behind the CLOSE")
        self.received += 1
        fields = self._fields(record)
        if record.type == ENVELOPE:
            fields |= {"payload": record.payload, "sig": content[:32].hex(), "frame_bytes": len(content) + 4}
            self.last_envelope = record.seq
            self.used = (self.used[0] + 1, self.used[1] + len(content) + 4)
            if self.strict and (self.used[0] > self.granted[0] or self.used[1] > self.granted[1]):
                raise WireError("credit_exceeded", f"{self.used} of {self.granted}")
        else:
            self._learn(record, fields)
        return KINDS_OF_RECORD[record.type], fields

    def _fields(self, record: wire.Record) -> dict[str, Any]:
        names = {
            ENVELOPE: ("ts", "nonce", "kind", "trace_id", "reply_to", "target", "headers"),
            RECEIPT: ("through", "rejected", "messages", "bytes"),
            CLOSE: ("category", "through", "rejected", "cause"),
        }.get(record.type)
        try:
            values = wire.unpack(record.header)
        except ValueError as error:
            raise WireError("malformed", str(error)) from error
        if names is None or not isinstance(values, list) or len(values) != len(names):
            raise WireError("malformed", f"type {record.type} with header {values!r}")
        if self.strict and wire.pack(values) != record.header:
            raise WireError("malformed", f"header is not canonical: {record.header.hex()}")
        return {"seq": record.seq, **dict(zip(names, values, strict=True))}

    def _learn(self, record: wire.Record, fields: dict[str, Any]) -> None:
        if self.strict:
            fault = wire.receipt_fault(self.sent, self.through, fields["through"], fields["rejected"])
            if record.type == RECEIPT:
                fault = fault or wire.credit_fault(self.credit, fields["messages"], fields["bytes"])
            if record.payload or fault:
                raise WireError("malformed", fault or "payload in a RECEIPT or CLOSE")
        self.through = fields["through"]
        self.rejected |= dict(fields["rejected"])
        if record.type == RECEIPT:
            self.credit = (fields["messages"], fields["bytes"])
        else:
            self.close_record = fields

    def read_envelope(self, timeout: float | None = None) -> dict[str, Any]:
        """The next envelope: from :attr:`aside`, else from the socket, RECEIPTs on the way being taken in."""
        deadline = self._deadline(timeout)
        while not self.aside:
            self._read_on(deadline, "no envelope came")
        return self.aside.pop(0)

    def read_until_close(self, timeout: float | None = None) -> dict[str, Any]:
        """The fields of the CLOSE; envelopes on the way go :attr:`aside`."""
        deadline = self._deadline(timeout)
        while self.close_record is None:
            self._read_on(deadline, "no CLOSE came")
        return self.close_record

    def receipt_for(self, seq: int, timeout: float | None = None) -> str:
        """``"accepted"`` or the category of the rejection; envelopes on the way go :attr:`aside`.

        :raises PeerClosed: when a CLOSE or the end of the stream comes before a RECEIPT covers ``seq``.
        """
        deadline = self._deadline(timeout)
        while self.through < seq:
            self._read_on(deadline, f"no receipt for {seq}")
        return self.rejected.get(seq, "accepted")

    def _read_on(self, deadline: float, missing: str) -> None:
        if self.close_record is not None:
            raise PeerClosed(missing, self.close_record)
        what, fields = self.read_record(max(deadline - time.monotonic(), 0))
        if what == "envelope":
            self.aside.append(fields)
