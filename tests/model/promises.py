"""What the handshake promises, and where a state breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from tests.model.protocol import View, signature
from tests.model.rules import End, Rules, Situation
from tests.model.sessions import OWN_CONTENT, Server
from tests.model.terms import Term


class Promise(StrEnum):
    AGREEMENT = "an end completes only with one that agrees in everything"
    ONE_TO_ONE = "an end completes with one other, and no third has the same view"
    OWN_KEYS = "only two ends that agree have a record key in common"
    SECRET_KEYS = "the attacker has no record key"
    RECORDS = "a record is accepted once, in its place, by the end that agrees with its sender"


class Broken(NamedTuple):
    """One way in which a promise is broken.

    :ivar at: the end that was deceived: ``client`` or ``server``.
    :ivar how: of an agreement the fields of the view that differ from the nearest end's (``nobody``: there is none),
        and ``restarted`` if that is a server on a port on which another process ran before or after; of a key the kind
        of the other end that has it; of a record what is wrong with it.
    """

    promise: Promise
    at: str
    how: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"broken at a {self.at}: {self.promise}" + (f" ({', '.join(sorted(self.how))})" if self.how else "")


def broken(rules: Rules, situation: Situation) -> Iterator[Broken]:
    """All promises that are broken in this situation."""
    clients, servers = situation.completed_clients, situation.completed_servers
    if not clients and not servers:
        return
    accepted: Counter[Term] = Counter()
    deceived: list[tuple[str, Term]] = []
    for at, own, others in (("client", clients, situation.servers), ("server", servers, clients)):
        for end in own:
            agree = [other for other in others if other.view == end.view]
            if not agree:
                yield Broken(Promise.AGREEMENT, at, _differs(end, others))
            if len(agree) > 1 or any(other is not end and other.view == end.view for other in own):
                yield Broken(Promise.ONE_TO_ONE, at)
            if situation.attacker.can_make(end.send_key) or situation.attacker.can_make(end.receive_key):
                yield Broken(Promise.SECRET_KEYS, at)
            for kind, ends in (("client", clients), ("server", servers)):
                if any(_share(end, other) and (kind == at or other.view != end.view) for other in ends):
                    yield Broken(Promise.OWN_KEYS, at, frozenset({kind}))
            for record, wrong in _records(rules, situation, end, agree):
                if wrong:
                    yield Broken(Promise.RECORDS, at, frozenset({wrong}))
                accepted[record] += wrong != "again"
                deceived.append((at, record))
    for at, record in deceived:
        if accepted[record] > 1:
            yield Broken(Promise.RECORDS, at, frozenset({"by another too"}))


def _differs(end: End, others: list[End]) -> frozenset[str]:
    if not others:
        return frozenset({"nobody"})
    nearest = min(others, key=lambda other: len(_between(end, other)))
    return frozenset(_between(end, nearest) | ({"restarted"} if _restarted(nearest, others) else set()))


def _between(end: End, other: End) -> set[str]:
    return {field for field, own, theirs in zip(View._fields, end.view, other.view, strict=True) if own is not theirs}


def _restarted(end: End, others: list[End]) -> bool:
    own = end.session
    sessions = [other.session for other in others]
    return isinstance(own, Server) and any(
        isinstance(other, Server) and other.port == own.port and other.process != own.process for other in sessions
    )


def _share(end: End, other: End) -> bool:
    return other is not end and not {end.send_key, end.receive_key}.isdisjoint({other.send_key, other.receive_key})


def _records(rules: Rules, situation: Situation, end: End, agree: list[End]) -> Iterator[tuple[Term, str]]:
    """Each record that the attacker can have accepted by ``end``, and what is wrong with it, if anything.

    Records are accepted one behind the other, and accepting one says nothing to the attacker: so it is enough to ask
    which it could deliver as the first, as the second and so on.
    """
    ends = (*situation.completed_clients, *situation.completed_servers)
    contents = [OWN_CONTENT, *(inner for other in ends for inner in other.contents)]
    expected = agree[0].records if agree else ()
    earlier: list[Term] = []
    for seq in range(rules.records):
        signed = (signature(rules.design, end.receive_key, seq, inner) for inner in contents)
        accepted = list(filter(situation.attacker.can_make, signed))
        for record in accepted:
            if record in earlier:
                yield record, "again"
            elif record in end.records:
                yield record, "its own"
            elif record not in expected:
                yield record, "of another"
            else:
                yield record, "" if expected[seq] is record else "out of place"
        if not accepted:
            return
        earlier += accepted
