"""Write the frozen cases of this folder: ``python -m tests.vectors.make_vectors [--check]``.

Deterministic: no clock, no randomness; the same bytes at every run. ``--check`` writes nothing and exits 1 when a file
differs from what would be written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.vectors.common import KEYS, Case
from tests.vectors.envelope_accept import envelope_accept
from tests.vectors.envelope_reject import envelope_reject
from tests.vectors.handshake_accept import handshake_accept
from tests.vectors.handshake_reject import handshake_reject
from tests.vectors.receipt_cases import receipt_accept, receipt_reject

FOLDER = Path(__file__).parent


def _document(about: str, cases: list[Case], **more: Any) -> str:
    """One field a line, so that a change of one case is a change of a few lines."""
    head = [f'"about": {json.dumps(about)}', '"protocol": 1', *(f'"{k}": {json.dumps(v)}' for k, v in more.items())]
    listed = (
        "{\n" + ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in case.items()) + "\n  }"
        for case in cases
    )
    return "{\n" + ",\n".join(head) + ',\n"cases": [\n  ' + ",\n  ".join(listed) + "\n]\n}\n"


def documents() -> dict[str, str]:
    """File name to content, ASCII only."""
    keys = {"k_c2s": KEYS.c2s.hex(), "k_s2c": KEYS.s2c.hex()}
    return {
        "handshake_accept.json": _document("Handshakes that both sides must complete.", handshake_accept()),
        "handshake_reject.json": _document("Handshakes that one side must refuse.", handshake_reject()),
        "records_accept.json": _document(
            "Records that a receiver must take.", [*envelope_accept(), *receipt_accept()], keys=keys
        ),
        "records_reject.json": _document(
            "Records that a receiver must refuse.", [*envelope_reject(), *receipt_reject()], keys=keys
        ),
    }


def differing() -> dict[str, str]:
    """Of :func:`documents` those whose file is another, or not there."""

    def differs(name: str, text: str) -> bool:
        path = FOLDER / name
        return not path.is_file() or path.read_bytes() != text.encode("ascii")

    return {name: text for name, text in documents().items() if differs(name, text)}


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m tests.vectors.make_vectors [--check]", file=sys.stderr)
        return 2
    wrong = differing()
    if arguments:
        for name in wrong:
            print(f"{name} differs", file=sys.stderr)
        return 1 if wrong else 0
    for name, text in wrong.items():
        (FOLDER / name).write_bytes(text.encode("ascii"))
    print(f"{len(wrong)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
