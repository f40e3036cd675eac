"""The short forms of the soak scenarios; the long ones are run by hand: ``python -m tests.soak --help``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from unittest.mock import patch

import pytest

from tests.soak import churn, deliveries, flood, never_reads, restart, rotation, sigterm, slow_handlers
from tests.soak.__main__ import SCENARIOS
from tests.soak.common import Report
from tests.twistd_child import ROOT


def soak(run: Callable[..., None], **small: object) -> None:
    """Run one with small numbers; everything it holds must hold."""
    report = Report(run.__module__)
    run(report, **small)
    assert report.lines
    assert not report.broken, str(report)


@pytest.mark.attack(13)
@pytest.mark.slow
def test_through_cuts_and_restarts_every_message_has_one_outcome_and_none_is_handed_over_twice() -> None:
    soak(deliveries.run, messages=20_000)


@pytest.mark.slow
@pytest.mark.parametrize("blocking", [False, True])
def test_slow_handlers_make_no_process_grow_and_lose_nothing(blocking: bool) -> None:
    soak(slow_handlers.run, seconds=2.0, ttl_seconds=2, max_inflight=100, blocking=blocking)


@pytest.mark.attack(7)
@pytest.mark.slow
def test_peers_that_never_read_or_never_send_receipts_are_ended_and_their_memory_is_free_again() -> None:
    soak(
        never_reads.run,
        peers=3,
        rounds=1,
        write_stall_seconds=0.5,
        receipt_timeout_seconds=2.5,
        drain_seconds=1.0,
    )


@pytest.mark.attack(12)
@pytest.mark.slow
def test_connections_that_come_and_go_leave_nothing_behind_and_an_idle_one_is_small() -> None:
    soak(churn.run, cycles=400, connections=100, rounds=2)


@pytest.mark.attack(10)
@pytest.mark.slow
def test_a_flood_of_silent_connects_keeps_neither_clients_nor_work_out() -> None:
    soak(flood.run, seconds=1.5, clients=3)


@pytest.mark.slow
def test_clients_of_a_receiver_on_another_port_are_back_in_two_seconds_and_not_all_at_once() -> None:
    soak(restart.run, clients=60, processes=2, away_seconds=2.0)


@pytest.mark.attack(39)
@pytest.mark.slow
def test_at_sigterm_every_accepted_message_is_handled_and_every_sender_knows() -> None:
    soak(sigterm.run, messages=200, senders=2)


@pytest.mark.slow
def test_keys_are_rotated_under_traffic_without_a_message_being_rejected_or_unknown() -> None:
    soak(rotation.run, rounds=2, messages=2_000)


def test_the_command_lists_all_scenarios_each_with_what_it_is_for() -> None:
    command = [sys.executable, "-m", "tests.soak", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    for name in SCENARIOS:
        assert f"    {name} " in shown or f"    {name}\n" in shown


def test_the_command_ends_with_one_if_something_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.soak.__main__ import main

    def broken(report: Report) -> None:
        report.holds("two and two are five", False)

    with patch("tests.soak.__main__.scenario", return_value=broken):
        assert main(["sigterm"]) == 1
    assert "DOES NOT HOLD: two and two are five" in capsys.readouterr().out
