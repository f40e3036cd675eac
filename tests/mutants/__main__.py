"""Try the mutants: ``python -m tests.mutants [--only NAME ...] [--seconds N [--seed N]] [--list]``.

The tree is copied to a temporary folder. There each mutant is applied alone, and its tests are run until one fails;
each of them must have passed once before without a mutant. ``--seconds`` takes as many mutants as fit, at least one, in
an order that another seed makes another one. Exits with 1 if a mutant survives, is stale, or breaks the import instead
of a promise.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant, Stale
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parent.parent.parent
COPIED = ("ipc_twisted", "tests", "twisted", "docs", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.cfg")
TIMEOUT = 60.0
"""Seconds for the tests of one mutant; those that hang have noticed it, too."""

_PASSED, _FAILED = 0, 1  # what pytest exits with


class Tree:
    """A copy of the tree that may be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "ipc_twisted"
        self._folder = folder
        self._sound: set[str] = set()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache")
                )
            else:
                shutil.copy(ROOT / name, folder / name)

    def test(self, names: Iterable[str], timeout: float | None = None) -> tuple[int | None, str]:
        """Run test modules until one test fails.

        :returns: pytest's exit code, None if it did not end in time; and what it wrote.
        """
        files = [f"tests/test_{name}.py" for name in names]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *files]
        environment = {**os.environ, "PYTHONPATH": str(self._folder)}
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be ended with its children
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return None, ""
        return process.returncode, output

    def complaint(self, names: Iterable[str]) -> str | None:
        """What test modules say of the tree as it is: None if they pass. Those that have passed are not run again."""
        new = [name for name in names if name not in self._sound]
        code, output = self.test(new) if new else (_PASSED, "")
        if code != _PASSED:
            return output
        self._sound.update(new)
        return None

    def outcome(self, mutant: Mutant) -> tuple[bool, str]:
        """Apply it, run its tests, undo it. Whether it was noticed, and what to print."""
        path = mutant.path(self.package)
        source = path.read_text(encoding="utf-8")
        try:
            mutated = mutant.apply(source)
        except Stale as stale:
            return False, f"STALE     {stale}"
        try:
            _write(path, mutated)
            code, output = self.test(mutant.tests, TIMEOUT)
        finally:
            _write(path, source)
        if code is None:
            return True, "killed    (a test hung)"
        if code == _FAILED:
            failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
            return True, f"killed    by {failed[0].split(' - ')[0].split()[1] if failed else '?'}"
        if code == _PASSED:
            return False, f"SURVIVED  {mutant.module}.py: {mutant.weakens}; tried {', '.join(mutant.tests)}"
        return False, f"BROKEN    the tests did not run:\n{output}"


def _write(path: Path, source: str) -> None:
    """Without what is left of its last form, which Python may take for this one's: same size, same second."""
    path.write_text(source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _selected(only: Sequence[str] | None) -> list[Mutant]:
    if only is None:
        return MUTANTS
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise SystemExit(f"no such mutant: {', '.join(unknown)}; --list shows all")
    return [known[name] for name in only]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="try only these")
    parser.add_argument("--seconds", type=float, help="begin no further one after so long")
    parser.add_argument(
        "--seed", type=int, help="with --seconds: of their order; another one at each run, unless given"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and try nothing")
    options = parser.parse_args(arguments)
    mutants = _selected(options.only)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:36} {mutant.module:20} {mutant.weakens}")
        return 0
    if options.seconds is not None:
        seed = random.randrange(2**31) if options.seed is None else options.seed
        print(f"seed {seed}", flush=True)
        mutants = random.Random(seed).sample(mutants, len(mutants))
    began = time.monotonic()
    tried = bad = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Tree(Path(folder))
        for mutant in mutants:
            start = time.monotonic()
            if tried and options.seconds is not None and start - began >= options.seconds:
                break
            if (complaint := tree.complaint(mutant.tests)) is not None:
                print(f"{complaint}\nwithout any mutant the tests fail, so they can show nothing")
                return 1
            noticed, text = tree.outcome(mutant)
            tried += 1
            bad += not noticed
            print(f"{mutant.name:36} {time.monotonic() - start:5.1f} s  {text}", flush=True)
    seconds = time.monotonic() - began
    print(f"{tried - bad} of {tried} mutants killed in {seconds:.0f} s; there are {len(MUTANTS)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
