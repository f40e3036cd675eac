"""The framer: the same records whatever the segments, judged before they cost anything. Its cost is in
``test_framing_cost.py``."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_twisted.core.framing import Frame, Framer
from ipc_twisted.core.signing import MacKey
from ipc_twisted.errors import Category
from tests import wire_peer as wire

KEY = bytes(range(32))
MAC_KEY = MacKey(KEY)
MAX_PAYLOAD = 64 * 1024
MIN = 43
MAX = MIN + 65_535 + MAX_PAYLOAD

Plain = tuple[int, bytes, int, int, bytes, bytes, bytes]
"""A frame with the tag of what its signature covers in place of that."""


def record(seq: int, header: bytes = b"", payload: bytes = b"", type_: int = 1) -> bytes:
    return wire.frame(KEY, wire.record_body(type_, seq, header, payload))


def framer(max_payload: int = MAX_PAYLOAD) -> Framer:
    return Framer(max_payload, MAC_KEY.new)


def plain(frame: Frame) -> Plain:
    size, sig, type_, seq, signed, header, payload = frame
    tag = MAC_KEY.sign(signed) if isinstance(signed, memoryview) else signed.finalize()
    return size, sig, type_, seq, tag, bytes(header), payload


def fed(segments: Iterable[bytes], max_payload: int = MAX_PAYLOAD) -> tuple[list[Plain], Category | None]:
    """What comes out, each frame used before the next segment, as the connection does."""
    one = framer(max_payload)
    found: list[Plain] = []
    for segment in segments:
        if not one.take_part(segment):
            found += map(plain, one.feed(segment))
    return found, one.fault


def expected(stream: bytes) -> list[Plain]:
    """The same by the second implementation."""
    contents, rest = wire.split_frames(stream)
    assert not rest
    found = []
    for content in contents:
        body = wire.parse_body(content[32:])
        tag = wire.sign(KEY, content[32:])
        found.append((len(content) + 4, content[:32], body.type, body.seq, tag, body.header, body.payload))
    return found


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


MIXED = b"".join(
    (
        record(0),
        record(1, b"h", b""),
        record(2, b"", b"p"),
        record(3, b"\x97" * 300, b"x" * 700),
        record(4, b"r", type_=2),
        record(5, b"y" * 513, b"z" * 511),
        record(2**64 - 1, type_=255),
    )
)


# One stream, one result


def test_a_whole_stream_in_one_segment_is_what_a_second_implementation_reads() -> None:
    assert fed([MIXED]) == (expected(MIXED), None)


@pytest.mark.attack(1)
def test_every_two_way_split_gives_the_same_records() -> None:
    """A split between any two bytes: TCP promises nothing about them."""
    wanted = expected(MIXED)
    for at in range(len(MIXED) + 1):
        assert fed([MIXED[:at], MIXED[at:]]) == (wanted, None), at


@pytest.mark.parametrize("size", [1, 2, 3, 43, 46, 47, 48, 255, 256, 257, 511, 512, 513])
def test_segments_of_any_size_give_the_same_records(size: int) -> None:
    assert fed(cut(MIXED, size)) == (expected(MIXED), None)


@given(
    bodies=st.lists(st.tuples(st.binary(max_size=80), st.binary(max_size=1200), st.integers(0, 255)), max_size=6),
    cuts=st.lists(st.integers(0, 8_000), max_size=12),
)
@settings(deadline=None, max_examples=150)
def test_any_records_in_any_segments_give_the_same(bodies: list[tuple[bytes, bytes, int]], cuts: list[int]) -> None:
    stream = b"".join(record(seq, header, payload, type_) for seq, (header, payload, type_) in enumerate(bodies))
    edges = [0, *sorted(min(at, len(stream)) for at in cuts), len(stream)]
    segments = [stream[a:b] for a, b in pairwise(edges)]
    assert fed(segments) == (expected(stream), None)


@pytest.mark.parametrize("sizes", [(1, 600), (600, 1), (300, 300, 511, 512), (257,) * 9])
def test_the_mac_of_a_record_in_parts_is_that_of_one_piece(sizes: tuple[int, ...]) -> None:
    """It is computed as the parts come, small ones gathered first; no order of sizes may lose or swap any."""
    stream = record(0, b"head", bytes(range(256)) * 20)
    segments, at, turn = [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        segments.append(stream[at : at + size])
        at, turn = at + size, turn + 1
    ((_, sig, _, _, tag, _, _),), fault = fed(segments)
    assert (tag, fault) == (sig, None)


def test_which_record_is_arriving_has_a_number_of_its_own() -> None:
    """The deadline of a frame hangs on it: two records in turn must not share one."""
    one = framer()
    assert one.receiving == 0
    list(one.feed(MIXED[:20]))
    first = one.receiving
    list(one.feed(MIXED[20:30]))
    assert one.receiving == first != 0
    list(one.feed(MIXED[30:47] + MIXED[47:60]))
    assert one.receiving not in (0, first)
    list(one.feed(MIXED[60:]))
    assert one.receiving == 0


def test_one_that_is_dropped_within_a_segment_keeps_nothing_of_its_rest() -> None:
    one = framer()
    frames = one.feed(record(0) + record(1) + record(2)[:20])
    next(frames)
    one.drop()
    assert len(list(frames)) == 1, "what lies whole in it is the chain's to drop"
    assert one.receiving == 0


def test_one_that_was_dropped_within_a_payload_keeps_nothing_of_it_nor_of_what_comes() -> None:
    one = framer()
    segments = cut(record(0, b"h", bytes(60_000)), 8_000)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        list(one.feed(segments[0]))
        assert one.take_part(segments[1])
        one.drop()
        for segment in segments[2:]:
            assert not one.take_part(segment)
            assert list(one.feed(segment)) == []
        del segment
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_048


@pytest.mark.parametrize("size", [1, 511, 512, 4_096])
def test_what_lies_within_a_payload_may_be_taken_without_a_look_at_it(size: int) -> None:
    """And nothing else: not the head, and not the end, behind which another record may begin."""
    stream = record(0, b"h", b"x" * 10_000) + record(1)
    one = framer()
    taken = []
    for at in range(0, len(stream), size):
        segment = stream[at : at + size]
        if one.take_part(segment):
            taken.append((at, at + len(segment)))
        else:
            list(one.feed(segment))
    payload_at, end = 48, 48 + 10_000
    assert all(payload_at <= first and last < end for first, last in taken)
    assert sum(last - first for first, last in taken) >= 10_000 - 2 * size
    assert one.receiving == 0


# Bounds


LENGTHS = {
    0: Category.MALFORMED,
    1: Category.MALFORMED,
    MIN - 1: Category.MALFORMED,
    MIN: None,
    MAX: None,
    MAX + 1: Category.PAYLOAD_TOO_LARGE,
    0x7FFFFFFF: Category.PAYLOAD_TOO_LARGE,
    0x80000000: Category.PAYLOAD_TOO_LARGE,
    0xFFFFFFFF: Category.PAYLOAD_TOO_LARGE,
}


@pytest.mark.attack(3)
@pytest.mark.parametrize(("length", "fault"), LENGTHS.items())
def test_a_length_is_judged_after_four_bytes_and_costs_no_memory(length: int, fault: Category | None) -> None:
    one = framer()
    prefix = length.to_bytes(4, "big")
    assert list(one.feed(prefix[:3])) == []
    assert one.fault is None
    last = prefix[3:]
    tracemalloc.start()
    try:
        frames = list(one.feed(last))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (frames, one.fault) == ([], fault)
    assert peak < 4_096


@pytest.mark.parametrize(("length", "fault"), LENGTHS.items())
def test_a_length_within_a_larger_segment_is_judged_alike(length: int, fault: Category | None) -> None:
    """The path of whole records within a segment has the checks of its own."""
    one = framer()
    header_len = 65_535 if length == MAX else 0
    head = length.to_bytes(4, "big") + bytes(41) + header_len.to_bytes(2, "big")
    list(one.feed(record(0) + head + b"x"))
    assert one.fault is fault


PAYLOADS = [  # header_len, payload_len, fault
    (0, MAX_PAYLOAD, None),
    (0, MAX_PAYLOAD + 1, Category.PAYLOAD_TOO_LARGE),
    (65_535, MAX_PAYLOAD, None),
    (65_534, MAX_PAYLOAD + 1, Category.PAYLOAD_TOO_LARGE),
    (1, -1, Category.MALFORMED),
    (65_535, -65_535, Category.MALFORMED),
]


@pytest.mark.attack(3, 31)
@pytest.mark.parametrize(("header_len", "payload_len", "fault"), PAYLOADS)
def test_a_payload_is_judged_after_47_bytes(header_len: int, payload_len: int, fault: Category | None) -> None:
    """Before any of it is kept: ``MAX_LENGTH`` alone would let a payload be 64 KiB too large."""
    length = MIN + header_len + payload_len
    head = length.to_bytes(4, "big") + bytes(41) + header_len.to_bytes(2, "big")
    in_parts, at_once = framer(), framer()
    list(in_parts.feed(head[:46]))
    assert in_parts.fault is None
    list(in_parts.feed(head[46:]))
    list(at_once.feed(head))
    assert (in_parts.fault, at_once.fault) == (fault, fault)


def test_the_largest_frame_passes() -> None:
    stream = record(0, b"h" * 65_535, b"p" * MAX_PAYLOAD)
    assert len(stream) == MAX + 4
    assert fed([stream]) == fed(cut(stream, 10_000)) == (expected(stream), None)


@pytest.mark.attack(4)
@pytest.mark.parametrize("bad", [(0).to_bytes(4, "big"), (MAX + 1).to_bytes(4, "big") + bytes(60)])
def test_nothing_behind_the_first_bad_frame_is_returned(bad: bytes) -> None:
    """Two bad ones and then good ones, at every split, and in segments that come later."""
    good = record(0, b"h", b"payload")
    stream = good + bad + bad + good * 3
    wanted = expected(good)
    for at in range(len(stream) + 1):
        found, fault = fed([stream[:at], stream[at:], good, good])
        assert (found, fault is not None) == (wanted, True), at
