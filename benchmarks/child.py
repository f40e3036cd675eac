"""One side of one measurement: ``python -m benchmarks.child receive|send SYSTEM WORK NUMBER…``.

A receiver prints where it listens, then serves until it is ended. A sender reads that line on its standard input and
prints what it measured.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.systems import load
from benchmarks.work import RECEIVERS


def main(side: str, system: str, work: str, *numbers: str) -> None:
    arguments = [int(number) for number in numbers]
    if side == "receive":
        load(system).receive(RECEIVERS[work](*arguments), _print)
    else:
        _print(getattr(load(system), work)(json.loads(sys.stdin.readline()), *arguments))


def _print(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
