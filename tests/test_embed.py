"""The link in asyncio programs: each in a process of its own that fails on every warning, and says nothing if well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedded_program import SCENARIOS, SECONDS

LOOPS = ("asyncio", "uvloop")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_program_embeds_the_link_twice_and_nothing_is_left(scenario: str, loop: str, runtime_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.embedded_program", loop, scenario],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
