"""Section 9 as a property: a sender that connects again learns the truth, and nothing is handed over twice.

Sender and receiver are the real core; between them lies a network that delivers, delays, damages and cuts as a
:data:`Story` says, which also moves both clocks, ends connections in every way and starts the receiver again. Four
promises are looked at when all is over. That they would be missed is shown by the wrong ones below: each has one rule
less, and the same stories find it out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ipc_twisted.core.codec import decode_header, encode_header
from ipc_twisted.core.connection import Connection, Policy, State
from ipc_twisted.core.envelope import HeaderFields, SecureEnvelope
from ipc_twisted.core.handshake import ClientHandshake, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery
from ipc_twisted.core.replay import MemoryReplayGuard
from ipc_twisted.core.resend import ResendingOutbox
from ipc_twisted.errors import Category, DeliveryUnknown, EnvelopeError, Rejected
from tests import core_pair
from tests.core_pair import ENDPOINT, KINDS, NOW, ROOM, SECRET, SERVICE, Callbacks

TTL = 4
CAPACITY = 2
"""Of a replay guard: full at once, so that its window shrinks all the time."""

CREDIT = 5
LARGE = 64
LARGEST = (16 + LARGE, 16)
"""``max_payload_bytes`` of a receiver, by its kind: one takes large messages, one does not."""

PRK = Prk(SECRET)
PRKS = {PRK.key_id(SERVICE): PRK}


# The network


class End:
    """One end of a link: what :class:`ipc_twisted.protocol.SecureIPCProtocol` does for its connection, by hand.

    :ivar unread: bytes that lie between the two, for this end.
    :ivar cut_short: no more bytes will come.
    :ivar gone: the transport is.
    """

    peer: End

    def __init__(self, party: Party, connection: Connection) -> None:
        self.party = party
        self.connection = connection
        self.unread = bytearray()
        self.cut_short = self.gone = False
        party.ends.append(self)

    def start(self) -> None:
        self.connection.start()
        self.follow()

    def read(self, percent: int = 100) -> None:
        """What lies there or a part of it; if nothing does, the end behind it."""
        size = -(-len(self.unread) * percent // 100)
        data = bytes(self.unread[:size])
        del self.unread[:size]
        if data:
            self.connection.receive_data(data, self.party.now())
        elif self.cut_short:
            self.connection.receive_eof()
        self.follow()

    def write(self, room: int = ROOM) -> None:
        """One flush."""
        self.put(self.connection.data_to_send(room, self.party.now()))
        self.follow()

    def close(self, category: Category) -> None:
        self.connection.close(category)
        self.follow()

    def follow(self) -> None:
        """Do what the core's state asks for."""
        self.put(self.connection.data_to_send(0, 0))
        if self.connection.state in (State.CLOSING, State.FAILED):
            self.peer.cut_short = True
        elif self.connection.state in (State.DONE, State.DEAD):
            self.leave()

    def leave(self) -> None:
        """The transport is gone here. What was written can still be read at the other end."""
        if self.gone:
            return
        self.gone = self.peer.cut_short = True
        self.unread.clear()
        self.connection.connection_lost()
        self.party.ends.remove(self)

    def put(self, buffers: list[bytes]) -> None:
        if not (self.peer.gone or self.peer.cut_short):
            self.peer.unread += b"".join(buffers)

    def damage(self, percent: int) -> None:
        if self.unread:
            self.unread[(len(self.unread) - 1) * percent // 100] ^= 0x55


# The two sides


class Party:
    """What outlives a connection of one side: clock and guard, as :mod:`ipc_twisted.factory` has them."""

    guard_class: type[MemoryReplayGuard] = MemoryReplayGuard

    def __init__(self) -> None:
        self.clock = NOW
        self.ends: list[End] = []
        self.instances = 0
        self.guard = self.new_guard()

    def new_guard(self) -> MemoryReplayGuard:
        self.instances += 1
        return self.guard_class(CAPACITY, TTL, self.new_instance())

    def new_instance(self) -> bytes:
        return self.instances.to_bytes(8, "big")

    def now(self) -> int:
        """If the clock fell behind what the guard has forgotten, everything begins anew."""
        if self.guard.floor > self.clock + 1:
            self.guard = self.new_guard()
            for end in list(self.ends):
                end.close(Category.CLOCK_STEPPED)
        return self.clock


class Receiver(Party):
    """It remembers what it handed over, by the message, across all of its lives; its guard does not.

    :ivar surprise: what the handler does to its connection at the next hand-over.
    """

    connection_class: type[Connection] = Connection

    def __init__(self) -> None:
        super().__init__()
        self.handed_over: Counter[int] = Counter()
        self.largest = LARGEST[0]
        self.surprise: Callable[[Connection], None] | None = None

    def accept(self, nonce: bytes) -> End:
        limits = Limits(self.largest, TTL, CREDIT, 10_000)
        connection: Connection
        connection = self.connection_class(
            ServerHandshake(PRKS, SERVICE, limits, self.guard.instance, ENDPOINT, nonce),
            Policy(KINDS, limits),
            self.guard,
            Callbacks(hand_over=lambda envelope, _size: self.hand_over(connection, envelope)),
        )
        return End(self, connection)

    def hand_over(self, connection: Connection, envelope: SecureEnvelope) -> bool:
        self.handed_over[int.from_bytes(envelope.payload_bytes[:4], "big")] += 1
        surprise, self.surprise = self.surprise, None
        if surprise is not None:
            surprise(connection)
        return True

    def restart(self, kind: int) -> None:
        """Everything is forgotten, and what was not read is lost."""
        for end in list(self.ends):
            end.leave()
        self.largest = LARGEST[kind]
        self.guard = self.new_guard()


class Message(Delivery, eq=False):
    """It counts how often it was ended."""

    ends: int = 0

    def settle(self, error: Rejected | DeliveryUnknown | None) -> None:
        self.ends += 1
        super().settle(error)


class Sender(Party):
    """As :class:`ipc_twisted.ExecutionIPCClientService`: its messages outlive its connections, one at a time.

    :ivar messages: all that were queued; the payload of each begins with its place here.
    """

    def __init__(self, outbox: type[ResendingOutbox]) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.outbox = outbox(10**6, self.outcomes, lambda _: None)
        self.messages: list[Message] = []

    def dial(self, nonce: bytes) -> End:
        limits = Limits(LARGEST[0], TTL, CREDIT, 10_000)
        return End(
            self,
            Connection(
                ClientHandshake(PRK, SERVICE, limits, ENDPOINT, nonce),
                Policy(KINDS, limits),
                self.guard,
                Callbacks(lambda: self.outbox),
            ),
        )

    def send(self, size: int, told: Callable[[Delivery], None] | None = None) -> None:
        """What is refused at once was never a message."""
        number = len(self.messages)
        payload = number.to_bytes(4, "big") + bytes(size)
        fields: HeaderFields = (self.now(), f"n{number}", "job.run", None, None, None, {})
        open_ = [end.connection for end in self.ends if end.connection.state is State.OPEN]
        message = core_pair.message(Message, fields, payload)
        try:
            if open_:
                open_[0].send(message)
            else:
                self.outbox.add(message)
        except EnvelopeError:
            return
        self.messages.append(message)
        if told is not None:
            message.add_done_callback(told)

    def look(self) -> None:
        """Once a second."""
        self.outbox.expire(self.now() - TTL)
        self.outbox.requeue()


# What may happen


Step = tuple[str, int]
Story = list[Step]


class World:
    """Both sides and all links between them. Each method without an underscore is a step."""

    def __init__(self, outbox: type[ResendingOutbox] = ResendingOutbox, receiver: type[Receiver] = Receiver) -> None:
        self._sender = Sender(outbox)
        self._receiver = receiver()
        self._links = 0

    # The sender

    def send(self, size: int) -> None:
        self._sender.send(size)

    def send_and(self, what: int) -> None:
        """Whoever is told of the outcome does something, in the middle of whatever told him."""

        def told(_: Delivery) -> None:
            if what == 0:
                self._sender.send(0)
            elif what == 1:
                self._sender.look()
            for end in self._sender.ends:
                if what == 2:
                    end.connection.close()
                elif what == 3:
                    end.connection.abandon(Category.CLOSED)

        self._sender.send(0, told)

    def connect(self, pending: int) -> None:
        """All of the handshake but its last messages, ``pending`` of them."""
        if self._sender.ends:
            return
        self._links += 1
        server = self._receiver.accept(b"s" * 24 + self._links.to_bytes(8, "big"))
        client = self._sender.dial(b"c" * 24 + self._links.to_bytes(8, "big"))
        client.peer, server.peer = server, client
        client.start()
        for end in [server, client, server][: 3 - pending]:
            end.read()

    def write(self, room: int) -> None:
        self.connect(0)
        for end in self._sender.ends:
            end.write(room)

    def read(self, percent: int) -> None:
        for end in list(self._sender.ends):
            end.read(percent)

    def close(self, _: int) -> None:
        for end in list(self._sender.ends):
            end.close(Category.CLOSED)

    def look(self, _: int) -> None:
        self._sender.look()

    # The receiver, at the link there is

    def arrive(self, percent: int) -> None:
        for end in self._servers():
            end.read(percent)

    def answer(self, _: int) -> None:
        for end in self._servers():
            end.write()

    def server_closes(self, _: int) -> None:
        for end in self._servers():
            end.close(Category.SHUTTING_DOWN)

    def server_drains(self, _: int) -> None:
        for end in self._servers():
            end.connection.drain(Category.SHUTTING_DOWN)
            end.follow()

    def server_loses_patience(self, _: int) -> None:
        """With a record that has not arrived in full."""
        for end in self._servers():
            if end.connection.receiving:
                end.connection.fail(Category.FRAME_TIMEOUT)
                end.follow()

    def server_speaks(self, _: int) -> None:
        """So that receipts lie between the envelopes."""
        now = self._receiver.now()
        for end in self._servers():
            if end.connection.state is State.OPEN:
                fields: HeaderFields = (now, f"s{now}", "job.run", None, None, None, {})
                end.connection.send(core_pair.message(Delivery, fields, b""))

    def surprise(self, what: int) -> None:
        acts: list[Callable[[Connection], None]] = [
            lambda connection: connection.close(Category.SHUTTING_DOWN),
            lambda connection: connection.drain(Category.SHUTTING_DOWN),
            lambda connection: connection.abandon(Category.CONNECTION_LOST),
        ]
        self._receiver.surprise = acts[what]

    def restart(self, kind: int) -> None:
        self._receiver.restart(kind)

    # The network

    def arrive_late(self, percent: int) -> None:
        """The server reads what a connection held that its client has left long since."""
        for end in [end for end in self._receiver.ends if end.peer.gone][:1]:
            end.read(percent)

    def cut(self, which: int) -> None:
        """At both ends; at the client's, while the server goes on reading; at the server's, the other way round."""
        clients, servers = list(self._sender.ends), self._servers()
        for end in [clients + servers, clients, servers][which]:
            end.leave()

    def damage(self, percent: int) -> None:
        for end in self._servers():
            end.damage(percent)

    def damage_answer(self, percent: int) -> None:
        for end in self._sender.ends:
            end.damage(percent)

    # Much at once, since most stories would not get there step by step

    def deliver(self, _: int) -> None:
        """All that waits, on a new link if need be. The receipts are still to come."""
        self.write(ROOM)
        self.arrive(100)

    def exchange(self, _: int) -> None:
        self.deliver(0)
        self.answer(0)
        self.read(100)

    def lose_receipts(self, _: int) -> None:
        self.deliver(0)
        self.cut(0)
        self.connect(0)

    # Time

    def sender_clock(self, seconds: int) -> None:
        self._sender.clock += seconds

    def receiver_clock(self, seconds: int) -> None:
        self._receiver.clock += seconds

    def pass_time(self, seconds: int) -> None:
        self._sender.clock += seconds
        self._receiver.clock += seconds

    # The end

    def _servers(self) -> list[End]:
        return [end.peer for end in self._sender.ends if not end.peer.gone]

    def _finish(self) -> None:
        """The sender gives up. Whatever it said before may still arrive."""
        for end in list(self._sender.ends):
            end.leave()
        self._sender.outbox.give_up(Category.SHUTTING_DOWN)
        while self._receiver.ends:
            self._receiver.ends[0].read()


USUAL: dict[Step, int] = {
    ("send", 0): 10,
    ("connect", 0): 2,
    ("write", ROOM): 6,
    ("arrive", 100): 4,
    ("answer", 0): 2,
    ("read", 100): 4,
    ("deliver", 0): 8,
    ("exchange", 0): 6,
    ("cut", 0): 2,
    ("cut", 1): 2,
    ("lose_receipts", 0): 4,
    ("look", 0): 3,
    ("pass_time", 1): 2,
}
"""What every story has, and how often."""

THEMES: list[list[Step]] = [
    [("send_and", what) for what in range(4)],
    [("connect", 1), ("connect", 3), ("write", 1), ("arrive", 60), ("read", 60), ("arrive_late", 50)],
    [("arrive_late", 100), ("arrive_late", 100)],
    [("cut", 2), ("surprise", 2)],
    [("close", 0), ("server_closes", 0), ("surprise", 0)],
    [("server_drains", 0), ("surprise", 1)],
    [("server_speaks", 0), ("arrive", 60), ("server_loses_patience", 0)],
    [("restart", 0)],
    [("send", LARGE), ("restart", 0), ("restart", 1)],
    [("damage", percent) for percent in (0, 60, 80, 100)],
    [("damage_answer", percent) for percent in (0, 60)],
    [("sender_clock", seconds) for seconds in (-TTL, -1, 1, TTL + 1)],
    [("receiver_clock", seconds) for seconds in (-2, -1, 1, 2)],
    [("receiver_clock", seconds) for seconds in (-9 * TTL, -TTL - 1, TTL + 1, 9 * TTL)],
    [("pass_time", seconds) for seconds in (1, 2, TTL, TTL + 1)],
]
"""What makes a story worth telling."""


def story(number: int) -> Story:
    """The one of that number. Each has a few themes, and their steps often: what takes two of them together would else
    come about in hardly any."""
    chance = random.Random(number)
    steps = Counter(USUAL)
    for theme in chance.sample(THEMES, chance.randrange(1, 5)):
        steps.update(dict.fromkeys(theme, 2))
    return chance.choices(list(steps), list(steps.values()), k=chance.randrange(10, 60))


# The promises

TWICE = "a message was handed over twice"
NOT_ACCEPTED = "a message that nobody was handed ended accepted"
NOT_REJECTED = "a message that was handed over ended rejected"
NOT_ONCE = "a message did not end exactly once"


def played(story: Story, *parts: Any) -> World:
    world = World(*parts)
    for name, value in story:
        getattr(world, name)(value)
    world._finish()
    return world


def broken(world: World) -> set[str]:
    """The promises that were not kept."""
    found = set()
    for number, message in enumerate(world._sender.messages):
        times, error = world._receiver.handed_over[number], message.exception()
        if times > 1:
            found.add(TWICE)
        if message.ends != 1:
            found.add(NOT_ONCE)
        elif error is None and not times:
            found.add(NOT_ACCEPTED)
        elif isinstance(error, Rejected) and times:
            found.add(NOT_REJECTED)
    return found


def shortest(story: Story, fails: Callable[[Story], bool]) -> Story:
    """Leave out every step that can be left out, so that a failure can be read."""
    before: Story = []
    while before != story:
        before = story
        for at in reversed(range(len(story))):
            shorter = story[:at] + story[at + 1 :]
            if fails(shorter):
                story = shorter
    return story


STORIES = 4_000
"""How many are told of the right one; twice as many, at the most, of each wrong one."""


def test_no_story_breaks_a_promise() -> None:
    for number in range(STORIES):
        world = played(story(number))
        if broken(world):
            found = shortest(story(number), lambda shorter: bool(broken(played(shorter))))
            pytest.fail(f"{broken(played(found))} by {found}, of story {number}")
        assert (world._sender.outbox.unsettled, world._sender.outbox.buffered) == (0, 0), number
        assert world._sender.outcomes.total() == len(world._sender.messages), number


def test_nothing_is_lost_where_nothing_goes_wrong() -> None:
    """Else a model in which little arrives would keep every promise."""
    world = played([("send", 0), ("exchange", 0), ("pass_time", 2)] * 50)
    assert world._sender.outcomes == {"accepted": 50}


def test_the_stories_reach_every_rule_there_is() -> None:
    """Else a promise could hold for want of anything that would break it."""
    reached: set[tuple[str, bool]] = set()

    class Witness(ResendingOutbox):
        def _rejected(self, delivery: Delivery, category: Category) -> None:
            reached.add((category, delivery.seen_by is not None))
            super()._rejected(delivery, category)

        def attach(self, instance: bytes, refusal: Callable[[int, int], str | None]) -> None:
            for message in (*self.queue, *self.later):
                same = message.seen_by in (None, instance)
                too_large = refusal(len(message.payload), 0) is not None
                reached.add((f"attach, {same=}, {too_large=}", message.seen_by is not None))
            super().attach(instance, refusal)

        def closed_by_peer(self, category: Category, seq: int | None) -> None:
            for message in self.in_flight:
                reached.add((f"close, at_fault={message.seq == seq}", message.seen_by is not None))
            super().closed_by_peer(category, seq)

        def lose(self) -> None:
            reached.update(("lose", message.seen_by is not None) for message in self.in_flight)
            super().lose()

        def _settle(self, delivery: Delivery, error: Rejected | DeliveryUnknown | None) -> None:
            reached.add((f"ends {'accepted' if error is None else error.category}", delivery.seen_by is not None))
            super()._settle(delivery, error)

    class WitnessOfTime(Receiver):
        def now(self) -> int:
            guard, now = self.guard, super().now()
            if self.guard is not guard:
                reached.add(("clock stepped, with connections", bool(self.ends)))
            return now

    for number in range(2_000):
        assert not broken(played(story(number), Witness, WitnessOfTime))
    assert reached >= RULES


RULES = {
    (Category.REPLAY_CACHE_FULL, False),
    (Category.REPLAY_CACHE_FULL, True),
    (Category.NOT_YET_VALID, False),
    (Category.NOT_YET_VALID, True),
    (Category.OUTSIDE_REPLAY_WINDOW, False),
    (Category.OUTSIDE_REPLAY_WINDOW, True),
    (Category.EXPIRED, False),
    (Category.EXPIRED, True),
    (Category.SHUTTING_DOWN, False),
    (Category.SHUTTING_DOWN, True),
    (Category.REPLAYED, True),
    ("attach, same=True, too_large=False", False),
    ("attach, same=True, too_large=False", True),
    ("attach, same=True, too_large=True", False),
    ("attach, same=False, too_large=False", True),
    ("attach, same=False, too_large=True", True),
    ("close, at_fault=False", False),
    ("close, at_fault=False", True),
    ("close, at_fault=True", False),
    ("close, at_fault=True", True),
    ("lose", False),
    ("lose", True),
    ("ends accepted", True),
    ("ends delivery_unknown", True),
    ("ends expired", False),
    ("ends payload_too_large", False),
    ("clock stepped, with connections", False),
    ("clock stepped, with connections", True),
}
"""What came, and, if it came to a message, whether an instance may have handed that over before."""


# The wrong ones


class ResendsToAnyInstance(ResendingOutbox):
    """As if the memory of a receiver outlived it."""

    def attach(self, instance: bytes, refusal: Callable[[int, int], str | None]) -> None:
        for message in (*self.queue, *self.later):
            message.seen_by = instance if message.seen_by else None
        super().attach(instance, refusal)


class TakesWhatWasLostForUnwritten(ResendingOutbox):
    def lose(self) -> None:
        super().lose()
        for message in self.queue:
            message.seen_by = None


class TakesALossForAcceptance(ResendingOutbox):
    def lose(self) -> None:
        while self.in_flight:
            self._settle(self.in_flight.popleft(), None)


class TakesALossForRejection(ResendingOutbox):
    def lose(self) -> None:
        while self.in_flight:
            self._settle(self.in_flight.popleft(), Rejected(Category.CONNECTION_LOST, ""))


class ForgetsWhatWasInFlight(ResendingOutbox):
    def lose(self) -> None:
        self.in_flight.clear()


class MakesAFreshNonce(ResendingOutbox):
    """No guard knows the message then."""

    def lose(self) -> None:
        for message in self.in_flight:
            ts, nonce, *rest = decode_header(message.header)
            message.header = encode_header((ts, nonce + "'", *rest))
        super().lose()


class TakesReplayedForRejection(ResendingOutbox):
    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category is Category.REPLAYED:
            self._settle(delivery, Rejected(category, ""))
        else:
            super()._rejected(delivery, category)


class TakesAFullGuardForRejection(ResendingOutbox):
    """What lay in an earlier connection may be handed over yet."""

    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category is Category.REPLAY_CACHE_FULL:
            self._settle(delivery, Rejected(category, ""))
        else:
            super()._rejected(delivery, category)


class TakesAClockSetBackForRejection(ResendingOutbox):
    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category is Category.NOT_YET_VALID:
            self._settle(delivery, Rejected(category, ""))
        else:
            super()._rejected(delivery, category)


class TakesAnyOtherRejectionForTheLastWord(ResendingOutbox):
    """``expired`` says nothing of the first time."""

    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category in (Category.EXPIRED, Category.OUTSIDE_REPLAY_WINDOW):
            self._settle(delivery, Rejected(category, ""))
        else:
            super()._rejected(delivery, category)


class ForgetsTheFirstTimeAtShutdown(ResendingOutbox):
    """The second time it was not handed over; that says nothing of the first, either."""

    def _rejected(self, delivery: Delivery, category: Category) -> None:
        if category is Category.SHUTTING_DOWN:
            delivery.seen_by = None
        super()._rejected(delivery, category)


class ForgetsTheFirstTimeAtAClose(ResendingOutbox):
    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        for message in self.in_flight:
            message.seen_by = None
        super().closed_by_peer(category, seq)


class TakesWhatLiesBeyondACloseForAccepted(ResendingOutbox):
    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        while self.in_flight:
            self._settle(self.in_flight.popleft(), None)


class RejectsWhateverCausedAClose(ResendingOutbox):
    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        for message in list(self.in_flight):
            if message.seq == seq:
                self.in_flight.remove(message)
                self._settle(message, Rejected(category, ""))
        super().closed_by_peer(category, None)


class EndsTheCauseOfACloseAndKeepsIt(ResendingOutbox):
    def closed_by_peer(self, category: Category, seq: int | None) -> None:
        for message in self.in_flight:
            if message.seq == seq:
                message.settle(Rejected(category, ""))
        super().closed_by_peer(category, None)


class RejectsWhateverHasExpired(ResendingOutbox):
    def expire(self, oldest: int) -> None:
        for waiting in (self.queue, self.later):
            while waiting and waiting[0].ts < oldest:
                self._settle(waiting.popleft(), Rejected(Category.EXPIRED, ""))


class RejectsWhateverIsTooLarge(ResendingOutbox):
    """The receiver that takes less need not be the one that it was sent to first."""

    def attach(self, instance: bytes, refusal: Callable[[int, int], str | None]) -> None:
        self.requeue()
        for message in list(self.queue):
            if refusal(len(message.payload), 0) is not None:
                self.queue.remove(message)
                self._settle(message, Rejected(Category.PAYLOAD_TOO_LARGE, ""))
        super().attach(instance, refusal)


class GivesUpTheQueueOnly(ResendingOutbox):
    def give_up(self, category: Category) -> None:
        put_off, self.later = self.later, type(self.later)()
        super().give_up(category)
        self.later = put_off


class RejectsWhateverIsLeftAtTheEnd(ResendingOutbox):
    def give_up(self, category: Category) -> None:
        for message in (*self.in_flight, *self.queue, *self.later):
            self._settle(message, Rejected(category, ""))
        for waiting in (self.in_flight, self.queue, self.later):
            waiting.clear()


class KeepsItsInstance(Receiver):
    """The guard is new, and says that it is the old one."""

    def new_instance(self) -> bytes:
        return b"instance"


class ForgetsWithoutFloor(MemoryReplayGuard):
    def _forget_oldest(self) -> None:
        floor = self.floor
        super()._forget_oldest()
        self.floor = floor


class RemembersWhatItRefused(MemoryReplayGuard):
    def admit(self, nonce: str, ts: int, now: int) -> Category | None:
        category = super().admit(nonce, ts, now)
        if category is Category.REPLAY_CACHE_FULL:
            self._seen[hash(nonce) % len(self._seen)].add(nonce)
        return category


class AdmitsWhatHasNoRoom(MemoryReplayGuard):
    """To be kind under load."""

    def admit(self, nonce: str, ts: int, now: int) -> Category | None:
        category = super().admit(nonce, ts, now)
        return None if category is Category.REPLAY_CACHE_FULL else category


class HasNoFloor(Receiver):
    guard_class = ForgetsWithoutFloor


class RemembersTheRefused(Receiver):
    guard_class = RemembersWhatItRefused


class IsKind(Receiver):
    guard_class = AdmitsWhatHasNoRoom


class ReadsOnBehindItsClose(Connection):
    def close(self, category: Category = Category.CLOSED) -> None:
        super().close(category)
        if self._link is not None:
            self._link.verifier.dropping = False


class ReadsOn(Receiver):
    connection_class = ReadsOnBehindItsClose


# Found out


WRONG: list[tuple[type[ResendingOutbox], type[Receiver], str]] = [
    (ResendsToAnyInstance, Receiver, TWICE),
    (TakesWhatWasLostForUnwritten, Receiver, TWICE),
    (TakesWhatWasLostForUnwritten, Receiver, NOT_REJECTED),
    (TakesALossForAcceptance, Receiver, NOT_ACCEPTED),
    (TakesALossForRejection, Receiver, NOT_REJECTED),
    (ForgetsWhatWasInFlight, Receiver, NOT_ONCE),
    (MakesAFreshNonce, Receiver, TWICE),
    (TakesReplayedForRejection, Receiver, NOT_REJECTED),
    (TakesAFullGuardForRejection, Receiver, NOT_REJECTED),
    (TakesAClockSetBackForRejection, Receiver, NOT_REJECTED),
    (TakesAnyOtherRejectionForTheLastWord, Receiver, NOT_REJECTED),
    (ForgetsTheFirstTimeAtShutdown, Receiver, NOT_REJECTED),
    (ForgetsTheFirstTimeAtAClose, Receiver, NOT_REJECTED),
    (TakesWhatLiesBeyondACloseForAccepted, Receiver, NOT_ACCEPTED),
    (RejectsWhateverCausedAClose, Receiver, NOT_REJECTED),
    (EndsTheCauseOfACloseAndKeepsIt, Receiver, NOT_ONCE),
    (RejectsWhateverHasExpired, Receiver, NOT_REJECTED),
    (RejectsWhateverIsTooLarge, Receiver, NOT_REJECTED),
    (GivesUpTheQueueOnly, Receiver, NOT_ONCE),
    (RejectsWhateverIsLeftAtTheEnd, Receiver, NOT_REJECTED),
    (ResendingOutbox, KeepsItsInstance, TWICE),
    (ResendingOutbox, HasNoFloor, TWICE),
    (ResendingOutbox, RemembersTheRefused, NOT_ACCEPTED),
    (ResendingOutbox, IsKind, TWICE),
    (ResendingOutbox, ReadsOn, NOT_REJECTED),
]


@pytest.mark.parametrize(
    ("outbox", "receiver", "promise"),
    WRONG,
    ids=[
        f"{(outbox if receiver is Receiver else receiver).__name__}: {promise}" for outbox, receiver, promise in WRONG
    ],
)
def test_the_stories_find_every_wrong_one_out(
    outbox: type[ResendingOutbox], receiver: type[Receiver], promise: str
) -> None:
    """Else they would be too tame to say anything about the right one."""
    assert any(promise in broken(played(story(number), outbox, receiver)) for number in range(2 * STORIES))
