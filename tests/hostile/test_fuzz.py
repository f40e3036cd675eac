"""The two campaigns of :mod:`tests.hostile.fuzz`, short: the command runs as many as one likes."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from ipc_twisted.core.replay import MemoryReplayGuard
from tests import wire_peer as wire
from tests.hostile import fuzz
from tests.hostile.fuzz import LIMITS, SENT, Bodies, Broken, Side, Strangers
from tests.vectors import reference

FRAMES = 40_000
BODIES = 6_000


@pytest.mark.attack(42)
def test_whatever_a_stranger_says_it_gets_m2_at_most_and_is_never_let_in_without_the_proof() -> None:
    campaign = Strangers()
    campaign.run(FRAMES)
    assert campaign.frames >= FRAMES
    assert campaign.answer_bytes == campaign.answered * fuzz.M2_BYTES
    sides = {"handshake_malformed", "version_unsupported", "early_data", "authentication_failed"}
    assert {end for end in campaign.ends if end.startswith("server")} == {
        f"server: {end}" for end in sides | {"key_unknown", "connection_lost", "the exact proof"}
    }
    assert {end for end in campaign.ends if end.startswith("client")} == {
        f"client: {end}" for end in sides | {"handshake_refused", "the exact proof"}
    }


@pytest.mark.attack(42)
def test_two_implementations_say_the_same_of_every_signed_body() -> None:
    campaign = Bodies()
    campaign.run(BODIES)
    assert campaign.bodies == BODIES
    ends = {"ended malformed", "ended sequence_gap", "ended replayed", "ended payload_too_large", "accepted"}
    ends |= {f"rejected {category}" for category in ("kind_not_allowed", "replayed", "expired", "not_yet_valid")}
    assert ends - campaign.ends.keys() <= {"ended payload_too_large"}


def test_two_implementations_count_the_same_where_a_receipt_names_a_receipt() -> None:
    side = Side("s2c", MemoryReplayGuard(8, 30, bytes(8)), reference.Guard(8, 30))
    envelope = wire.envelope_body(0, [fuzz.NOW, "n", "job.run", None, None, None, {}], b"")
    side.agreed(wire.frame(side.key, envelope), 400)  # we answer with a RECEIPT, the record behind our envelopes
    receipt = wire.receipt_body(1, SENT, [], *LIMITS[2:])
    assert side.agreed(wire.frame(side.key, receipt), 400).read == SENT


@pytest.mark.attack(42)
@pytest.mark.parametrize("campaign", [Strangers, Bodies])
def test_memory_stays_flat_however_many_there_are(campaign: type[Strangers] | type[Bodies]) -> None:
    """What is held after twice as many is what was held before, but for the odd object of Python's own."""
    one = campaign()
    one.run(1_024)
    tracemalloc.start()
    try:
        one.run(1_024)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        one.run(2_048)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 1024


@pytest.mark.parametrize("campaign", [Strangers, Bodies])
def test_the_same_seed_is_the_same_campaign_and_another_is_another(campaign: type[Strangers] | type[Bodies]) -> None:
    ends = []
    for seed in (1, 1, 2):
        one = campaign(seed)
        one.run(1_000)
        ends.append(one.ends)
    assert ends[0] == ends[1] != ends[2]


def test_a_package_that_says_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the campaign would be too weak to say anything."""
    monkeypatch.setattr(reference, "_text", lambda value, longest: type(value) is str and len(value) <= longest)
    with pytest.raises(Broken, match="the reference Judged"):
        Bodies().run(BODIES)


def test_a_stranger_that_is_handed_over_is_found_out() -> None:
    with pytest.raises(Broken, match="handed over"):
        Strangers()._handed_over(None, 0)  # type: ignore[arg-type]


def test_the_command_prints_its_figures_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--frames", "2000", "--bodies", "500", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "frames: 2,000 in" in printed
    assert "bodies: 500 in" in printed
    assert "no unhandled exception" in printed


def test_the_side_under_test_is_one_that_has_sent_something() -> None:
    guards = MemoryReplayGuard(10, 30, bytes(8)), reference.Guard(10, 30)
    for direction in ("c2s", "s2c"):
        assert Side(direction, *guards).connection.outbox.unsettled == fuzz.SENT
