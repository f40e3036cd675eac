"""The report as a picture: one way rates by size, as bars, in SVG."""

from __future__ import annotations

from html import escape
from statistics import median

from benchmarks.report import OURS, Report, machine
from benchmarks.systems import SYSTEMS
from benchmarks.targets import ONE_WAY, TITLES

_WIDTH, _ROW, _NAMES, _BAR = 900, 20, 260, 460


def chart(report: Report) -> str:
    """An SVG document. Each size has a scale of its own, up to the fastest system."""
    parts: list[str] = []
    y = 30
    for work in (f"flood/{size}" for size in ONE_WAY):
        rates = {name: median(values) for name, values in report.values[work].items()}
        if not rates:
            continue
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(TITLES[work])}</text>')
        for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
            y += _ROW
            fill = "#b3261e" if name == OURS else "#5b6b7f"
            width = max(1, round(_BAR * rate / max(rates.values())))
            title = escape(SYSTEMS[name].title)
            parts.append(f'<text x="{_NAMES - 8}" y="{y + 4}" text-anchor="end">{title}</text>')
            parts.append(f'<rect x="{_NAMES}" y="{y - 8}" width="{width}" height="14" fill="{fill}"/>')
            parts.append(f'<text x="{_NAMES + width + 6}" y="{y + 4}">{rate:,.0f}/s</text>')
        y += 2 * _ROW
    parts.append(f'<text x="10" y="{y}" font-size="11">{escape(machine())}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 15}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>Messages a second, one way</title>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
