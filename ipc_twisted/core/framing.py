"""The Int32 framer of the records: where one ends, what it may cost, and its MAC as far as it has come.

Like Twisted's ``Int32StringReceiver`` it has a ``MAX_LENGTH``; unlike it, it is linear for any fragmentation: every
byte is copied at most three times whatever the size of segments and records (once where a record lies within one
segment). ``copied`` counts that; ``tests/test_framing_cost.py`` holds it to the promise.

A record that lies within a segment is handed on as views of that segment. One that arrives in several is collected
part by part, its MAC computed as the parts come, so that it is ready when its last byte is; its payload is joined
once.

What a peer can make this hold: one record, and that only after its lengths were found within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from struct import Struct

from cryptography.hazmat.primitives.hmac import HMAC

from ipc_twisted.core.envelope import MAX_HEADER_BYTES
from ipc_twisted.core.signing import SIG_BYTES
from ipc_twisted.errors import Category

HEAD = Struct(">I32sBQH")  # u32 length | sig[32] | u8 type | u64 seq | u16 header_len
LENGTH_BYTES = 4
HEAD_BYTES = HEAD.size
BODY_AT = LENGTH_BYTES + SIG_BYTES
MIN_LENGTH = HEAD_BYTES - LENGTH_BYTES
FRAME_OVERHEAD = HEAD_BYTES + MAX_HEADER_BYTES
"""A frame is at most this much larger than its payload, bytes."""

_SMALL_BYTES = 512
_SMALL_COUNT = 256

Signed = memoryview | HMAC
"""What the signature covers: the body where it lies in one piece, else the MAC over the parts it came in."""

Frame = tuple[int, bytes, int, int, Signed, memoryview, bytes]
"""``(size, sig, type, seq, signed, header, payload)``, with ``size`` the whole frame's bytes. Nothing in it is
verified."""


class Framer:
    """Cut a byte stream into frames.

    :param max_payload_bytes: the largest payload that is taken.
    :param new_mac: starts the MAC of a record that arrives in parts.
    :ivar fault: why the stream cannot go on (``payload_too_large`` or ``malformed``), after the frames of :meth:`feed`.
    :ivar copied: bytes copied so far.
    """

    def __init__(self, max_payload_bytes: int, new_mac: Callable[[], HMAC]) -> None:
        self.MAX_LENGTH = MIN_LENGTH + MAX_HEADER_BYTES + max_payload_bytes
        self.fault: Category | None = None
        self.copied = 0
        self._dropped = False
        self._max_payload = max_payload_bytes
        self._new_mac = new_mac
        # The record that is arriving in parts.
        self._stage: Callable[[bytes], Frame | None] | None = None  # what comes next of it; None: none arrives
        self._begun = 0
        self._need = 0  # bytes of the stage
        self._have = 0
        self._parts: list[bytes] = []
        self._small: list[bytes] = []  # tiny parts until they are gathered: each object costs more than its bytes
        self._length = self._head = b""
        self._mac: HMAC | None = None  # while its payload arrives

    @property
    def receiving(self) -> int:
        """Which record has begun and has not ended, by a number of its own; 0: none."""
        return self._begun if self._stage is not None else 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take a segment; give the records that are now complete, in order, each when the one before is done with.

        Stops at the first length that is out of bounds: :attr:`fault` is set, and nothing behind it is ever given. To
        be gone through to its end, or never again. The hot loop: no call of ours within, and nothing kept of a record
        that lies whole within ``data``, so that the next finds its memory still in the processor's cache.
        """
        unpack, max_payload = HEAD.unpack_from, self._max_payload
        view = memoryview(data)
        data_len = len(data)
        last_head = data_len - HEAD_BYTES
        offset = copied = 0
        while offset < data_len and self.fault is None and not self._dropped:
            if self._stage is not None:
                offset, frame = self._collect(data, offset)
                if frame is not None:
                    yield frame
                continue
            while offset <= last_head:
                length, sig, type_, seq, header_len = unpack(data, offset)
                payload_len = length - MIN_LENGTH - header_len
                if not 0 <= payload_len <= max_payload:  # bounds length too, since header_len has 16 bits
                    self.fault = self._length_fault(length) or self._payload_fault(payload_len)
                    break
                end = offset + LENGTH_BYTES + length
                if end > data_len:
                    break
                payload_at = end - payload_len
                header = view[offset + HEAD_BYTES : payload_at]
                yield end - offset, sig, type_, seq, view[offset + BODY_AT : end], header, data[payload_at:end]
                copied += payload_len
                offset = end
            if offset < data_len and self.fault is None and not self._dropped:
                self._begun += 1
                self._await(self._take_length, LENGTH_BYTES)
        self.copied += copied

    def take_part(self, data: bytes) -> bool:
        """Take a segment that lies within a payload, at a fraction of what :meth:`feed` costs; False: it does not."""
        if self._mac is None or len(data) >= self._need - self._have:
            return False
        self._keep(data)
        return True

    def drop(self) -> None:
        """Let go of the record that is arriving, and keep nothing more: the connection has ended. What lies whole in a
        segment that is being gone through is still given; the chain drops it."""
        self._dropped = True
        self._stage = self._mac = None
        self._parts.clear()
        self._small.clear()

    def _length_fault(self, length: int) -> Category | None:
        if length < MIN_LENGTH:
            return Category.MALFORMED
        return Category.PAYLOAD_TOO_LARGE if length > self.MAX_LENGTH else None

    def _payload_fault(self, payload_len: int) -> Category | None:
        if payload_len < 0:
            return Category.MALFORMED
        return Category.PAYLOAD_TOO_LARGE if payload_len > self._max_payload else None

    def _collect(self, data: bytes, offset: int) -> tuple[int, Frame | None]:
        """Take what the record that is arriving still lacks, stage by stage: length, head, header, payload.

        Each stage is judged as soon as it is there, before anything of the next is kept.

        :returns: how far ``data`` is taken, and the record if it is complete.
        """
        frame = None
        while self._stage is not None:
            taken = min(self._need - self._have, len(data) - offset)
            if taken == len(data):
                self._keep(data)
            elif taken:
                self._keep(data[offset : offset + taken])
                self.copied += taken
            offset += taken
            if self._have < self._need:
                break
            stage, self._stage = self._stage, None
            self._have = 0
            frame = stage(self._join())
        return offset, frame

    def _await(self, stage: Callable[[bytes], Frame | None], need: int) -> None:
        self._stage, self._need = stage, need

    def _take_length(self, joined: bytes) -> None:
        self.fault = self._length_fault(int.from_bytes(joined, "big"))
        if self.fault is None:
            self._length = joined
            self._await(self._take_head, HEAD_BYTES - LENGTH_BYTES)

    def _take_head(self, joined: bytes) -> None:
        self._head = self._length + joined
        self.copied += len(self._head)
        length, *_, header_len = HEAD.unpack(self._head)
        self.fault = self._payload_fault(length - MIN_LENGTH - header_len)
        if self.fault is None:
            self._await(self._take_header, header_len)

    def _take_header(self, joined: bytes) -> None:
        self._mac = mac = self._new_mac()
        mac.update(memoryview(self._head)[BODY_AT:])
        mac.update(joined)
        length, *_, header_len = HEAD.unpack(self._head)
        self._await(partial(self._take_payload, mac, joined), length - MIN_LENGTH - header_len)

    def _take_payload(self, mac: HMAC, header: bytes, joined: bytes) -> Frame:
        self._mac = None
        length, sig, type_, seq, _ = HEAD.unpack(self._head)
        return LENGTH_BYTES + length, sig, type_, seq, mac, memoryview(header), joined

    def _keep(self, part: bytes) -> None:
        self._have += len(part)
        if len(part) >= _SMALL_BYTES:
            self._gather()
            self._add(part)
            return
        self._small.append(part)
        if len(self._small) >= _SMALL_COUNT:
            self._gather()

    def _gather(self) -> None:
        if self._small:
            part = b"".join(self._small)
            self._small.clear()
            self.copied += len(part)
            self._add(part)

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        if self._mac is not None:
            self._mac.update(part)

    def _join(self) -> bytes:
        self._gather()
        joined = b"".join(self._parts)
        if len(self._parts) > 1:
            self.copied += len(joined)
        self._parts.clear()
        return joined
