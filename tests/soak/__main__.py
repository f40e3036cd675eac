"""``python -m tests.soak NAME [--option value …]``: run one scenario, print its figures; exit 1 if something fails."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from tests.soak.common import Report

SCENARIOS = (
    "deliveries",
    "slow_handlers",
    "never_reads",
    "churn",
    "flood",
    "restart",
    "sigterm",
    "rotation",
)


def scenario(name: str) -> Callable[..., None]:
    """Its function; all but its first parameter are options."""
    run: Callable[..., None] = importlib.import_module(f"tests.soak.{name}").run
    return run


def _truth(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError("say yes or no")
    return text == "yes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Soak scenarios.")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in SCENARIOS:
        run = scenario(name)
        first = (sys.modules[run.__module__].__doc__ or "").splitlines()[0]
        sub = names.add_parser(name, help=first, description=first)
        for option in list(inspect.signature(run, eval_str=True).parameters.values())[1:]:
            kind: Any = _truth if option.annotation is bool else option.annotation
            shown = ("no", "yes")[option.default] if option.annotation is bool else option.default
            flag = f"--{option.name.replace('_', '-')}"
            sub.add_argument(flag, dest=option.name, type=kind, default=option.default, help=f"default: {shown}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    name = options.pop("name")
    report = Report(name)
    try:
        scenario(name)(report, **options)
    except (AssertionError, OSError) as problem:  # of a process that was waited for
        report.holds("the scenario comes to its end", False, problem)
    print(report, flush=True)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
