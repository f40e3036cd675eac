"""The mutants fit the code as it is now; ``python -m tests.mutants`` tries whether the suite notices each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ipc_twisted
from tests.mutants.mutant import Mutant, MutantsOf, Stale
from tests.mutants.table import MUTANTS

PACKAGE = Path(ipc_twisted.__file__).parent
TESTS = Path(__file__).parent


def test_there_are_as_many_as_the_security_code_has_checks() -> None:
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.module, mutant.changes) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_changes_what_is_there_exactly_once_and_still_compiles(mutant: Mutant) -> None:
    source = mutant.path(PACKAGE).read_text(encoding="utf-8")
    mutated = mutant.apply(source)
    compile(mutated, str(mutant.path(PACKAGE)), "exec")
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source)), "nothing but a comment is changed"


@pytest.mark.parametrize("name", sorted({name for mutant in MUTANTS for name in mutant.tests}))
def test_the_tests_that_are_to_notice_exist(name: str) -> None:
    assert (TESTS / f"test_{name}.py").is_file()


@pytest.mark.parametrize("source", ["", "old old"])
def test_a_mutant_whose_text_is_not_there_once_is_stale(source: str) -> None:
    mutant = MutantsOf("module")("name", "what", "old", "new")
    assert mutant.apply("an old one") == "an new one"
    with pytest.raises(Stale, match="name: occurs"):
        mutant.apply(source)
