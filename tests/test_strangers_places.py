"""Who has to go when too many have not proved themselves: the rules of :mod:`ipc_twisted.strangers`, one by one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ipc_twisted import Category
from ipc_twisted.strangers import Strangers


class Stranger:
    """A connection with a real socket, whose other end may have written."""

    def __init__(self, strangers: Strangers, name: str) -> None:
        self.name = name
        self.category: Category | None = None
        ours, self.theirs = socket.socketpair()
        self.transport = SimpleNamespace(socket=ours)
        self._strangers = strangers

    def abandon(self, category: Category) -> None:
        """As the protocol does: it leaves the tables within the call."""
        self.category = category
        self._strangers.discard(self)  # type: ignore[arg-type]

    def close(self) -> None:
        self.transport.socket.close()
        self.theirs.close()


class Door:
    """Strangers that come in, by name."""

    def __init__(self, places: int) -> None:
        self.strangers = Strangers(places)
        self.all: dict[str, Stranger] = {}

    def come(self, *names: str, speaks: bool = False) -> None:
        for name in names:
            self.all[name] = stranger = Stranger(self.strangers, name)
            if speaks:
                stranger.theirs.send(b"M1")
            self.strangers.add(stranger)  # type: ignore[arg-type]

    def name_a_key(self, *names: str) -> None:
        for name in names:
            self.strangers.named_a_key(self.all[name])  # type: ignore[arg-type]

    @property
    def inside(self) -> list[str]:
        return sorted(stranger.name for stranger in self.strangers)  # type: ignore[attr-defined]


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    door = Door(request.param if hasattr(request, "param") else 4)
    yield door
    for stranger in door.all.values():
        stranger.close()
    assert {stranger.category for stranger in door.all.values()} <= {None, Category.EVICTED}


def test_the_oldest_goes_and_not_the_newcomer(door: Door) -> None:
    door.come(*"abcdef")
    assert door.inside == [*"cdef"]


def test_who_has_written_is_spared_before_who_is_silent(door: Door) -> None:
    door.come("a", speaks=True)
    door.come(*"bcdefgh")
    assert door.inside == [*"afgh"]


def test_where_all_have_written_the_oldest_goes(door: Door) -> None:
    door.come(*"abcde", speaks=True)
    assert door.inside == [*"bcde"]


def test_who_has_written_and_closed_is_still_read_first_but_who_only_closed_goes(door: Door) -> None:
    door.come("a")
    door.come("b", speaks=True)
    for name in "ab":
        door.all[name].theirs.close()
    door.come(*"cde")
    assert door.inside == [*"bcde"]


def test_only_the_oldest_are_asked_so_that_a_newcomer_costs_the_same_however_many_there_are() -> None:
    door = Door(40)
    door.come(*(f"a{number:02}" for number in range(20)), speaks=True)
    door.come(*(f"b{number:02}" for number in range(21)))
    assert door.all["a00"].category is Category.EVICTED
    for stranger in door.all.values():
        stranger.close()


def test_who_has_named_a_key_is_spared_before_who_has_not(door: Door) -> None:
    door.come(*"ab")
    door.name_a_key(*"ab")
    door.come(*"cdefgh")
    assert door.inside == [*"abgh"]


def test_who_has_named_a_key_holds_half_of_the_places_and_the_oldest_of_them_goes(door: Door) -> None:
    """Somebody may have seen a key id, and would keep everybody out. While there is room, all may wait."""
    door.come(*"abcd")
    door.name_a_key(*"abcd")
    assert door.inside == [*"abcd"]
    door.come("e")
    assert door.inside == [*"bcde"]
    door.come("f")
    assert door.inside == [*"cdef"]
    door.come("g")
    assert door.inside == [*"cdfg"]


def test_of_those_that_named_a_key_one_that_has_written_since_is_spared(door: Door) -> None:
    """Its last message lies there: it is as good as in."""
    door.come(*"abcd")
    door.name_a_key(*"abcd")
    door.all["a"].theirs.send(b"M3")
    door.come("e")
    assert door.inside == [*"acde"]


@pytest.mark.parametrize("door", [1], indirect=True)
def test_with_one_place_the_newcomer_takes_it_from_whoever_has_it(door: Door) -> None:
    door.come(*"ab")
    assert door.inside == ["b"]
    door.name_a_key("b")
    door.come("c")
    assert door.inside == ["c"]


def test_who_is_gone_is_forgotten_and_naming_a_key_then_changes_nothing(door: Door) -> None:
    door.come(*"ab")
    door.all["a"].abandon(Category.EVICTED)
    door.name_a_key("a")
    assert (door.inside, len(door.strangers)) == (["b"], 1)


def test_without_a_real_socket_nobody_has_written() -> None:
    strangers = Strangers(1)
    first: Any = Stranger(strangers, "first")
    first.close()
    first.transport = SimpleNamespace()
    second: Any = Stranger(strangers, "second")
    strangers.add(first)
    strangers.add(second)
    assert first.category is Category.EVICTED
    second.close()
