"""How a state came about, told step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model import sessions
from tests.model.attacker import Attacker
from tests.model.rules import End, Rules
from tests.model.sessions import Client, Server, State
from tests.model.terms import Term


class Step(NamedTuple):
    """One step of an attack.

    :ivar kind: ``dial``, ``M1``, ``M2`` or ``M3``: what a client does, or what the attacker delivers and is accepted.
    """

    kind: str
    text: str


def trace(rules: Rules, state: State) -> list[Step]:
    """One order of steps that leads to ``state``; clients that take no part are left out."""
    return list(_Story(rules, state).steps())


class _Story:
    def __init__(self, rules: Rules, state: State) -> None:
        situation = rules.situation(state)
        self._rules = rules
        self._clients = situation.clients
        self._completed = situation.completed_servers
        self._attacker = Attacker(rules.public)
        for end in situation.clients:
            self._attacker.learns(_first_fields(end))
        others = [end for end in situation.servers if end not in self._completed]
        self._waiting = [*situation.completed_clients, *others, *self._completed]
        self._spoken: list[End] = []
        self._dialled: set[int] = set()

    def steps(self) -> Iterator[Step]:
        unproved = list(self._completed)
        while self._waiting or unproved:
            end = next((end for end in unproved if self._proves(end)), None)
            if end is not None:
                unproved.remove(end)
                yield Step("M3", f"{_name(end)} accepts M3 with the tag of {self._origin(end)}")
                self._attacker.learns((*end.records, *end.contents))
                continue
            end = next(filter(self._can_happen, self._waiting))
            self._waiting.remove(end)
            yield from self._dials(end)
            yield self._told(end)
            self._spoken.append(end)
            self._attacker.learns(end.fields)
            if isinstance(end.session, Client):
                self._attacker.learns((*end.records, *end.contents))

    def _proves(self, end: End) -> bool:
        return end in self._spoken and self._attacker.can_make(end.made.client_tag)

    def _can_happen(self, end: End) -> bool:
        session = end.session
        if isinstance(session, Server):
            return all(map(self._attacker.can_make, session.hello))
        first = self._rules.design.server_proves_itself_first
        return all(map(self._attacker.can_make, session.answer or ())) and (
            not first or self._attacker.can_make(end.made.server_tag)
        )

    def _dials(self, end: End) -> Iterator[Step]:
        for other in self._clients:
            client = other.session
            used = other is end or (
                isinstance(end.session, Server) and end.view.client_nonce is sessions.client_nonce(client.number)
            )
            if isinstance(client, Client) and used and client.number not in self._dialled:
                self._dialled.add(client.number)
                where = f"{other.view.server_address} for {other.view.service} from {other.view.client_address}"
                yield Step("dial", f"client {client.number} dials {where}; the attacker has its M1")

    def _told(self, end: End) -> Step:
        view = end.view
        if isinstance(end.session, Server):
            where = f"{view.server_address} for {view.service} in the process of {view.instance}"
            source = f"as from {view.client_address}"
            return Step("M1", f"{_name(end)} at {where} accepts M1 {source}: {view.client_limits}, {view.client_nonce}")
        told = f"{view.instance}, {view.server_limits}, {view.server_nonce}"
        return Step("M2", f"{_name(end)} accepts M2: {told}")

    def _origin(self, end: End) -> str:
        said = [_name(other) for other in self._spoken if end.made.client_tag in other.fields]
        return said[0] if said else "the attacker's own making"


def _first_fields(end: End) -> tuple[Term, ...]:
    """Of M1."""
    return end.view.key_id, end.view.client_limits, end.view.client_nonce


def _name(end: End) -> str:
    side = "client" if isinstance(end.session, Client) else "server"
    return f"{side} {end.session.number}"
