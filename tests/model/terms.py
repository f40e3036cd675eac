"""Terms: what cryptography yields when it is perfect, as trees that are compared by how they were made.

Two terms are equal only if they were made alike: nothing collides, nothing can be inverted. The constructors are those
of the wire protocol, so that :mod:`tests.model.evaluate` can turn a term into bytes. Equal terms are one object.
"""

from __future__ import annotations

from typing import TypeAlias
from weakref import WeakValueDictionary

Detail = str | int | bytes


class Term:
    """One term; made by the functions below and by nothing else.

    :ivar kind: the constructor.
    :ivar parts: the terms it was made of; of an HMAC and of a key derivation the key first.
    :ivar details: what is no term: a name's words, a literal's bytes, a length.
    :ivar size: how many bytes it stands for. Fields of the protocol have fixed sizes, so a row of them is read in one
        way only.
    """

    __slots__ = ("__weakref__", "details", "kind", "parts", "size")

    def __init__(self, kind: str, parts: tuple[Term, ...], details: tuple[Detail, ...], size: int) -> None:
        self.kind, self.parts, self.details, self.size = kind, parts, details, size

    def __repr__(self) -> str:
        if self.kind == "name":
            return " ".join(map(str, self.details))
        return f"{self.kind}({', '.join(map(repr, [*self.parts, *self.details]))})"


_Made: TypeAlias = tuple[str, tuple[Term, ...], tuple[Detail, ...], int]
_all: WeakValueDictionary[_Made, Term] = WeakValueDictionary()


def _one(*made: *_Made) -> Term:
    """The term made like that; as long as anybody has it, there is no other."""
    found = _all.get(made)
    if found is None:
        found = _all[made] = Term(*made)
    return found


def name(what: str, which: int | str, size: int) -> Term:
    """Something without structure: a nonce, an address, the secret."""
    return _one("name", (), (what, which), size)


def anything(what: str, size: int) -> Term:
    """A gap in a pattern, for :func:`match`."""
    return _one("gap", (), (what,), size)


def literal(value: bytes) -> Term:
    return _one("literal", (), (value,), len(value))


def row(*parts: Term) -> Term:
    """The parts one behind the other."""
    return _one("row", parts, (), sum(part.size for part in parts))


def lp(part: Term) -> Term:
    """Behind its own length, as u16."""
    return _one("lp", (part,), (), part.size + 2)


def sha256(message: Term) -> Term:
    return _one("sha256", (message,), (), 32)


def hmac(key: Term, message: Term) -> Term:
    return _one("hmac", (key, message), (), 32)


def expand(prk: Term, info: Term, size: int) -> Term:
    """HKDF-Expand; only as good as a key if ``prk`` is one."""
    return _one("expand", (prk, info), (), size)


def piece(whole: Term, number: int) -> Term:
    """32 bytes of key material. Nobody can put the whole together from its pieces."""
    return _one("piece", (whole,), (number,), 32)


def rebuilt(term: Term, parts: tuple[Term, ...]) -> Term:
    """The same constructor over other parts of the same sizes."""
    return _one(term.kind, parts, term.details, term.size)


def match(pattern: Term, term: Term) -> dict[Term, Term] | None:
    """What the gaps of ``pattern`` must be for it to become ``term``; None if nothing makes it so."""
    filled: dict[Term, Term] = {}
    return filled if _fits(pattern, term, filled) else None


def _fits(pattern: Term, term: Term, filled: dict[Term, Term]) -> bool:
    if pattern is term:
        return True
    if pattern.kind == "gap":
        return pattern.size == term.size and filled.setdefault(pattern, term) is term
    if (pattern.kind, pattern.details, len(pattern.parts)) != (term.kind, term.details, len(term.parts)):
        return False
    return all(_fits(inner, other, filled) for inner, other in zip(pattern.parts, term.parts, strict=True))
