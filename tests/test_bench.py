"""``ipc-twisted bench``: a line for each size, and nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = [sys.executable, "-m", "ipc_twisted.cli", "bench"]


def test_it_prints_a_rate_for_each_size_and_the_time_of_a_round_trip(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*BENCH, "--scale", "0.005"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for size in ("256 B", "4 KiB", "64 KiB", "16 MiB"):
        rate, mebibytes, spent = re.findall(rf"^ +{size} +([\d,]+) +([\d,]+) +([\d,.]+)$", ended.stdout, re.M)[0]
        assert int(rate.replace(",", "")) > 0
        assert float(spent.replace(",", "")) > 0
        assert int(mebibytes.replace(",", "")) >= 0
    assert re.search(r"^round trip of 256 B: [\d,]+ µs in the middle, 99 % within [\d,]+ µs$", ended.stdout, re.M)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    """With so few descriptors ``twistd ipc`` refuses to."""
    command = ["sh", "-c", f"ulimit -n 300; exec {sys.executable} -m ipc_twisted.cli bench"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("ipc-twisted bench: twistd ipc did not start:")


@pytest.mark.parametrize("scale", ["0", "x", "inf"])
def test_a_scale_is_a_number_above_0(scale: str) -> None:
    ended = subprocess.run([*BENCH, "--scale", scale], capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"--scale: must be a number above 0, not '{scale}'" in ended.stderr
