"""Rounds of measurements as medians, ratios and verdicts."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.systems import SYSTEMS
from benchmarks.targets import ONE_WAY, TARGETS, TITLES, Target

OURS = "ipc_twisted"
WORKS = (*(f"flood/{size}" for size in ONE_WAY), "ping", "dial", "paced")


class Report:
    """What was measured: for each kind of work and system one value a round.

    :ivar values: rates (1/s) of floods and ``dial``, times (s) of ``ping`` and ``paced``.
    :ivar costs: processor time of both sides of a flood, µs a message.
    :ivar own: figures of this package alone.
    :ivar limits: messages a second that nobody can beat, by size.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.costs: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        self.own: dict[str, float] = {}
        self.limits: dict[int, float] = {}

    def ratio(self, target: Target) -> float | None:
        """The median over the rounds of ours to theirs; None if it was not measured."""
        if not target.than:
            return self.own.get(target.what)
        ours, theirs = (self.values[target.what].get(name, []) for name in (OURS, target.than))
        return median(a / b for a, b in zip(ours, theirs, strict=True)) if ours and theirs else None

    def short(self) -> list[Target]:
        """Those beyond their floor."""
        return [
            target
            for target in TARGETS
            if (value := self.ratio(target)) is not None and not target.holds(value, target.floor)
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": machine(),
            "versions": versions(),
            "values": self.values,
            "processor_microseconds": self.costs,
            "own": self.own,
            "limits": self.limits,
            "targets": [{**target._asdict(), "value": self.ratio(target)} for target in TARGETS],
        }

    def __str__(self) -> str:
        lines = [machine(), ", ".join(f"{name} {number}" for name, number in versions().items())]
        for work in WORKS:
            if self.values[work]:
                lines += ["", f"{TITLES[work]} (median, lowest, highest)", *self._rows(work)]
        if self.limits and (shares := self._shares()):
            lines += ["", "ours, of what one processor can sign and copy to loopback", *shares]
        lines += ["", f"{'':80}{'is':>8}{'floor':>8}{'goal':>8}", *filter(None, map(self._verdict, TARGETS))]
        return "\n".join(lines)

    def _rows(self, work: str) -> list[str]:
        rows = []
        for name, values in self.values[work].items():
            times = work in ("ping", "paced")
            shown = "  ".join(f"{v * 1e6:>10,.0f}" if times else f"{v:>10,.0f}" for v in _spread(values))
            costs = self.costs[work].get(name)
            cost = "{:9.1f} {:9.1f}".format(*(median(side) for side in zip(*costs, strict=True))) if costs else ""
            unit = "us" if times else "/s"
            rows.append(
                f"  {SYSTEMS[name].title:38}{shown} {unit}  {cost + ' us of sender and receiver' if cost else ''}"
            )
        return rows

    def _shares(self) -> list[str]:
        rows = []
        for size, limit in self.limits.items():
            if ours := self.values[f"flood/{size}"].get(OURS):
                rows.append(
                    f"  {size:>10,} B  {median(ours):>10,.0f} of {limit:>10,.0f} /s  {median(ours) / limit:6.0%}"
                )
        return rows

    def _verdict(self, target: Target) -> str | None:
        value = self.ratio(target)
        if value is None:
            return None
        what = TITLES[target.what] + (f", x {target.than}" if target.than else "")
        if target.holds(value, target.goal):
            verdict = "reaches the goal"
        elif target.holds(value, target.floor):
            verdict = "holds"
        else:
            by = abs(value - target.floor)
            verdict = f"FALLS SHORT by {by:,.2f}"
        return f"{what:80.80}{_short(value)}{_short(target.floor)}{_short(target.goal)}  {verdict}"


def _short(value: float) -> str:
    return f"{value:>8,.0f}" if value >= 100 or value == 0 else f"{value:>8.2f}"


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def machine() -> str:
    """Processor, their number, system, Python."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Of every package that is compared, and of those that ours stands on."""
    packages = {system.package for system in SYSTEMS.values() if system.package} | {"cryptography", "msgspec"}
    return {name: version(name) for name in sorted(packages, key=str.lower)}
