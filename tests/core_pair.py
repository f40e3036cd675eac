"""Core connections in memory: two that are linked, and one against a forger.

There is no clock: every step is handed its second, ``NOW`` unless told. The forger writes and reads through
``tests.wire_peer``, so that what the package says is judged by a second implementation and not by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeVar

from ipc_twisted.core.codec import encode_header
from ipc_twisted.core.connection import Connection, Policy, State
from ipc_twisted.core.envelope import HeaderFields, SecureEnvelope
from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.verifier import Rejection
from tests import wire_peer as wire

NOW = 1_763_900_000
MIB = 1024 * 1024
ROOM = 256 * 1024
SECRET = bytes(range(32))
SERVICE = "execution_ipc"
KINDS = frozenset({"job.run"})
INSTANCE = bytes.fromhex("a1a2a3a4a5a6a7a8")
NONCE_C = b"\xc1" * 32
NONCE_S = b"\x51" * 32
ENDPOINT = Endpoint("127.0.0.1", 40001, "127.0.0.1", 50000)
LIMITS = Limits(16 * MIB, 30, 1_024, 64 * MIB)

D = TypeVar("D", bound=Delivery)

_nonces = count()


def _same(outbox: Outbox) -> Outbox:
    return outbox


def message(delivery: type[D], fields: HeaderFields, payload: bytes) -> D:
    """A new one, of a class of the test's own; ``fields`` in the order of the wire."""
    return delivery(fields[0], fields[2], fields[3], encode_header(fields), payload)


class Callbacks(NamedTuple):
    """An :class:`ipc_twisted.core.connection.Owner` of parts; without any it does nothing."""

    make_outbox: Callable[[], Outbox] = lambda: Outbox(10_000, Counter(), lambda _: None)
    handshake_done: Callable[[], None] = lambda: None
    hand_over: Callable[[SecureEnvelope, int], bool] = lambda _envelope, _size: True
    rejected: Callable[[Rejection], None] = lambda _: None


class Side:
    """One connection, and everything its owner was told.

    :ivar handler: what a hand-over does and returns; by default it is done at once.
    """

    def __init__(
        self,
        handshake: ServerHandshake | ClientHandshake,
        limits: Limits,
        *,
        capacity: int = 10_000,
        send_buffer: int = 64 * MIB,
        guard: MemoryReplayGuard | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.handed: list[SecureEnvelope] = []
        self.rejected: list[Rejection] = []
        self.unclaimed: list[Delivery] = []
        self.sent: Counter[str] = Counter()
        self.authenticated = 0
        self.on_authenticated: Callable[[], None] = lambda: None
        self.handler: Callable[[SecureEnvelope, int], bool] = lambda _envelope, _size: True
        self.guard = MemoryReplayGuard(capacity, limits.ttl_seconds, INSTANCE) if guard is None else guard
        self.connection = Connection(
            handshake,
            Policy(KINDS, limits),
            self.guard,
            Callbacks(
                partial(Outbox, send_buffer, self.sent, self.unclaimed.append)
                if outbox is None
                else partial(_same, outbox),
                self._authenticated,
                self._hand_over,
                self.rejected.append,
            ),
        )
        self.connection.start()

    @property
    def state(self) -> State:
        return self.connection.state

    def send(
        self,
        payload: bytes = b"",
        *,
        kind: str = "job.run",
        ts: int = NOW,
        trace_id: str | None = None,
        target: str | list[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Delivery:
        """Queue a message with a fresh nonce."""
        fields = (ts, f"n{next(_nonces)}", kind, trace_id, None, target, {} if headers is None else headers)
        delivery = message(Delivery, fields, payload)
        self.connection.send(delivery)
        return delivery

    def output(self, now: int = NOW, room: int = ROOM) -> bytes:
        """What it writes now."""
        return b"".join(self.connection.data_to_send(room, now))

    def _authenticated(self) -> None:
        self.authenticated += 1
        self.on_authenticated()

    def _hand_over(self, envelope: SecureEnvelope, size: int) -> bool:
        self.handed.append(envelope)
        return self.handler(envelope, size)


def server(limits: Limits = LIMITS, *, secrets: Iterable[bytes] = (SECRET,), **more: Any) -> Side:
    """A server's connection before its handshake."""
    prks = {prk.key_id(SERVICE): prk for prk in map(Prk, secrets)}
    return Side(ServerHandshake(prks, SERVICE, limits, INSTANCE, ENDPOINT, NONCE_S), limits, **more)


def client(limits: Limits = LIMITS, *, secret: bytes = SECRET, **more: Any) -> Side:
    """A client's connection before its handshake."""
    return Side(ClientHandshake(Prk(secret), SERVICE, limits, ENDPOINT, NONCE_C), limits, **more)


class Pair(NamedTuple):
    """Both ends of one connection."""

    client: Side
    server: Side

    def turn(self, now: int = NOW, room: int = ROOM) -> int:
        """Each side writes once and reads what the other wrote; returns the bytes that moved."""
        from_client, from_server = self.client.output(now, room), self.server.output(now, room)
        self.server.connection.receive_data(from_client, now)
        self.client.connection.receive_data(from_server, now)
        return len(from_client) + len(from_server)

    def settle(self, now: int = NOW, room: int = ROOM, turns: int = 100_000) -> None:
        """Take turns until nothing moves."""
        for _ in range(turns):
            if not self.turn(now, room):
                return
        raise AssertionError(f"still moving after {turns} turns")


def pair(client_limits: Limits = LIMITS, server_limits: Limits = LIMITS, **more: Any) -> Pair:
    """Both ends of a new connection, after the handshake."""
    linked = Pair(client(client_limits, **more), server(server_limits, **more))
    linked.settle()
    assert (linked.client.state, linked.server.state) == (State.OPEN, State.OPEN)
    return linked


class Forger:
    """A key holder that says whatever it is told to, against one :class:`Side`.

    :ivar seq: of its next record.
    :ivar heard_seq: of the next record it hears.
    """

    def __init__(self, side: Side, limits: Limits = LIMITS) -> None:
        self.side = side
        self.seq = self.heard_seq = 0
        prk = wire.prk(SECRET)
        ends = wire.endpoint(ENDPOINT[:2], ENDPOINT[2:])
        head = wire.m2_head(INSTANCE, limits, NONCE_S)
        said = side.output()
        if said:  # the side is a client
            m1 = said[4:]
            th = wire.transcript(SERVICE, ends, m1, head)
            keys = wire.connection_keys(prk, th)
            side.connection.receive_data(wire.prefixed(wire.m2(head, wire.tags(keys, th)[0])), NOW)
            side.output()
            self.key, self.heard_key = keys.s2c, keys.c2s
        else:
            m1 = wire.m1(wire.key_id(prk, SERVICE), limits, NONCE_C)
            side.connection.receive_data(wire.prefixed(m1), NOW)
            head = side.output()[4:68]
            th = wire.transcript(SERVICE, ends, m1, head)
            keys = wire.connection_keys(prk, th)
            side.connection.receive_data(wire.prefixed(wire.m3(wire.tags(keys, th)[1])), NOW)
            self.key, self.heard_key = keys.c2s, keys.s2c
        assert side.state is State.OPEN

    def record(
        self,
        type_: int,
        header: bytes,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        sig: bytes | None = None,
        header_len: int | None = None,
    ) -> bytes:
        """A frame; without ``seq`` the next one is taken and counted."""
        if seq is None:
            seq = self.seq
            self.seq += 1
        return wire.frame(self.key, wire.record_body(type_, seq, header, payload, header_len=header_len), sig)

    def envelope(
        self,
        payload: bytes = b"",
        *,
        ts: object = NOW,
        nonce: object = None,
        kind: object = "job.run",
        seq: int | None = None,
        sig: bytes | None = None,
        header: bytes | None = None,
    ) -> bytes:
        """An ENVELOPE, right in everything that is not given."""
        fields = [ts, f"f{next(_nonces)}" if nonce is None else nonce, kind, None, None, None, {}]
        return self.record(wire.ENVELOPE, wire.pack(fields) if header is None else header, payload, seq=seq, sig=sig)

    def receipt(
        self,
        through: object = -1,
        rejected: Sequence[object] = (),
        messages: object = LIMITS.messages,
        octets: object = LIMITS.bytes,
        **more: Any,
    ) -> bytes:
        """A RECEIPT."""
        return self.record(wire.RECEIPT, wire.pack([through, list(rejected), messages, octets]), **more)

    def close(
        self,
        category: object = "closed",
        through: object = -1,
        rejected: Sequence[object] = (),
        cause: object = None,
        **more: Any,
    ) -> bytes:
        """A CLOSE."""
        return self.record(wire.CLOSE, wire.pack([category, through, list(rejected), cause]), **more)

    def say(self, *frames: bytes, now: int = NOW) -> None:
        """Send the frames in one segment."""
        self.side.connection.receive_data(b"".join(frames), now)

    def hear(self, now: int = NOW, room: int = ROOM) -> list[tuple[int, list[Any]]]:
        """Type and header of every record that the side writes now; signature, order and completeness are checked."""
        contents, rest = wire.split_frames(self.side.output(now, room))
        assert not rest
        heard = []
        for content in contents:
            record = wire.open_content(self.heard_key, content)
            assert record.seq == self.heard_seq
            self.heard_seq += 1
            header = wire.unpack(record.header)
            assert wire.pack(header) == record.header, "not canonical"
            heard.append((record.type, header))
        return heard
