"""What a receiver does with the messages, the same for every system, and what is measured of a process."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

OnMessage = Callable[[bytes], bytes | None]
"""What a receiver does with a message that it has in hand; the returned bytes are sent back."""

STAMP_BYTES = 8
"""A message whose way is timed begins with the moment at which it was sent, in ns of the host's monotonic clock."""


def stamped(size: int) -> bytes:
    """A message of so many bytes, sent now."""
    return time.monotonic_ns().to_bytes(STAMP_BYTES, "big") + bytes(size - STAMP_BYTES)


def peak_bytes() -> int:
    """The most memory that this process has held. (``ru_maxrss`` begins with what the parent held.)"""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def held_bytes() -> int:
    """The memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Meter:
    """Time and processor time of a stretch of work in this process, all of its threads together."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since this was made, and the peak memory of the process, bytes."""
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
            "peak": peak_bytes(),
        }


def echo(message: bytes) -> bytes:
    return message


def counting(*phases: int) -> OnMessage:
    """Count messages; after each of the phases answer with what it cost this process, as JSON."""
    left = list(phases)
    count = left.pop(0)
    meter = Meter()

    def on_message(_message: bytes) -> bytes | None:
        nonlocal count, meter
        count -= 1
        if count:
            return None
        answer = json.dumps(meter.read()).encode()
        count, meter = (left.pop(0) if left else 0), Meter()
        return answer

    return on_message


def timing(total: int) -> OnMessage:
    """Note how long each message was on its way; answer the last with the percentiles, seconds, as JSON."""
    ways: list[int] = []

    def on_message(message: bytes) -> bytes | None:
        ways.append(time.monotonic_ns() - int.from_bytes(message[:STAMP_BYTES], "big"))
        return json.dumps(percentiles(ways)).encode() if len(ways) == total else None

    return on_message


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    """The median and the 99th percentile, seconds."""
    ordered = sorted(nanoseconds)
    return {"p50": ordered[len(ordered) // 2] / 1e9, "p99": ordered[len(ordered) * 99 // 100] / 1e9}


RECEIVERS: dict[str, Callable[..., Any]] = {
    "flood": counting,
    "paced": timing,
    "ping": lambda: echo,
    "dial": lambda: echo,
}
"""By the kind of work: makes the receiver's :data:`OnMessage` from the numbers of messages it will get."""
