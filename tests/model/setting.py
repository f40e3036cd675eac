"""The bound of a search, and who is there when it begins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple, TypeAlias

from tests.model.sessions import State, client

Dialled: TypeAlias = tuple[int, int, int]
"""Of one client session: service, port, own address."""


class Setting(NamedTuple):
    """How much of everything there is.

    :ivar ports: that servers listen on and clients dial, one or more; the attacker holds each of them at any time too.
    :ivar records: that each completed end sends.
    """

    clients: int = 3
    servers: int = 2
    ports: int = 2
    services: int = 2
    records: int = 2


class Names(NamedTuple):
    """Other names for the same things: what each old number becomes."""

    clients: tuple[int, ...]
    services: tuple[int, ...]
    ports: tuple[int, ...]
    addresses: dict[int, int]


def renamed(dialled: tuple[Dialled, ...], setting: Setting) -> Iterator[tuple[tuple[Dialled, ...], Names]]:
    """``dialled`` under all other names of clients, services and ports; addresses numbered as they come."""
    for order in permutations(range(len(dialled))):
        for services in permutations(range(setting.services)):
            for ports in permutations(range(setting.ports)):
                addresses: dict[int, int] = {}
                other = tuple(
                    (services[service], ports[port], addresses.setdefault(address, len(addresses)))
                    for service, port, address in (dialled[old] for old in order)
                )
                clients = tuple(order.index(old) for old in range(len(order)))
                yield other, Names(clients, services, ports, addresses)


def beginnings(setting: Setting) -> Iterator[tuple[Dialled, ...]]:
    """Every way in which the clients may have dialled, but for names; each has sent its M1.

    They are all there from the start: dialling needs nothing, and an M1 that the attacker holds back is as good as one
    that was not yet sent.
    """
    places = product(range(setting.services), range(setting.ports), range(setting.clients))
    for dialled in product(places, repeat=setting.clients):
        if dialled == min(other for other, _ in renamed(dialled, setting)):
            yield dialled


def state_of(dialled: tuple[Dialled, ...]) -> State:
    return State(tuple(client(number, *where) for number, where in enumerate(dialled)), ())
