"""What a mutant is, and how it is applied."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stale(Exception):
    """The code has changed under a mutant: its old text is not there exactly once."""


class Mutant(NamedTuple):
    """One weakening of one module.

    :ivar name: for ``--only``.
    :ivar module: path below ``ipc_twisted``, without ``.py``.
    :ivar weakens: what an attacker, or a mistake, could then do.
    :ivar changes: pairs of old and new text; most have one. Several where both ends must be weak for the link to work
        all the same, as whoever weakened it on purpose would have it.
    :ivar tests: the test modules that can notice, without ``test_``, fastest first.
    """

    name: str
    module: str
    weakens: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def path(self, package: Path) -> Path:
        """Its file in the folder of a package ``ipc_twisted``."""
        return package / f"{self.module}.py"

    def apply(self, source: str) -> str:
        """:raises Stale: an old text does not occur exactly once."""
        for old, new in self.changes:
            if (count := source.count(old)) != 1:
                raise Stale(f"{self.name}: occurs {count} times in {self.module}.py, not once: {old!r}")
            source = source.replace(old, new)
        return source


class MutantsOf:
    """Makes the mutants of one module.

    :param tests: as :attr:`Mutant.tests`, unless a mutant has its own.
    """

    def __init__(self, module: str, *tests: str) -> None:
        self._module = module
        self._tests = tests

    def __call__(
        self, name: str, weakens: str, old: str, new: str, *more: tuple[str, str], tests: tuple[str, ...] = ()
    ) -> Mutant:
        return Mutant(name, self._module, weakens, ((old, new), *more), tests or self._tests)
