"""From terms to bytes, with the standard library's primitives: what ties the model to the code."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from tests.model.terms import Term


def evaluate(term: Term, names: Mapping[Term, bytes]) -> bytes:
    """The bytes that ``term`` stands for.

    :param names: the bytes of every name in it.
    """
    parts = [evaluate(part, names) for part in term.parts]
    match term.kind, term.details:
        case "name", _:
            return names[term]
        case "literal", (bytes(value),):
            return value
        case "row", ():
            return b"".join(parts)
        case "lp", ():
            return len(parts[0]).to_bytes(2, "big") + parts[0]
        case "sha256", ():
            return hashlib.sha256(parts[0]).digest()
        case "hmac", ():
            return hmac.digest(parts[0], parts[1], "sha256")
        case "expand", ():
            return _hkdf_expand(parts[0], parts[1], term.size)
        case "piece", (int(number),):
            return parts[0][32 * number : 32 * number + 32]
    raise ValueError(f"stands for no bytes: {term}")


def _hkdf_expand(prk: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869, section 2.3."""
    okm = block = b""
    for count in range(1, -(-size // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([count]), "sha256")
        okm += block
    return okm[:size]
