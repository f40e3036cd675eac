"""What honest ends do, and what there is to know in a state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from tests.model import sessions
from tests.model.attacker import Attacker, taken_apart
from tests.model.design import Design
from tests.model.protocol import Handshake, View, content, handshake, key_id, m2, m3, prk, signature
from tests.model.sessions import GAPS, Answer, Client, Server, Session, State
from tests.model.setting import Setting
from tests.model.terms import Term, match


class End(NamedTuple):
    """A session with what follows from its view.

    :ivar fields: what the attacker sees of its handshake, in fields.
    :ivar records: the signatures of the records that it sends once it has completed.
    :ivar contents: what lies in those records.
    """

    session: Session
    view: View
    made: Handshake
    send_key: Term
    receive_key: Term
    fields: tuple[Term, ...]
    records: tuple[Term, ...]
    contents: tuple[Term, ...]


class Situation(NamedTuple):
    """A state with what there is to know about it."""

    state: State
    attacker: Attacker
    clients: list[End]
    servers: list[End]
    completed_clients: list[End]
    completed_servers: list[End]


class Rules:
    """Honest ends of one design.

    :ivar records: how many records each completed end sends. They follow at once; the attacker may hold them back.
    :ivar public: what everybody knows from the start.
    """

    def __init__(self, design: Design, setting: Setting) -> None:
        self.design = design
        self.records = setting.records
        self._ends: dict[Session, End] = {}
        self._accepted: dict[Client, dict[Term, Answer | None]] = {}
        services = [sessions.service(number) for number in range(setting.services)]
        self.public = [
            *services,
            *map(sessions.server_address, range(setting.ports)),
            *map(sessions.client_address, (sessions.OWN_ADDRESS, *range(setting.clients))),
            *[key_id(design, service) for service in services],
            *(sessions.LIMITS, sessions.OWN_LIMITS, sessions.OWN_NONCE, sessions.OWN_INSTANCE, sessions.OWN_CONTENT),
        ]

    def end(self, session: Session) -> End:
        known = self._ends.get(session)
        if known is None:
            made = self._client_end(session) if isinstance(session, Client) else self._server_end(session)
            known = self._ends[session] = made
        return known

    def situation(self, state: State) -> Situation:
        """What the sessions have said by now, and which have completed.

        A server session for which the attacker has the right M3 gets it at once: it takes no other, and a later time
        would change nothing but hold back what it says.
        """
        clients = list(map(self.end, state.clients))
        servers = list(map(self.end, state.servers))
        attacker = Attacker(self.public)
        for end in (*clients, *servers):
            attacker.learns(end.fields)
        completed_clients = [
            end for end, client in zip(clients, state.clients, strict=True) if client.answer is not None
        ]
        for end in completed_clients:
            attacker.learns((*end.records, *end.contents))
        completed_servers: list[End] = []
        waiting = servers
        while proved := [end for end in waiting if attacker.can_make(end.made.client_tag)]:
            completed_servers += proved
            waiting = [end for end in waiting if end not in proved]
            for end in proved:
                attacker.learns((*end.records, *end.contents))
        return Situation(state, attacker, clients, servers, completed_clients, completed_servers)

    def answers(self, situation: Situation) -> Iterator[tuple[Client, Answer]]:
        """Every M2 that a waiting client would accept and the attacker can make.

        The tag is one that the attacker has seen, which leaves no choice of what it covers; or one that it computes,
        for which it would need what all keys are made of. What a tag does not cover may be anything.
        """
        attacker = situation.attacker
        found: dict[Client, list[Answer]] = {client: [] for client in situation.state.clients if client.answer is None}
        if not self.design.server_proves_itself_first or attacker.can_make(prk(self.design)):
            for client, answer in product(found, self._filled(GAPS, attacker)):
                tag = handshake(self.design, self._client_view(client, answer)).server_tag
                if not self.design.server_proves_itself_first or attacker.can_make(tag):
                    found[client].append(answer)
        else:
            tags = [term for term in attacker.fields(32) if term.kind == "hmac"]
            for client, tag in product(found, tags):
                accepted = self._accepted_with(client, tag)
                if accepted is not None:
                    found[client] += self._filled(accepted, attacker)
        for client, answers in found.items():
            refused = sessions.client_nonce(client.number) if self.design.client_refuses_its_own_nonce else None
            for answer in dict.fromkeys(answers):
                if answer.nonce is not refused:
                    yield client, answer

    def _accepted_with(self, client: Client, tag: Term) -> Answer | None:
        """The M2 that has this tag and is right for the client, with gaps where the tag covers nothing."""
        known = self._accepted.setdefault(client, {})
        if tag not in known:
            filled = match(self.end(client).made.server_tag, tag)
            known[tag] = None if filled is None else Answer(*[filled.get(gap, gap) for gap in GAPS])
        return known[tag]

    def _filled(self, answer: Answer, attacker: Attacker) -> list[Answer]:
        choices = [attacker.fields(field.size) if field.kind == "gap" else [field] for field in answer]
        return [
            Answer(instance, limits, nonce)
            for instance in choices[0]
            for limits in choices[1]
            for nonce in choices[2]
            if all(map(attacker.can_make, (instance, limits, nonce)))
        ]

    def _client_view(self, client: Client, answer: Answer) -> View:
        service = sessions.service(client.service)
        return View(
            service,
            sessions.server_address(client.port),
            sessions.client_address(client.address),
            key_id(self.design, service),
            sessions.LIMITS,
            sessions.client_nonce(client.number),
            *answer,
        )

    def _client_end(self, client: Client) -> End:
        view = self._client_view(client, client.answer or GAPS)
        made = handshake(self.design, view)
        keys = made.keys
        sent = [made.m1] if client.answer is None else [made.m1, m3(made)]
        return self._made(client, view, made, keys.client_to_server, keys.server_to_client, sent)

    def _server_end(self, server: Server) -> End:
        service = sessions.service(server.service)
        nonce = sessions.server_nonce(server.number) if self.design.server_nonce_fresh else sessions.CONSTANT_NONCE
        view = View(
            service,
            sessions.server_address(server.port),
            sessions.client_address(server.source),
            key_id(self.design, service),
            *server.hello,
            sessions.instance(server.process),
            sessions.LIMITS,
            nonce,
        )
        made = handshake(self.design, view)
        return self._made(server, view, made, made.keys.server_to_client, made.keys.client_to_server, [m2(made)])

    def _made(
        self, session: Session, view: View, made: Handshake, send_key: Term, receive_key: Term, sent: list[Term]
    ) -> End:
        sender = "client" if isinstance(session, Client) else "server"
        contents = tuple(content(sender, session.number, seq) for seq in range(self.records))
        records = tuple(signature(self.design, send_key, seq, inner) for seq, inner in enumerate(contents))
        return End(session, view, made, send_key, receive_key, tuple(taken_apart(sent)), records, contents)
