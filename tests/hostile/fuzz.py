"""A byte mutator over all vectors, against the core in memory: whatever comes, nothing but an ordered end follows.

Two campaigns. *Frames* are what somebody without the key says: handshake messages of the vectors, changed, to a server
that waits for M1 or M3 and to a client that waits for M2. *Bodies* are records of the vectors, changed and then signed
with the right key: what a key holder with a broken or hostile encoder sends. Held after every single one:

* No exception leaves the core, and the connection is in a state that the step allows.
* A stranger gets nothing, or M2 once and for a whole M1 under a known key; it is never let in without the exact proof.
* Of a body the core and ``tests/vectors/reference.py``, which shares no code with it, say the same: accepted with the
  same fields, or refused with the same category.

A run depends on its seed alone. ``python -m tests.hostile.fuzz --frames N --bodies N`` prints the figures; exit 1 if
memory was not flat.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ipc_twisted.core.codec import NO_SEQ
from ipc_twisted.core.connection import Connection, Policy, State
from ipc_twisted.core.envelope import SecureEnvelope
from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery, Outbox
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.verifier import Rejection
from tests import wire_peer as wire
from tests.core_pair import Callbacks, message
from tests.tiny_msgpack import hidden_pairs
from tests.vectors import common, reference
from tests.wire_peer import WireError

SEED = 20_260
FOLDER = Path(__file__).parent.parent / "vectors"
NOW = common.NOW
MAX_PAYLOAD = 2_048
LIMITS = Limits(MAX_PAYLOAD, 30, 64, 1 << 20)
POLICY = Policy(frozenset({"job.run"}), LIMITS)
ENDPOINT = Endpoint(*common.SERVER, *common.CLIENT)
PRKS = {wire.key_id(common.PRK, common.SERVICE): Prk(common.SECRET)}
(PRK,) = PRKS.values()
GUARD_SIZE = 256
GUARD_LIFE = 1_024
SENT = 6
"""Envelopes that the side under test has sent before bodies come, so that receipts have something to be about."""

FLAT_BYTES = 4 << 20
"""What memory may grow by from a tenth of the run to its end."""

INTERESTING = bytes.fromhex(
    "00017f80ff c0c1c2c3 c4c5c6 c7c8c9 cacbcccd cecf d0d1d2d3 d4d8 d9dadb dcdddedf 8f909fa0bf e0"
)
NUMBERS = [bytes.fromhex(text) for text in ("00000000", "ffffffff", "7fffffff", "80000000", "0000ffff", "00010000")]


class Broken(AssertionError):
    """What the campaign holds does not hold; the text has the bytes."""


# --- the mutator ------------------------------------------------------------------------------------------------------


class Mutator:
    """Changes bytes, the same way for the same seed.

    :param pool: what pieces are taken from for splices.
    """

    def __init__(self, seed: int, pool: Sequence[bytes]) -> None:
        self.random = random.Random(seed)
        self._below = self.random._randbelow  # type: ignore[attr-defined]  # half of the time of randrange
        self._pool = pool
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._flip, self._flip, self._set, self._set, self._number, self._insert, self._remove,
            self._repeat, self._cut, self._append, self._splice,
        )  # fmt: skip

    def below(self, bound: int) -> int:
        """A number from 0, less than ``bound``."""
        number: int = self._below(bound)
        return number

    def change(self, data: bytes) -> bytes:
        """One to four changes; one in 64 comes out as it went in."""
        if not self._below(64):
            return data
        changed = bytearray(data)
        for _ in range(1 + (0, 0, 0, 0, 1, 1, 2, 3)[self._below(8)]):
            self._changes[self._below(len(self._changes))](changed)
        return bytes(changed)

    def _at(self, data: bytearray) -> int:
        """Near the start more often than by chance: heads and headers are there."""
        bound = min(len(data), 64) if self._below(2) else len(data)
        at: int = self._below(bound or 1)
        return at

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << self._below(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = INTERESTING[self._below(len(INTERESTING))]

    def _number(self, data: bytearray) -> None:
        at = self._at(data)
        data[at : at + 4] = NUMBERS[self._below(len(NUMBERS))]

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self.random.randbytes(1 + self._below(8))

    def _remove(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + 1 + self._below(8)]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = data[at : at + 1 + self._below(32)]

    def _cut(self, data: bytearray) -> None:
        del data[self._below(len(data) + 1) :]

    def _append(self, data: bytearray) -> None:
        data += self.random.randbytes(1 + self._below(16))

    def _splice(self, data: bytearray) -> None:
        other = self._pool[self._below(len(self._pool))]
        start = self._below(len(other) + 1)
        at = self._at(data)
        data[at : at + 32] = other[start : start + 32]


def _load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["cases"]


def _settle_with(_: object) -> None:
    """Nobody waits for what the side under test has sent."""


def _outbox() -> Outbox:
    return Outbox(1 << 20, Counter(), _settle_with)


# --- frames of strangers ----------------------------------------------------------------------------------------------


def handshake_frames() -> list[bytes]:
    """Every message that the vectors have anybody say in a handshake."""
    found = [wire.prefixed(bytes.fromhex(case[m])) for case in _load("handshake_accept") for m in ("m1", "m2", "m3")]
    for case in _load("handshake_reject"):
        found += [bytes.fromhex(step["receive"]) for step in case["steps"] if "receive" in step]
    return list(dict.fromkeys(frame for frame in found if frame))


M1 = wire.prefixed(common.M1_MESSAGE)
M1_START = M1[:20]
M2_BYTES = 100


def _proves_itself(frame: bytes) -> bool:
    """It is an M2 that somebody with the key made for M1: the vectors hold some."""
    if len(frame) != M2_BYTES or frame[36:68] == common.NONCE_C:
        return False
    th = wire.transcript(common.SERVICE, ENDPOINT.packed(), M1[4:], frame[4:68])
    tag, _ = wire.tags(wire.connection_keys(common.PRK, th), th)
    return frame == wire.prefixed(wire.m2(frame[4:68], tag))


class Strangers:
    """The campaign of frames.

    :ivar ends: how often a connection ended in each category, by the side that judged.
    :ivar proof: the only frame behind :data:`M1` that lets anybody in.
    """

    def __init__(self, seed: int = SEED) -> None:
        frames = handshake_frames()
        self.ends: Counter[str] = Counter()
        self.frames = self.answered = self.admitted = self.answer_bytes = 0
        self._mutator = Mutator(seed, frames)
        self._guard = MemoryReplayGuard(GUARD_SIZE, LIMITS.ttl_seconds, common.INSTANCE)
        self._callbacks = Callbacks(_outbox, self._authenticated, self._handed_over, self._rejected)
        self._let_in = False
        th = wire.transcript(
            common.SERVICE, ENDPOINT.packed(), M1[4:], wire.m2_head(common.INSTANCE, LIMITS, common.NONCE_S)
        )
        self.proof = wire.prefixed(wire.m3(wire.tags(wire.connection_keys(common.PRK, th), th)[1]))
        self._true = {frame for frame in frames if _proves_itself(frame)}
        self._first = [M1, *frames]
        self._to_client = [wire.prefixed(wire.m2(common.M2_HEAD, common.TAG_S)), *frames]
        self._second = [self.proof, *frames]

    def run(self, count: int, watch: Callable[[int], None] = _settle_with) -> None:
        """Say ``count`` frames.

        :param watch: called now and then with how many there were.
        """
        step = max(1, count // 100)
        due = self.frames + step
        end = self.frames + count
        while self.frames < end:
            if self._mutator.below(4):
                self._to_a_server()
            else:
                self._to_a_client()
            if self.frames >= due:
                due += step
                watch(self.frames)

    def _authenticated(self) -> None:
        self._let_in = True

    def _handed_over(self, envelope: SecureEnvelope, _size: int) -> bool:
        raise Broken(f"a stranger's envelope was handed over: {envelope!r}")

    def _rejected(self, rejection: Rejection) -> None:
        raise Broken(f"a stranger's envelope was looked at: {rejection!r}")

    def _connection(self, handshake: ServerHandshake | ClientHandshake) -> Connection:
        self._let_in = False
        connection = Connection(handshake, POLICY, self._guard, self._callbacks)
        connection.start()
        return connection

    def _say(self, connection: Connection, data: bytes, cut: int) -> bytes:
        """In two segments where ``cut`` is within; returns what is answered."""
        self.frames += 1
        if cut in (len(M1), M2_BYTES):
            cut += 1  # else what is in front of the cut is a message in order
        connection.receive_data(data[:cut], NOW)
        if cut < len(data):
            connection.receive_data(data[cut:], NOW)
        if connection.state not in (State.HANDSHAKE, State.DEAD) and not self._let_in:
            raise Broken(f"{connection.state} after {data.hex()}")
        return b"".join(connection.data_to_send(1 << 18, NOW))

    def _pick(self, first: Sequence[bytes]) -> bytes:
        """A changed frame; every second time of what belongs here."""
        return self._mutator.change(first[0 if self._mutator.below(2) else self._mutator.below(len(first))])

    def _cut(self, data: bytes) -> int:
        """Where it is cut in two; every fourth is."""
        return len(data) if self._mutator.below(4) else self._mutator.below(len(data) + 1)

    def _to_a_server(self) -> None:
        first, second = self._pick(self._first), self._pick(self._second)
        self.tell_a_server(first, second, self._cut(first), self._cut(second))

    def _to_a_client(self) -> None:
        frame = self._pick(self._to_client)
        self.tell_a_client(frame, self._cut(frame))

    def tell_a_server(self, first: bytes, second: bytes, cut_first: int, cut_second: int) -> None:
        """Say ``first`` to a new server, and ``second`` if that was answered.

        :raises Broken: it does not do what it must.
        """
        connection = self._connection(
            ServerHandshake(PRKS, common.SERVICE, LIMITS, common.INSTANCE, ENDPOINT, common.NONCE_S)
        )
        answer = self._say(connection, first, cut_first)
        whole = len(first) == len(M1) and first.startswith(M1_START)
        if len(answer) != (M2_BYTES if whole else 0):
            raise Broken(f"{first.hex()} was answered with {answer.hex()}")
        if answer:
            self.answered += 1
            self.answer_bytes += len(answer)
            said = self._say(connection, second, cut_second)
            if said and not second.startswith(self.proof):
                raise Broken(f"{second.hex()} was answered")
            if self._let_in:  # and what lies behind the proof is a record, or a fault of one
                self.admitted += 1
                if first != M1 or not second.startswith(self.proof):
                    raise Broken(f"let in by {first.hex()} and {second.hex()}")
                self.ends["server: the exact proof"] += 1
                return
        self._end("server", connection)

    def tell_a_client(self, frame: bytes, cut: int) -> None:
        """Say ``frame`` to a client that has just connected.

        :raises Broken: it does not do what it must.
        """
        connection = self._connection(
            ClientHandshake(PRK, common.SERVICE, Limits(*common.LIMITS), ENDPOINT, common.NONCE_C)
        )
        if b"".join(connection.data_to_send(1 << 18, NOW)) != M1:
            raise Broken("a client says another M1 than the vectors")
        answer = self._say(connection, frame, cut)
        if (answer != b"") != (frame in self._true) or self._let_in != (answer != b""):
            raise Broken(f"{frame.hex()} made a client say {answer.hex()}")
        if answer:
            self.admitted += 1
            self.ends["client: the exact proof"] += 1
        else:
            self._end("client", connection)

    def _end(self, side: str, connection: Connection) -> None:
        """What it ended in; one that still waits is told that the stream is over."""
        if connection.state is State.HANDSHAKE:
            connection.receive_eof()
        if connection.state is not State.DEAD or connection.data_to_send(1 << 18, NOW):
            raise Broken(f"{connection.state} behind the end of a stranger")
        self.ends[f"{side}: {connection.category}"] += 1


# --- signed bodies ----------------------------------------------------------------------------------------------------


def record_bodies() -> list[tuple[str, bytes]]:
    """Direction and body of every whole record of the vectors that is small enough to be sent often."""
    cases = 4 * _load("records_accept") + _load("records_reject")  # most changes of the others are refused alike
    found = [(case["direction"], bytes.fromhex(case["frame"])[36:]) for case in cases]
    return [(direction, body) for direction, body in found if 11 <= len(body) <= MAX_PAYLOAD]


class Judged(NamedTuple):
    """What became of one record: ``accepted``, ``rejected`` or ``ended``, the category, and what was read."""

    what: str
    category: str
    read: object


class Side:
    """One connection of the package that is open and has sent :data:`SENT` envelopes, and the reference beside it."""

    def __init__(self, direction: str, guard: MemoryReplayGuard, shadow: reference.Guard) -> None:
        self.handed: list[SecureEnvelope] = []
        self.rejected: list[Rejection] = []
        self._direction = direction
        self._shadow = shadow
        handshake: ServerHandshake | ClientHandshake
        if direction == "c2s":
            handshake = ServerHandshake(PRKS, common.SERVICE, LIMITS, common.INSTANCE, ENDPOINT, common.NONCE_S)
        else:
            handshake = ClientHandshake(PRK, common.SERVICE, LIMITS, ENDPOINT, common.NONCE_C)
        callbacks = Callbacks(_outbox, hand_over=self._hand_over, rejected=self.rejected.append)
        self.connection = connection = Connection(handshake, POLICY, guard, callbacks)
        connection.start()
        own = LIMITS if direction == "s2c" else Limits(*common.LIMITS)
        m1 = wire.m1(next(iter(PRKS)), own, common.NONCE_C)
        head = wire.m2_head(common.INSTANCE, LIMITS, common.NONCE_S)
        th = wire.transcript(common.SERVICE, ENDPOINT.packed(), m1, head)
        keys = wire.connection_keys(common.PRK, th)
        tag_s, tag_c = wire.tags(keys, th)
        self.key: bytes = getattr(keys, direction)
        if direction == "c2s":
            connection.receive_data(wire.prefixed(m1), NOW)
            connection.data_to_send(0, NOW)
            connection.receive_data(wire.prefixed(wire.m3(tag_c)), NOW)
        else:
            connection.receive_data(wire.prefixed(wire.m2(head, tag_s)), NOW)
        for number in range(SENT):
            connection.send(message(Delivery, (NOW, f"o{number}", "job.run", None, None, None, {}), b""))
        connection.data_to_send(1 << 18, NOW)
        if connection.state is not State.OPEN:
            raise Broken("the handshake of the vectors does not end well")
        self.expected = 0
        self._sent: dict[str, Any] = {
            "sent": "E" * SENT,
            "through": NO_SEQ,
            "credit": dict(zip(("messages", "bytes"), own[2:], strict=True)),
        }

    def _hand_over(self, envelope: SecureEnvelope, _size: int) -> bool:
        self.handed.append(envelope)
        return True

    def take(self, frame: bytes, cut: int) -> Judged:
        """What the package makes of it, in two segments where ``cut`` is within."""
        self.handed.clear()
        self.rejected.clear()
        before = self.connection.outbox.unsettled
        self.connection.receive_data(frame[:cut], NOW)
        if cut < len(frame):
            self.connection.receive_data(frame[cut:], NOW)
        state, category = self.connection.state, str(self.connection.category)
        out = self.connection.data_to_send(1 << 18, NOW)
        contents, _ = wire.split_frames(b"".join(out))
        self._sent["sent"] += "".join("R" for content in contents if content[32] == wire.RECEIPT)
        if state is State.OPEN:
            if self.handed:
                (envelope,) = self.handed
                fields = [getattr(envelope, name) for name in ("ts", "nonce", "kind", "trace_id", "reply_to", "target")]
                return Judged("accepted", "", [*fields, envelope.headers, envelope.payload_bytes])
            if self.rejected:
                return Judged("rejected", str(self.rejected[0].category), None)
            return Judged("accepted", "", before - self.connection.outbox.unsettled)
        if self.handed or self.rejected:
            raise Broken(f"{frame.hex()} ended the connection and was looked at further")
        if state is State.DONE:
            return Judged("accepted", category, "close")
        if state is not State.FAILED or not out:
            raise Broken(f"{state} with {len(out)} answers after {frame.hex()}")
        return Judged("ended", category, None)

    def judge(self, frame: bytes) -> Judged:
        """What the reference makes of it; it keeps its own account of what was accepted before. Credit is no matter:
        it comes back with the RECEIPT behind each record."""
        try:
            reference._check_lengths(frame, MAX_PAYLOAD)
            record = wire.parse_body(frame[36:])
            if record.seq != self.expected:
                raise WireError("replayed" if record.seq < self.expected else "sequence_gap")
            header = wire.unpack(record.header)
            if record.type != wire.ENVELOPE:
                return self._told(reference._told(record, header, self._sent))
            fields = reference._envelope(header, hidden_pairs(record.header))
        except WireError as error:
            return Judged("ended", error.category, None)
        except ValueError:
            return Judged("ended", "malformed", None)
        self.expected += 1
        try:
            if fields["kind"] not in POLICY.allowed_kinds:
                raise WireError("kind_not_allowed")
            self._shadow.admit(fields["nonce"], fields["ts"], NOW)
        except WireError as error:
            return Judged("rejected", error.category, None)
        return Judged("accepted", "", [*fields.values(), record.payload])

    def agreed(self, frame: bytes, cut: int) -> Judged:
        """What both make of it.

        :raises Broken: they say two things.
        """
        theirs = self.judge(frame)
        ours = self.take(frame, cut)
        if ours != theirs:
            raise Broken(f"{self._direction} {frame.hex()}: the package says {ours}, the reference {theirs}")
        return ours

    def _told(self, found: dict[str, Any]) -> Judged:
        self.expected += 1
        settled = self._sent["sent"][self._sent["through"] + 1 : found["through"] + 1].count("E")
        self._sent["through"] = found["through"]
        if "category" in found:
            return Judged("accepted", found["category"], "close")
        self._sent["credit"] = {"messages": found["messages"], "bytes": found["bytes"]}
        return Judged("accepted", "", settled)


class Bodies:
    """The campaign of bodies.

    :ivar ends: how often the two said each thing.
    """

    def __init__(self, seed: int = SEED) -> None:
        self._bodies = record_bodies()
        self._mutator = Mutator(seed, [body for _, body in self._bodies])
        self.ends: Counter[str] = Counter()
        self.bodies = self.connections = 0
        self._renew()

    def _renew(self) -> None:
        """New guards: those of before are full, or nearly."""
        self._guard = MemoryReplayGuard(GUARD_SIZE, LIMITS.ttl_seconds, common.INSTANCE)
        self._shadow = reference.Guard(GUARD_SIZE, LIMITS.ttl_seconds)
        self._open: dict[str, Side] = {}

    def run(self, count: int, watch: Callable[[int], None] = _settle_with) -> None:
        """Send ``count`` bodies.

        :param watch: called now and then with how many there were.
        """
        step = max(1, count // 100)
        for _ in range(count):
            if self.bodies % GUARD_LIFE == 0:
                self._renew()
            self._one()
            if self.bodies % step == 0:
                watch(self.bodies)

    def _one(self) -> None:
        mutator = self._mutator
        direction, body = self._bodies[mutator.below(len(self._bodies))]
        side = self._open.pop(direction, None)
        if side is None:
            self.connections += 1
            side = Side(direction, self._guard, self._shadow)
        frame = wire.frame(side.key, self._change(body, side.expected))
        cut = mutator.below(len(frame)) if not mutator.below(4) else len(frame)
        self.bodies += 1
        ours = side.agreed(frame, cut)
        self.ends[f"{ours.what} {ours.category}".strip()] += 1
        if side.connection.state is State.OPEN:
            self._open[direction] = side

    def _change(self, body: bytes, seq: int) -> bytes:
        """A body, changed; mostly with its sequence number and the length of its header put right, or nothing would
        get past them."""
        mutator = self._mutator
        if mutator.below(8) == 0:
            changed = mutator.change(body)
            return changed if mutator.below(2) else changed[:1] + seq.to_bytes(8, "big") + changed[9:]
        (length,) = struct.unpack_from(">H", body, 9)
        header, payload = body[11 : 11 + length], body[11 + length :]
        if mutator.below(4):  # the nonce of most vectors, which is used up by the first
            header = header.replace(b"n-1", b"%03x" % mutator.below(4_096))
        header = mutator.change(header) if mutator.below(4) else header
        payload = payload if mutator.below(8) else mutator.change(payload)
        kind = body[:1] if mutator.below(32) else bytes([mutator.below(6)])
        number = seq if mutator.below(64) else max(0, seq + mutator.below(5) - 2)
        claimed = len(header) if mutator.below(64) else mutator.below(65_536)
        return kind + number.to_bytes(8, "big") + min(claimed, 65_535).to_bytes(2, "big") + header + payload


# --- figures ----------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Of this process, now; its peak where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def measured(name: str, count: int, campaign: Strangers | Bodies) -> bool:
    """Run a campaign, print its figures, and say whether memory was flat."""
    sizes: list[int] = []
    began = time.perf_counter()
    campaign.run(count, lambda _done: sizes.append(resident_bytes()))
    seconds = time.perf_counter() - began
    grown = sizes[-1] - sizes[len(sizes) // 10]
    print(f"{name}: {count:,} in {seconds:,.0f} s ({count / seconds:,.0f}/s), no unhandled exception")
    print(f"  resident after a tenth {sizes[len(sizes) // 10] / 2**20:.1f} MiB, at the end {sizes[-1] / 2**20:.1f} MiB")
    if isinstance(campaign, Strangers):
        print(f"  answered {campaign.answered:,}, each with {M2_BYTES} bytes; exact proofs {campaign.admitted:,}")
    else:
        print(f"  over {campaign.connections:,} connections; of each body two implementations said the same")
    for end, times in campaign.ends.most_common():
        print(f"  {times:>11,}  {end}")
    sys.stdout.flush()
    return grown <= FLAT_BYTES


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description="Fuzz the core in memory.")
    parser.add_argument("--frames", type=int, default=1_000_000, help="of unauthenticated peers (default 10^6)")
    parser.add_argument("--bodies", type=int, default=100_000, help="mutated and correctly signed (default 10^5)")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, Python {platform.python_version()}, {platform.machine()}")
    flat = True
    if options.frames:
        flat &= measured("frames", options.frames, Strangers(options.seed))
    if options.bodies:
        flat &= measured("bodies", options.bodies, Bodies(options.seed))
    if not flat:
        print(f"memory grew by more than {FLAT_BYTES >> 20} MiB")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
