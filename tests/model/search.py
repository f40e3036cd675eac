"""The search: every state that the attacker can bring about within the bound, breadth first."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.model import sessions
from tests.model.design import Design
from tests.model.promises import Broken, broken
from tests.model.rules import Rules, Situation
from tests.model.sessions import Hello, State
from tests.model.setting import Setting, beginnings, state_of
from tests.model.symmetry import Symmetry, serials


class Report(NamedTuple):
    """What a search found.

    :ivar states: how many were looked at, each but for names.
    :ivar completed: in how many of them at least one end had completed; without any the search would prove nothing.
    :ivar attacks: every way in which a promise was broken, with a first state that shows it. The search does not go on
        behind such a state.
    """

    states: int
    completed: int
    attacks: dict[Broken, State]


@contextmanager
def _no_collections() -> Iterator[None]:
    """A search makes no cycles, and looking for them again and again takes a quarter of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_no_collections()
def search(design: Design, setting: Setting, until: Callable[[Broken], bool] = lambda _: False) -> Report:
    """Look at every state within ``setting``.

    :param until: an attack after which there is no need to go on.
    """
    rules = Rules(design, setting)
    attacks: dict[Broken, State] = {}
    states = completed = 0
    wave: dict[int, tuple[Symmetry, set[State]]] = {}
    for number, dialled in enumerate(beginnings(setting)):
        symmetry = Symmetry(dialled, setting)
        wave[number] = symmetry, {symmetry.canonical(state_of(dialled))}
    while any(waiting for _, waiting in wave.values()):
        for number, (symmetry, waiting) in wave.items():
            then: set[State] = set()
            for state in sorted(waiting, key=serials):
                situation = rules.situation(state)
                states += 1
                completed += bool(situation.completed_clients or situation.completed_servers)
                found = list(broken(rules, situation))
                for attack in found:
                    attacks.setdefault(attack, state)
                if any(map(until, found)):
                    return Report(states, completed, attacks)
                if not found:
                    then.update(map(symmetry.canonical, following(rules, setting, situation)))
            wave[number] = symmetry, then
    return Report(states, completed, attacks)


def following(rules: Rules, setting: Setting, situation: Situation) -> Iterator[State]:
    """One more delivery by the attacker: an M2 that a client accepts, or an M1 to a new server session.

    What an end refuses is left out: it answers nothing and is gone, as if it had waited for ever.
    """
    (clients, servers), attacker = situation.state, situation.attacker
    for old, answer in rules.answers(situation):
        new = sessions.client(old.number, old.service, old.port, old.address, answer)
        yield State(tuple([new if client is old else client for client in clients]), servers)
    if len(servers) < setting.servers:
        hellos = [Hello(limits, nonce) for limits in attacker.fields(16) for nonce in attacker.fields(32)]
        sources = [sessions.OWN_ADDRESS, *dict.fromkeys(client.address for client in clients)]
        for process, service, port in _listening(setting, situation.state):
            for source in sources:
                for hello in hellos:
                    yield State(
                        clients, (*servers, sessions.server(len(servers), process, service, port, source, hello))
                    )


def _listening(setting: Setting, state: State) -> Iterator[tuple[int, int, int]]:
    """Process, service and port for a new server session: of one that runs already, or of a new one anywhere."""
    yield from dict.fromkeys((server.process, server.service, server.port) for server in state.servers)
    for service in range(setting.services):
        for port in range(setting.ports):
            yield len(state.servers), service, port
