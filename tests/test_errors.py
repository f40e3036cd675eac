"""Errors: strings that are never renamed, exceptions that survive a pickle, and no secret in the text of anything."""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.python.failure import Failure

from ipc_twisted import errors
from ipc_twisted.core.connection import Connection
from ipc_twisted.core.key_schedule import Prk
from ipc_twisted.core.signing import MacKey
from ipc_twisted.errors import Category, ConfigError, IPCError
from ipc_twisted.keys import Keyring
from tests import wire_peer as wire
from tests.core_pair import ENDPOINT, INSTANCE, LIMITS, NONCE_C, NONCE_S, NOW, SERVICE, Pair, client, server

CATEGORIES = [
    *("handshake_timeout", "handshake_malformed", "version_unsupported", "key_unknown", "authentication_failed"),
    *("early_data", "self_connect", "handshake_refused", "evicted"),
    *("malformed", "payload_too_large", "signature_missing", "signature_invalid", "sequence_gap", "replayed"),
    *("credit_exceeded", "frame_timeout"),
    *("kind_not_allowed", "expired", "not_yet_valid", "outside_replay_window", "replay_cache_full", "shutting_down"),
    *("closed", "too_many_connections", "clock_stepped", "write_stalled", "receipt_timeout", "connection_lost"),
    *("bind_forbidden", "config_invalid", "key_invalid", "key_file_insecure", "connection_file_invalid"),
    *("not_connected", "send_buffer_full", "delivery_unknown"),
]
EXCEPTIONS = {
    "BindForbidden": (IPCError, ValueError),
    "KeyFileError": (IPCError,),
    "ConnectionFileError": (IPCError,),
    "HandshakeError": (IPCError,),
    "EnvelopeError": (IPCError, ValueError),
    "NotConnected": (IPCError,),
    "SendBufferFull": (IPCError,),
    "Rejected": (IPCError,),
    "DeliveryUnknown": (IPCError,),
}


def test_the_categories_are_frozen() -> None:
    """Other people's dashboards and scripts hang on the strings. One may be added here, none changed."""
    assert [str(category) for category in Category] == CATEGORIES
    assert len(set(CATEGORIES)) == len(CATEGORIES) == 37


@pytest.mark.parametrize("category", Category)
def test_a_category_is_its_string_everywhere(category: Category) -> None:
    assert category.name == category.value.upper()
    assert f"{category}" == str(category) == category.value == category
    assert pickle.loads(pickle.dumps(category)) is category


def test_every_exception_is_in_the_table() -> None:
    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours == {*EXCEPTIONS, "IPCError", "ConfigError"}


@pytest.mark.parametrize(("name", "bases"), EXCEPTIONS.items())
@pytest.mark.parametrize("move", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_exception_keeps_what_it_says(name: str, bases: tuple[type, ...], move: Callable[[Any], Any]) -> None:
    """Also from another process, as concurrent.futures and celery hand them over."""
    error = getattr(errors, name)(Category.EXPIRED, "why\nso")
    assert all(isinstance(error, base) for base in bases)
    moved = move(error)
    assert (type(moved), moved.category, str(moved)) == (type(error), Category.EXPIRED, "expired: why\nso")
    assert moved.args == ("why\nso",)


def test_a_configuration_error_keeps_all_of_its_problems() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(iter(["a: wrong", "b: wrong"]))))
    assert (error.problems, error.category) == (("a: wrong", "b: wrong"), Category.CONFIG_INVALID)
    assert str(error) == "config_invalid:\n  a: wrong\n  b: wrong"
    assert isinstance(error, ValueError)


# No secret in the text of anything

SECRET = bytes.fromhex("c3a5f00d1badcafe2badf00d3badcafe4badf00d5badcafe6badf00d7badcafe")


def linked() -> tuple[Pair, dict[str, bytes]]:
    """A connection in use, and all that nobody may ever see of it."""
    both = Pair(client(secret=SECRET), server(secrets=[SECRET]))
    both.settle()
    prk = wire.prk(SECRET)
    m1 = wire.m1(wire.key_id(prk, SERVICE), LIMITS, NONCE_C)
    th = wire.transcript(SERVICE, ENDPOINT.packed(), m1, wire.m2_head(INSTANCE, LIMITS, NONCE_S))
    keys = wire.connection_keys(prk, th)
    tag_s, tag_c = wire.tags(keys, th)
    hidden = {"secret": SECRET, "prk": prk, "tag_s": tag_s, "tag_c": tag_c, **keys._asdict()}
    assert both.client.connection.peer is not None
    assert both.client.connection.peer.send_key.sign(b"m") == wire.sign(keys.c2s, b"m"), "these are the keys"
    return both, hidden


def seen(hidden: dict[str, bytes], text: str) -> list[str]:
    """The names of what the text shows, in any spelling."""

    def spellings(value: bytes) -> Iterator[str]:
        yield value.hex()
        yield value.hex().upper()
        yield repr(value)[2:-1]
        yield base64.b64encode(value).decode().rstrip("=")
        yield str(list(value))[1:-1]
        yield str(int.from_bytes(value, "big"))

    return [name for name, value in hidden.items() if any(form in text for form in spellings(value))]


def test_the_search_finds_what_is_there() -> None:
    hidden = {"secret": SECRET}
    for text in (SECRET.hex(), repr([SECRET]), f"{bytearray(SECRET)!r}", str(tuple(SECRET))):
        assert seen(hidden, text) == ["secret"]


@pytest.mark.attack(37)
def test_the_text_of_no_object_shows_a_key() -> None:
    both, hidden = linked()
    sent = both.client.send(b"payload")
    things = [Keyring([SECRET]), Prk(SECRET), Prk(SECRET).connection_keys(bytes(32)), MacKey(SECRET), sent]
    for side in both:
        things += [side.connection, side.connection.peer, vars(side.connection), side.connection._link]
    for thing in things:
        for text in (repr(thing), str(thing), f"{thing}", repr([thing]), repr(getattr(thing, "__dict__", ""))):
            assert seen(hidden, text) == [], type(thing)


@pytest.mark.parametrize("side", [0, 1])
def test_a_connection_cannot_be_pickled(side: int) -> None:
    """Before the handshake it holds the secret's key, and after it those of the connection."""
    for connection in (linked()[0][side].connection, (client(), server())[side].connection):
        assert isinstance(connection, Connection)
        for leave in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                leave(connection)


def shown_by(failure: Failure) -> str:
    """What a Failure prints of our frames at its most talkative, with locals and globals."""
    ours = [frame for frame in failure.frames if "ipc_twisted" in frame[1]]
    assert ours
    return f"{ours!r} {failure.value!r} {failure.value}"


def raised_in(call: Callable[[], object]) -> Failure:
    try:
        call()
    except Exception:
        return Failure(captureVars=True)
    raise AssertionError("nothing was raised")


def broken(*_: object) -> bool:
    raise RuntimeError("a bug")


def test_no_traceback_with_locals_shows_a_key_when_a_hand_over_fails() -> None:
    both, hidden = linked()
    both.server.handler = broken
    both.client.send(b"payload")
    frames = both.client.output()
    assert seen(hidden, shown_by(raised_in(lambda: both.server.connection.receive_data(frames, NOW)))) == []


@pytest.mark.attack(37)
@pytest.mark.parametrize("which", [0, 1])
def test_no_traceback_with_locals_shows_a_key_when_the_handshake_fails_within(which: int) -> None:
    both, hidden = Pair(client(secret=SECRET), server(secrets=[SECRET])), linked()[1]
    both[which].on_authenticated = broken  # type: ignore[assignment]
    on_the_wire = {"tag_s", "tag_c"}  # both ends have seen them by now
    assert set(seen(hidden, shown_by(raised_in(both.settle)))) <= on_the_wire


def test_no_traceback_with_locals_shows_a_key_when_a_send_is_refused() -> None:
    both, hidden = linked()
    for bad in (lambda: both.client.send(kind=""), lambda: both.client.send(bytes(LIMITS.max_payload_bytes + 1))):
        assert seen(hidden, shown_by(raised_in(bad))) == []
