"""The mutants fit the code as it is now; ``python -m tests.mutants`` tries whether the suite notices each."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

import ipc_twisted
from tests.mutants import __main__ as command
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


class _Tree:
    """Stands in for the copy: nothing is run, and each mutant takes a second."""

    seconds = 0.0
    complains = None
    survivors: frozenset[str] = frozenset()

    def __init__(self, _folder: Path) -> None:
        pass

    def complaint(self, _names: Iterable[str]) -> str | None:
        return self.complains

    def outcome(self, mutant: Mutant) -> tuple[bool, str]:
        _Tree.seconds += 1
        return mutant.name not in self.survivors, "tried"


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> type[_Tree]:
    monkeypatch.setattr(command, "Tree", _Tree)
    monkeypatch.setattr("tests.mutants.__main__.time.monotonic", lambda: _Tree.seconds)
    return _Tree


def tried(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("tried")]


@pytest.mark.usefixtures("tree")
def test_in_so_many_seconds_as_many_are_tried_as_fit_and_another_seed_tries_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = []
    for seed in ("1", "1", "2"):
        assert command.main(["--seconds", "9.5", "--seed", seed]) == 0
        samples.append(tried(capsys))
    assert [len(set(names)) for names in samples] == [10, 10, 10]
    assert samples[0] == samples[1] != samples[2]
    assert command.main(["--seconds", "0"]) == 0
    assert len(tried(capsys)) == 1
    assert command.main([]) == 0
    assert tried(capsys) == [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize("how", [{"survivors": {"magic"}}, {"complains": "1 failed"}])
def test_a_survivor_and_tests_that_fail_by_themselves_are_a_failure(
    tree: type[_Tree], monkeypatch: pytest.MonkeyPatch, how: dict[str, object]
) -> None:
    assert command.main(["--only", "magic", "flags"]) == 0
    for name, value in how.items():
        monkeypatch.setattr(tree, name, value)
    assert command.main(["--only", "magic", "flags"]) == 1


def test_modules_that_have_passed_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def test(names: list[str]) -> tuple[int, str]:
        runs.append(names)
        return int("bad" in names), "1 failed"

    monkeypatch.setattr(command, "COPIED", ())
    one = command.Tree(tmp_path)
    monkeypatch.setattr(one, "test", test)
    assert [one.complaint(names) for names in (["a"], ["a", "b"], ["b", "a"])] == [None] * 3
    assert one.complaint(["a", "bad"]) == one.complaint(["bad"]) == "1 failed"
    assert runs == [["a"], ["b"], ["bad"], ["bad"]]
