"""``python -m benchmarks``: measure, print the report, and with ``--check`` fail where a floor does not hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.systems import SYSTEMS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if missing := [name for name in ("grpc", "jupyter_client", "tqdm", "zmq") if find_spec(name) is None]:
        print(f"benchmarks: {', '.join(missing)} not found: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    from benchmarks.chart import chart
    from benchmarks.report import Report
    from benchmarks.run import run

    report = Report()
    run(report, options.systems, options.rounds, options.scale)
    print(report)
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    if options.svg:
        Path(options.svg).write_text(chart(report), encoding="utf-8")
    return 1 if options.check and report.short() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="ipc_twisted against what people would use instead, in real processes on loopback. Rounds go "
        "through all systems in turn; ratios are medians over the rounds.",
        epilog="Exit status: 0; with --check 1 if a floor does not hold; 2 wrong usage.",
    )
    parser.add_argument("--rounds", type=_positive(int), default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--systems", type=_systems, default=list(SYSTEMS), metavar="A,B", help=f"of {', '.join(SYSTEMS)}; default: all"
    )
    parser.add_argument("--json", metavar="FILE", help="write all values to FILE")
    parser.add_argument("--svg", metavar="FILE", help="write a chart of the rates to FILE")
    parser.add_argument("--check", action="store_true", help="fail where a floor does not hold")
    parser.add_argument(
        "--scale", type=_positive(float), default=1.0, metavar="X", help="send X times as many messages, such as 0.01"
    )
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
        return value

    return convert


def _systems(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
