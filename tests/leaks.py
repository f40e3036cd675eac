"""What the suite's processes write and log, and a search of it for every secret that was used (SEC-IPC-08)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

_MIN_BYTES = 32
_MIN_DISTINCT = 8
_START = 12


def forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Every spelling that is searched for, with its name."""
    yield "raw", secret
    yield "hex", secret.hex().encode()
    yield "upper-case hex", secret.hex().upper().encode()
    yield "base64", base64.b64encode(secret).rstrip(b"=")
    yield "URL-safe base64", base64.urlsafe_b64encode(secret).rstrip(b"=")
    yield "a Python literal", repr(secret)[2:-1].encode()


def search(texts: Iterable[bytes], secrets: Iterable[bytes]) -> list[str]:
    """Say where a secret occurs, without repeating it. Linear in the text, however many secrets there are."""
    by_start: dict[bytes, list[tuple[str, bytes]]] = {}
    for secret in secrets:
        for form, name in {form: name for name, form in forms(secret)}.items():
            by_start.setdefault(form[:_START], []).append((name, form))
    found = []
    for text in dict.fromkeys(texts):
        for at in range(len(text) - _START + 1):
            for name, form in by_start.get(text[at : at + _START], ()):
                if text.startswith(form, at):
                    before = text[max(0, at - 200) : at].decode(errors="replace")
                    found.append(f"a secret of {len(form)} bytes ({name}) behind: {before!r}")
    return found


@implementer(ILogObserver)
class Collected:
    """All output of a run, and all secrets that were used in it. As a log observer it takes in what is logged."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.secrets: set[bytes] = set()

    def secret(self, value: bytes) -> None:
        """Look for this one. Not for what is short or as regular as test data: it could occur by chance."""
        if len(value) >= _MIN_BYTES and len(set(value)) >= _MIN_DISTINCT:
            self.secrets.add(bytes(value))

    def output(self, text: bytes) -> None:
        """Something that a process wrote."""
        self.texts.append(text)

    def __call__(self, event: LogEvent) -> None:
        """A line, its fields as they would be shown, and the traceback."""
        shown = [formatEvent(event), *(repr(event[name]) for name in event if not name.startswith("log_"))]
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            shown.append(failure.getTraceback())
        self.output("\n".join(shown).encode(errors="surrogateescape"))

    def found(self) -> list[str]:
        """See :func:`search`."""
        return search(self.texts, self.secrets)


SUITE = Collected()
"""Of this run of the suite: its own logging and whatever its child processes wrote."""
