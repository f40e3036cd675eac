"""What only this package is asked: what size and number cost, and the memory of its receiver."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import flood
from benchmarks.systems.ours import KIND, config
from benchmarks.systems.ours_large import LARGEST
from ipc_twisted.testing import LinkedPair

KIB, MIB = 2**10, 2**20


def large_records(_scale: float) -> dict[str, float]:
    """Processor time of both sides per byte: records of 256 MiB, over the same in records of 1 MiB."""
    return {"large_records": _cpu(flood("ours_large", LARGEST, 1, 1)) / _cpu(flood("ours_large", MIB, 16, 256))}


def small_segments(_scale: float) -> dict[str, float]:
    """Processor time of a receiver for a record of 16 MiB that arrives 1 KiB at a time, over 64 KiB at a time."""
    costs = {size: min(_segments(size) for _ in range(5)) for size in (KIB, 64 * KIB)}
    return {"small_segments": costs[KIB] / costs[64 * KIB]}


def _segments(size: int) -> float:
    pair = LinkedPair(config())
    pair.to_server.delay = 1.0
    pair.client.send(KIND, bytes(16 * MIB))
    pair.advance()
    frame = pair.to_server.records[-1]
    segments = [frame[at : at + size] for at in range(0, len(frame), size)]
    began = time.process_time()
    for segment in segments:
        pair.server.dataReceived(segment)
    cost = time.process_time() - began
    if not pair.server_received:
        raise RuntimeError("the record was not handed over")
    pair.cut()
    return cost


def many_messages(scale: float) -> dict[str, float]:
    """Processor time of both sides per message: of 10^7 over 10^4; and what the replay guard of the receiver takes."""
    few, many = 10_000, int(10_000_000 * scale)
    short = min(_cpu(flood("ours_guard", 256, few, few)) for _ in range(3)) / few
    long = flood("ours_guard", 256, few, many)
    receiver = long["receiver"]
    return {
        "many_messages": _cpu(long) / many / short,
        "guard_peak_mib": receiver["peak"] / MIB,
        "guard_entry_bytes": (receiver["peak"] - receiver["began"]) / max(1, receiver["entries"]),
        "guard_rejected": receiver["rejected"],
    }


def record_memory(_scale: float) -> dict[str, float]:
    """What a record of 256 MiB adds to the receiver's peak memory, by its size."""
    peaks = [flood("ours_large", size, 1, 1)["receiver"]["peak"] for size in (LARGEST, KIB)]
    return {"record_memory": (peaks[0] - peaks[1]) / LARGEST}


def _cpu(result: dict[str, Any]) -> float:
    return float(result["sender"]["cpu"] + result["receiver"]["cpu"])


FIGURES: tuple[Callable[[float], dict[str, float]], ...] = (large_records, small_segments, record_memory, many_messages)
"""Each takes the share of its full number of messages, and returns figures by the name that the targets have."""
