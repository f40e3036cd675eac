"""All measurements of all rounds, in turn, under a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tqdm import tqdm

from benchmarks import own
from benchmarks.limits import limit
from benchmarks.measure import flood, measure
from benchmarks.report import OURS, Report
from benchmarks.targets import ONE_WAY

MESSAGES = {256: 100_000, 4_096: 50_000, 65_536: 8_000, 16 * 2**20: 40}
"""Sent in one measurement, by size; a tenth of them first, to warm up."""

SLOW = {"amp": 5, "session": 5, "grpc": 5}
"""Systems that get so many times fewer."""

AMP_LARGEST = 65_535
"""It refuses larger values."""

PINGS, DIALS, PACED_SECONDS = 2_000, 300, 2.0

PACED = (OURS, "curve")


def run(report: Report, systems: list[str], rounds: int, scale: float) -> None:
    """Fill the report. Figures of our own are measured once, at the end, if ours is among the systems."""
    steps: list[tuple[str, Callable[[], None]]] = []
    for _ in range(rounds):
        for size in ONE_WAY:
            steps += [
                (f"{name} {size:,} B", partial(_flood, report, name, size, scale))
                for name in systems
                if not (name == "amp" and size > AMP_LARGEST)
            ]
        steps += [(f"{name} ping", partial(_ping, report, name, scale)) for name in systems]
        steps += [(f"{name} dial", partial(_dial, report, name, scale)) for name in systems]
        if OURS in systems:
            steps += [(f"{name} paced", partial(_paced, report, name)) for name in PACED if name in systems]
    if OURS in systems:
        steps += [(f"limit {size:,} B", partial(_limit, report, size)) for size in ONE_WAY]
        steps += [(figure.__name__, partial(_own, report, figure, scale)) for figure in own.FIGURES]
    with tqdm(steps, disable=None) as progress:
        for title, step in progress:
            progress.set_postfix_str(title)
            step()


def _flood(report: Report, name: str, size: int, scale: float) -> None:
    count = max(2, round(MESSAGES[size] * scale / SLOW.get(name, 1)))
    result = flood(name, size, max(1, count // 10), count)
    work = f"flood/{size}"
    report.values[work][name].append(count / result["sender"]["seconds"])
    costs = (result[side]["cpu"] / count * 1e6 for side in ("sender", "receiver"))
    report.costs[work][name].append((next(costs), next(costs)))


def _ping(report: Report, name: str, scale: float) -> None:
    times = measure(name, "ping", receiver=(), sender=(256, max(10, round(PINGS * scale))))
    report.values["ping"][name].append(times["p50"])


def _dial(report: Report, name: str, scale: float) -> None:
    count = max(5, round(DIALS * scale / (10 if name == "multiprocessing" else 1)))  # which waits for delayed ACKs
    result = measure(name, "dial", receiver=(), sender=(count,))
    report.values["dial"][name].append(count / result["sender"]["seconds"])


def _paced(report: Report, name: str) -> None:
    rate = round(report.values["flood/256"][OURS][-1] / 2)
    count = round(rate * PACED_SECONDS)
    ways = measure(name, "paced", receiver=(count + 1,), sender=(256, count, rate))
    report.values["paced"][name].append(ways["p99"])


def _limit(report: Report, size: int) -> None:
    report.limits[size] = limit(size)


def _own(report: Report, figure: Callable[[float], dict[str, float]], scale: float) -> None:
    report.own.update(figure(scale))
