"""One connection: every state against every event.

What its ends say is in ``test_connection_ends.py``, sending and credit in ``test_connection_flow.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipc_twisted.core.connection import State
from ipc_twisted.core.handshake import ClientHandshake, Endpoint
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.outbox import Delivery
from ipc_twisted.errors import Category, NotConnected
from tests import wire_peer as wire
from tests.core_pair import LIMITS, NONCE_C, NOW, SECRET, SERVICE, Forger, Side, client, server

FORGED = b"\x5a" * 32

# States and events


def in_state(name: str) -> tuple[Side, Forger | None]:
    """A side in that state with two messages of its own, one written and one not, where it can have any."""
    if name.startswith("handshake"):
        return (client() if name.endswith("client") else server()), None
    side = server()
    forger = Forger(side, LIMITS._replace(messages=1))
    side.send(b"written")
    side.send(b"queued")
    side.output()
    {
        "open": lambda: None,
        "closing": side.connection.close,
        "failed": lambda: forger.say(forger.envelope(sig=FORGED, seq=0)),
        "done": lambda: forger.say(forger.close()),
        "dead": lambda: side.connection.abandon(Category.EVICTED),
    }[name]()
    side.output()
    return side, forger


def say(forger: Forger | None, make: Callable[[Forger], bytes]) -> None:
    if forger is not None:
        forger.say(make(forger))


def too_long(side: Side, _: object) -> None:
    side.connection.receive_data(b"\xff\xff\xff\xff", NOW)


EVENTS: dict[str, Callable[[Side, Forger | None], None]] = {
    "envelope": lambda _, forger: say(forger, lambda f: f.envelope()),
    "forged": lambda _, forger: say(forger, lambda f: f.envelope(sig=FORGED)),
    "too long": too_long,
    "peer's close": lambda _, forger: say(forger, lambda f: f.close()),
    "eof": lambda side, _: side.connection.receive_eof(),
    "lost": lambda side, _: side.connection.connection_lost(),
    "close": lambda side, _: side.connection.close(Category.SHUTTING_DOWN),
    "fail": lambda side, _: side.connection.fail(Category.FRAME_TIMEOUT),
    "abandon": lambda side, _: side.connection.abandon(Category.WRITE_STALLED),
}
TABLE = """
state            event         after    category             records
handshake server eof           dead     connection_lost      -
handshake server lost          dead     connection_lost      -
handshake server too_long      dead     handshake_malformed  -
handshake server close         dead     shutting_down        -
handshake server fail          dead     frame_timeout        -
handshake server abandon       dead     write_stalled        -
handshake client eof           dead     handshake_refused    -
handshake client lost          dead     handshake_refused    -
handshake client too_long      dead     handshake_malformed  -
handshake client close         dead     shutting_down        -
handshake client fail          dead     frame_timeout        -
handshake client abandon       dead     write_stalled        -
open             envelope      open     -                    receipt
open             forged        failed   signature_invalid    close
open             too_long      failed   payload_too_large    close
open             peer's_close  done     closed               close
open             eof           dead     connection_lost      -
open             lost          dead     connection_lost      -
open             close         closing  shutting_down        close
open             fail          failed   frame_timeout        close
open             abandon       dead     write_stalled        -
closing          envelope      closing  closed               -
closing          forged        failed   closed               -
closing          too_long      failed   closed               -
closing          peer's_close  done     closed               -
closing          eof           done     closed               -
closing          lost          dead     closed               -
closing          close         closing  closed               -
closing          fail          failed   closed               -
closing          abandon       dead     closed               -
failed           envelope      failed   signature_invalid    -
failed           forged        failed   signature_invalid    -
failed           too_long      failed   signature_invalid    -
failed           peer's_close  failed   signature_invalid    -
failed           eof           done     signature_invalid    -
failed           lost          dead     signature_invalid    -
failed           close         failed   signature_invalid    -
failed           fail          dead     signature_invalid    -
failed           abandon       dead     signature_invalid    -
done             envelope      done     closed               -
done             forged        done     closed               -
done             too_long      done     closed               -
done             peer's_close  done     closed               -
done             eof           done     closed               -
done             lost          dead     closed               -
done             close         done     closed               -
done             fail          dead     closed               -
done             abandon       dead     closed               -
dead             envelope      dead     evicted              -
dead             forged        dead     evicted              -
dead             too_long      dead     evicted              -
dead             peer's_close  dead     evicted              -
dead             eof           dead     evicted              -
dead             lost          dead     evicted              -
dead             close         dead     evicted              -
dead             fail          dead     evicted              -
dead             abandon       dead     evicted              -
"""


def rows() -> list[tuple[str, str, str, str, str]]:
    found = []
    for line in TABLE.strip().splitlines()[1:]:
        event, after, category, records = line[17:].split()
        found.append((line[:16].strip(), event.replace("_", " "), after, category, records))
    return found


@pytest.mark.parametrize(("state", "event", "after", "category", "records"), rows())
def test_every_event_in_every_state(state: str, event: str, after: str, category: str, records: str) -> None:
    side, forger = in_state(state)
    handed = len(side.handed)
    EVENTS[event](side, forger)
    assert side.state.value == after
    assert str(side.connection.category or "-") == category
    said = [wire.KINDS_OF_RECORD[c[32]] for c in wire.split_frames(side.output() if forger else b"")[0]]
    assert " ".join(said) == records.replace("-", "")
    assert len(side.handed) - handed == (state == "open" and event == "envelope")


def test_the_table_has_every_state_and_every_event() -> None:
    in_table = {(state.split()[0], event) for state, event, *_ in rows()}
    after_handshake = {(state.value, event) for state in State for event in EVENTS}
    meaningless = {("handshake", "envelope"), ("handshake", "forged"), ("handshake", "peer's close")}
    assert in_table == after_handshake - meaningless


def test_a_client_that_was_joined_to_itself_is_dead_before_it_speaks() -> None:
    itself = Endpoint("127.0.0.1", 40001, "127.0.0.1", 40001)
    side = Side(ClientHandshake(Prk(SECRET), SERVICE, LIMITS, itself, NONCE_C), LIMITS)
    assert (side.state, side.connection.category, side.output()) == (State.DEAD, Category.SELF_CONNECT, b"")


def test_before_the_handshake_there_is_no_credit() -> None:
    assert server().connection.send_credit == (0, 0)


@pytest.mark.parametrize("state", ["handshake server", "handshake client", "closing", "failed", "done", "dead"])
def test_nothing_can_be_sent_but_on_an_open_connection(state: str) -> None:
    side, _ = in_state(state)
    buffered = side.connection.outbox.buffered
    with pytest.raises(NotConnected, match=r"^not_connected: the connection ") as caught:
        side.send()
    assert caught.value.category is Category.NOT_CONNECTED
    assert side.connection.outbox.buffered == buffered


OUTCOMES = {  # of a message that was written, and of one that was not
    "open": ("pending", "pending"),
    "closing": ("pending", "closed"),
    "closing, then eof": ("delivery_unknown", "closed"),
    "closing, then peer's close": ("closed", "closed"),
    "failed": ("delivery_unknown", "delivery_unknown"),
    "done": ("closed", "closed"),
    "dead": ("delivery_unknown", "delivery_unknown"),
}


@pytest.mark.parametrize(("state", "outcomes"), OUTCOMES.items())
def test_what_becomes_of_our_messages_at_each_end(state: str, outcomes: tuple[str, str]) -> None:
    """Nothing is ever reported as success that the other side did not say."""
    first, _, then = state.partition(", then ")
    side, forger = in_state(first)
    if then:
        EVENTS[then](side, forger)
    pending = [*side.connection.outbox.in_flight, *side.connection.outbox.queue]
    ends = [outcome(delivery) for delivery in (*side.unclaimed, *pending)]
    assert sorted(ends) == sorted(outcomes)


def outcome(delivery: Delivery) -> str:
    return repr(delivery).split()[-1].rstrip(">")
