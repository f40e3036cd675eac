"""What must hold, and what is wanted: each a row of the report."""

from __future__ import annotations

from typing import NamedTuple

ONE_WAY = (256, 4_096, 65_536, 16 * 2**20)
"""Payload sizes of the floods, bytes."""


class Target(NamedTuple):
    """A ratio of ours to another system's, or a figure of our own.

    :ivar what: ``flood/SIZE``, ``dial`` (rates: more is better), ``ping``, ``paced`` (times: less is better), or the
        name of a figure of :mod:`benchmarks.own` (less is better).
    :ivar than: the system it is a ratio to; "" for our own figures.
    :ivar floor: fails beyond it; ``goal``: what is wanted.
    """

    what: str
    than: str
    floor: float
    goal: float

    @property
    def more_is_better(self) -> bool:
        return self.what == "dial" or self.what.startswith("flood/")

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.more_is_better else value <= bound


TARGETS = (
    Target("flood/256", "curve", 0.7, 1.0),
    Target("flood/4096", "curve", 1.6, 2.0),
    Target("flood/65536", "curve", 0.9, 1.0),
    Target("flood/16777216", "curve", 0.8, 1.0),
    Target("flood/256", "asyncio", 1.2, 1.8),
    Target("flood/256", "amp", 8.0, 15.0),
    Target("flood/256", "session", 5.0, 8.0),
    Target("flood/256", "grpc", 3.0, 5.0),
    Target("flood/256", "int32", 0.25, 0.4),
    Target("dial", "curve", 0.8, 1.2),
    Target("ping", "curve", 1.1, 0.9),
    Target("ping", "int32", 1.8, 1.4),
    Target("paced", "curve", 2.0, 1.0),
    Target("large_records", "", 2.5, 2.0),
    Target("small_segments", "", 2.0, 1.5),
    Target("many_messages", "", 1.3, 1.1),
    Target("guard_peak_mib", "", 900, 600),
    Target("guard_entry_bytes", "", 160, 160),
    Target("guard_rejected", "", 0, 0),
    Target("record_memory", "", 2.5, 2.1),
)

TITLES = {
    "flood/256": "one way, 256 B: messages a second",
    "flood/4096": "one way, 4 KiB: messages a second",
    "flood/65536": "one way, 64 KiB: messages a second",
    "flood/16777216": "one way, 16 MiB: messages a second",
    "dial": "connect, authenticate, first answer: a second",
    "ping": "round trip of 256 B: median",
    "paced": "way of 256 B at half of our own full rate: 99th percentile",
    "large_records": "cost per byte, 256 MiB over 1 MiB records",
    "small_segments": "cost per byte, 1 KiB over 64 KiB segments",
    "many_messages": "cost per message, 10^7 over 10^4 messages",
    "guard_peak_mib": "peak memory of the receiver of 10^7 messages, MiB",
    "guard_entry_bytes": "memory an entry of its replay guard, bytes",
    "guard_rejected": "of these messages, rejected",
    "record_memory": "memory of the receiver for one 256 MiB record, by its size",
}
