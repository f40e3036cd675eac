"""One server for the tests of a module, and after each of them the proof that it did not mind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.victim import Victim, unharmed
from tests.raw_peer import Peer


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as victim:
        yield victim


@pytest.fixture
def honest(victim: Victim) -> Iterator[Peer]:
    """A peer that was there before, and is served as before when the test is over."""
    with unharmed(victim) as honest:
        yield honest
