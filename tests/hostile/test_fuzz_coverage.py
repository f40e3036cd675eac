"""The targets of :mod:`tests.hostile.fuzz_coverage` take their seeds, and what is weakened is found by the command."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.hostile import fuzz_coverage
from tests.hostile.fuzz import Broken
from tests.hostile.fuzz_targets import TARGETS, Signed, Target
from tests.mutants.__main__ import Tree
from tests.mutants.mutant import Mutant, MutantsOf
from tests.mutants.table import MUTANTS
from tests.vectors import reference

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="no atheris: pip install -e '.[fuzz]'"
)
CHANGES = 2_000
_chain = MutantsOf("core/verifier")
_DECODE = "                ts, nonce, kind, trace_id, reply_to, target, headers = decode(header)  # 6\n"
WEAK: list[tuple[str, Mutant]] = [
    ("to-server", next(mutant for mutant in MUTANTS if mutant.name == "client-unproved")),
    (
        "signed",
        _chain(
            "decode-error-through",
            "what does not decode is a traceback",
            "            except Exception:  # also",
            '            except __import__("msgspec").ValidationError:  # also',
        ),
    ),
    (
        "signed",
        _chain(
            "three-headers",  # which no vector has
            "two headers are the most that can be sent",
            _DECODE,
            f"{_DECODE}                if len(headers) == 3: raise ValueError\n",
        ),
    ),
]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("to-server", {"server: the exact proof", "server: authentication_failed", "server: early_data"}),
        ("to-client", {"client: the exact proof", "client: authentication_failed", "client: handshake_refused"}),
        ("signed", {"accepted", "accepted closed", "rejected replayed", "rejected expired", "ended malformed"}),
        (
            "files",
            {f"{file} {end}" for file in ("config", "connection file", "key file") for end in ("taken", "refused")},
        ),
    ],
)
def test_seeds_get_far_and_so_do_changes_of_them(name: str, ends: set[str]) -> None:
    target: Target = TARGETS[name]()
    seeds = list(target.seeds())
    for data in (b"", b"\0", b"\3", *seeds):
        target(data)
    assert ends <= target.ends.keys()
    random = Random(1)
    for seed in range(CHANGES):
        target(target.change(random.choice(seeds), seed))


def test_a_change_makes_records_that_are_whole_and_new() -> None:
    """Or the fuzzer would lose its way in lengths that do not fit."""
    target = Signed()
    seeds = [seed for seed in target.seeds() if seed[1] == 0 and seed[4] in (1, 2, 3)]
    changed = {target.change(seed, number) for number in range(20) for seed in seeds} - set(seeds)
    assert len(changed) > 10 * len(seeds)
    for data in changed:
        target(data)
    assert target.ends["ended malformed"] < 0.8 * target.ends.total()


def test_a_package_that_says_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Signed()
    monkeypatch.setattr(reference, "_text", lambda value, longest: type(value) is str and len(value) <= longest)
    with pytest.raises(Broken, match="the reference Judged"):
        list(map(target, target.seeds()))


def test_without_atheris_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert fuzz_coverage.main([]) == 2
    assert "pip install -e '.[fuzz]'" in capsys.readouterr().out


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a tree."""
    return subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz_coverage", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


@needs_atheris
def test_nothing_is_found_in_the_package_within_seconds(tmp_path: Path) -> None:
    Tree(tmp_path)
    ended = run(tmp_path, "--seconds", "8")
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("nothing found") == len(TARGETS)


@needs_atheris
@pytest.mark.parametrize(("target", "mutant"), WEAK, ids=[mutant.name for _, mutant in WEAK])
def test_what_is_weakened_is_found_and_left_in_a_file_that_can_be_replayed(
    tmp_path: Path, target: str, mutant: Mutant
) -> None:
    path = mutant.path(Tree(tmp_path).package)
    sound = path.read_text(encoding="utf-8")
    path.write_text(mutant.apply(sound), encoding="utf-8")
    ended = run(tmp_path, "--seconds", "100", "--target", target)
    assert ended.returncode == 1, ended.stdout
    (found,) = (tmp_path / "build" / "fuzz").iterdir()
    replay = f"--target {target} --replay build/fuzz/{found.name}"
    assert replay in ended.stdout
    assert run(tmp_path, *replay.split()).returncode == 1
    path.write_text(sound + "# as it was\n", encoding="utf-8")
    assert run(tmp_path, *replay.split()).returncode == 0
