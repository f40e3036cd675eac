"""What the framer costs: linear in what it is fed, whatever the segments, and counted honestly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Protocol

import pytest

from ipc_twisted.core.framing import Frame
from tests.test_framing import cut, framer, record


class Counts(Protocol):
    copied: int

    def feed(self, data: bytes) -> Iterable[Frame]: ...


class Naive:
    """What ``Int32StringReceiver`` does to its buffer; it says that it copies nothing."""

    copied = 0

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        self._buffer += data
        return []


COSTS = [  # segment, payload, records
    (1, 300, 100),
    (1, 100_000, 1),
    (46, 0, 2_000),
    (47, 0, 2_000),
    (48, 0, 2_000),
    (60, 13, 2_000),
    (255, 1_000, 300),
    (511, 4 << 20, 1),
    (512, 4 << 20, 1),
    (1_460, 4 << 20, 2),
    (4_096, 32 << 20, 1),
    (64 << 10, 32 << 20, 2),
    (256 << 10, 32 << 20, 1),
    (256 << 10, 100, 5_000),
]


def copied(one: Counts, payload: int, records: int, segment: int) -> tuple[int, int]:
    """Bytes copied and bytes fed."""
    stream = record(0, b"\x90" * 30, bytes(payload)) * records
    view = memoryview(stream)
    for at in range(0, len(stream), segment):
        list(one.feed(bytes(view[at : at + segment])))
    return one.copied, len(stream)


@pytest.mark.attack(2)
@pytest.mark.parametrize(("segment", "payload", "records"), COSTS)
def test_no_byte_is_copied_more_than_three_times(segment: int, payload: int, records: int) -> None:
    one = framer(32 << 20)
    made, received = copied(one, payload, records, segment)
    assert one.receiving == 0
    assert one.fault is None
    assert made <= 3 * received + 64


@pytest.mark.attack(2)
@pytest.mark.parametrize("segment", [1, 100, 4_096])
def test_the_cost_grows_with_the_record_and_not_with_its_square(segment: int) -> None:
    size = 600 * segment
    once, _ = copied(framer(32 << 20), size, 1, segment)
    eight_times, _ = copied(framer(32 << 20), 8 * size, 1, segment)
    assert eight_times <= 8.5 * once


def allocated(one: Counts, segments: list[bytes]) -> int:
    """Bytes that were allocated, at the least; without 2 KiB for each segment and record, which are no copies."""
    total = 0
    tracemalloc.start()
    try:
        for segment in segments:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            frames = list(one.feed(segment))
            _, peak = tracemalloc.get_traced_memory()
            total += max(0, peak - before - 2_048 * (1 + len(frames)))
    finally:
        tracemalloc.stop()
    return total


STREAMS = {"large": [2 << 20, 0, 3_000, 1 << 20], "whole": [3_000] * 300, "in two": [6_000] * 100}


def in_segments(sizes: list[int], segment: int) -> list[bytes]:
    return cut(b"".join(record(seq, b"h" * 100, bytes(size)) for seq, size in enumerate(sizes)), segment)


@pytest.mark.parametrize("sizes", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("segment", [256, 500, 4_096, 5_000, 65_536])
def test_copied_counts_what_the_allocator_sees(segment: int, sizes: list[int]) -> None:
    """Or the promise above would be about a number. The quarter is for the list of the parts."""
    one = framer(32 << 20)
    assert allocated(one, in_segments(sizes, segment)) <= 1.25 * one.copied


@pytest.mark.parametrize("sizes", STREAMS.values(), ids=STREAMS)
def test_one_that_copies_in_secret_is_found_out(sizes: list[int]) -> None:
    one = Naive()
    assert allocated(one, in_segments(sizes, 65_536)) > 3 * sum(sizes)


@pytest.mark.attack(2)
@pytest.mark.parametrize("segment", [1, 2, 40])
def test_tiny_segments_cost_little_more_memory_than_their_bytes(segment: int) -> None:
    """An object for each of them would be twenty times as much: a peer's way around its byte credit."""
    one = framer(32 << 20)
    head = record(0, b"h", bytes(1 << 20))[:48]
    list(one.feed(head))
    tracemalloc.start()
    try:
        for at in range(0, 60_000, segment):
            assert one.take_part(at.to_bytes(segment + 4, "big")[4:])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.3 * 60_000 + 32 * 1_024


def test_of_a_segment_of_many_records_one_takes_memory_at_a_time() -> None:
    one, segment = framer(), record(0, b"h" * 60, bytes(200)) * 1_000
    list(one.feed(segment))  # what is made once, is
    tracemalloc.start()
    try:
        for _frame in one.feed(segment):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_096


def test_a_finished_record_leaves_nothing_behind() -> None:
    """An idle connection holds no more memory after a large record than before."""
    one = framer(32 << 20)
    segments = cut(record(0, b"h", bytes(8 << 20)), 64 << 10)
    for segment in segments:
        list(one.feed(segment))  # what is made once, is
    del segment
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        while segments:
            list(one.feed(segments.pop(0)))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4_096
