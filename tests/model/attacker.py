"""What the attacker knows and what it can make of that (Dolev and Yao, 1983): everything but what needs a key."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.terms import Term

OPEN = {"row", "lp"}


def taken_apart(messages: Iterable[Term]) -> list[Term]:
    """The fields of messages, in order."""
    fields: list[Term] = []
    for message in messages:
        if message.kind in OPEN:
            fields += taken_apart(message.parts)
        else:
            fields.append(message)
    return fields


class Attacker:
    """Whoever has seen these fields.

    It takes rows apart, and applies every constructor to what it has. It cannot undo one, and has no secret.
    """

    def __init__(self, fields: Iterable[Term]) -> None:
        self.seen = dict.fromkeys(fields)

    def learns(self, fields: Iterable[Term]) -> None:
        self.seen.update(dict.fromkeys(fields))

    def can_make(self, term: Term) -> bool:
        """Whether it has ``term`` or can put it together. A key is first among the parts, so most tries end early."""
        if term in self.seen:
            return True
        if term.kind == "name":
            return False
        for part in term.parts:  # noqa: SIM110 - this is where most of a search goes, and all() costs half as much again
            if not self.can_make(part):
                return False
        return True

    def fields(self, size: int) -> list[Term]:
        """All it has seen of this size: what it may put into a field, whatever it was made for.

        What it computes itself and no honest end has said is not among them: to honest ends, which look into no field,
        that is the same as one of its own names.
        """
        return [term for term in self.seen if term.size == size and term.kind != "literal"]
