"""Coverage-guided fuzzing with atheris: inputs that reach new code are kept and changed further.

``python -m tests.hostile.fuzz_coverage --seconds N [--target NAME]``, with the extra ``fuzz``. The targets and what
they hold are in :mod:`tests.hostile.fuzz_targets`; the seeds are the vectors. An input that breaks something stays as
a file, whose name is printed with the command that replays it; exit 1 then, and 2 where there is no atheris.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.fuzz_targets import MAX_BYTES, TARGETS

ROOT = Path(__file__).parent.parent.parent
FOUND = Path("build", "fuzz")
"""Where inputs that broke something are left, in the current folder."""

INPUT_SECONDS = 20
"""For one input; one that takes longer has hung."""

MEMORY_MIB = 1_024

_MODULE = "tests.hostile.fuzz_coverage"


def fuzz(name: str, seconds: int, seed: int) -> bool:
    """Fuzz one target and print what came of it: True if nothing was found."""
    FOUND.mkdir(parents=True, exist_ok=True)
    before = set(FOUND.iterdir())
    with tempfile.TemporaryDirectory(prefix="seeds-") as folder:
        seeds = list(dict.fromkeys(TARGETS[name]().seeds()))
        for number, data in enumerate(seeds):
            Path(folder, str(number)).write_bytes(data)
        options = [
            *(f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={MAX_BYTES}", "-use_value_profile=1"),
            *(f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"),
            f"-artifact_prefix={FOUND.absolute()}/{name}-",
            folder,
        ]
        ended = subprocess.run(
            [sys.executable, "-m", f"{_MODULE}_child", name, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    done = re.search(r"^#(\d+)\s+DONE\s+cov: (\d+)", ended.stdout, re.MULTILINE)
    if ended.returncode == 0 and done:
        print(f"{name}: {int(done[1]):,} inputs from {len(seeds)} seeds, {done[2]} branches reached, nothing found")
        return True
    print(f"{ended.stdout}\n{name}: exit {ended.returncode}")
    for path in sorted(set(FOUND.iterdir()) - before):
        print(f"{name}: the input is {path}, of {path.stat().st_size} bytes: {path.read_bytes().hex()}")
        print(f"replay it with: python -m {_MODULE} --target {name} --replay {path}")
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="Fuzz with atheris.")
    parser.add_argument("--seconds", type=int, default=60, help="in all (default 60)")
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--seed", type=int, help="another one at each run, unless given")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="give --target this input, without atheris")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        if options.target is None:
            parser.error("--replay needs --target")
        TARGETS[options.target]()(options.replay.read_bytes())
        print(f"{options.target}: {options.replay} breaks nothing")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -e '.[fuzz]' (it is for Linux on x86_64, Python 3.11 to 3.13)")
        return 2
    seed = random.randrange(1, 2**31) if options.seed is None else options.seed
    names = [options.target] if options.target else list(TARGETS)
    seconds = max(1, options.seconds // len(names))
    print(f"seed {seed}, {seconds} s for each target", flush=True)
    results = [fuzz(name, seconds, seed) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
