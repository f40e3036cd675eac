"""What :mod:`tests.hostile.cost` counts. What it times is for its command, not for a test."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core_pair import NOW, server
from tests.hostile import cost
from tests.hostile.cost import KINDS, Cost, bytes_held
from tests.hostile.victim import Victim, unharmed


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as victim:
        yield victim


@pytest.mark.attack(8)
@pytest.mark.parametrize("kind", KINDS)
def test_no_stranger_is_answered_with_more_than_m2(victim: Victim, kind: str) -> None:
    with unharmed(victim):
        answered = [KINDS[kind](victim.port, cost.first(victim)) for _ in range(20)]
        cost.let_go()
        assert max(answered) == (cost.MOST_ANSWERED if "M1" in kind else 0)


@pytest.mark.attack(5)
@pytest.mark.parametrize(("kind", "most"), [("silent", 0), ("garbage", 4), ("M1 only", 68), ("M1 and a wrong M3", 68)])
def test_no_more_of_a_strangers_input_is_held_than_its_first_message(kind: str, most: int) -> None:
    assert bytes_held(kind) <= most <= cost.MOST_HELD


def test_bytes_that_are_held_are_found() -> None:
    """Else the figure above would say nothing."""
    connection: Any = server().connection
    before = len(cost._bytes_within(connection))
    connection._hoard = [{"deep": (b"some input that somebody keeps",)}]
    gc.collect()
    assert len(cost._bytes_within(connection)) > before
    connection.receive_data(b"\0\0\0\x40IPC", NOW)
    assert b"\0\0\0\x40IPC" in cost._bytes_within(connection)


def test_the_difference_is_that_of_rounds_beside_each_other() -> None:
    measured = Cost()
    measured.base["silent"], measured.ours["silent"] = [10.0, 50.0, 10.0], [15.0, 57.0, 16.0]
    assert measured.difference("silent") == 6.0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the time of another process")
def test_the_command_measures_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """As short as it can be: what it finds then says nothing about the package."""
    arguments = ["--rounds", "1", "--connects", "20", "--windows", "1", "--seconds", "0.05"]
    assert cost.main(arguments) in (0, 1)
    printed = capsys.readouterr().out
    for kind in KINDS:
        assert f"\n{kind} " in printed
    assert "does not hold: " in printed or "all hold" in printed
    assert "bytes held" not in printed
    assert "bytes answered" not in printed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the time of another process")
def test_who_comes_no_further_than_m1_is_held_to_the_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "MOST_MICROSECONDS", -1e6)
    assert cost.main(["--rounds", "1", "--connects", "5", "--windows", "1", "--seconds", "0.01"]) == 1
    failed = capsys.readouterr().out.partition("does not hold: ")[2]
    assert [kind for kind in KINDS if f"{kind}: processor time" in failed] == ["silent", "garbage", "M1 only"]
