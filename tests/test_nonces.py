"""Nonces: never the same twice in any process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ipc_twisted.core.codec import encode_header
from ipc_twisted.nonces import NonceSource


def test_no_two_of_a_source_are_the_same() -> None:
    source = NonceSource()
    assert len({source.next() for _ in range(100_000)}) == 100_000


def test_no_two_sources_share_a_prefix() -> None:
    """96 random bits each."""
    prefixes = {NonceSource().next()[:24] for _ in range(1_000)}
    assert len(prefixes) == 1_000
    assert {len(prefix) for prefix in prefixes} == {24}
    assert len({int(prefix, 16) & 0xFF for prefix in prefixes}) > 200


def test_a_new_prefix_begins_to_count_anew() -> None:
    source = NonceSource()
    first = source.next()
    source.renew()
    second = source.next()
    assert first != second
    assert first[24:] == second[24:] == "000"


@pytest.mark.parametrize("count", [1, 17, 256, 257, 70_000])
def test_a_nonce_fits_its_field(count: int) -> None:
    source = NonceSource()
    nonce = [source.next() for _ in range(count)][-1]
    assert nonce == f"{nonce[:24]}{count - 1:03x}"
    assert encode_header((1, nonce, "k", None, None, None, {}))


FORK = """
import os
from ipc_twisted.nonces import process_nonces
print(process_nonces.next(), flush=True)
child = os.fork()
if child:
    os.waitpid(child, 0)
print(process_nonces.next(), flush=True)
"""


@pytest.mark.attack(38)
def test_a_forked_child_does_not_go_on_with_its_parents_nonces() -> None:
    """It has the same prefix and the same count in its memory, so both would draw the same ones."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=60)
    before, child, after = done.stdout.split()
    assert len(child) >= 25
    assert child[:24] != before[:24]
    assert after[:24] == before[:24]
