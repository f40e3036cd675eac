"""The benchmark says what it measured, and fails where a floor does not hold."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a wheel has no benchmarks: they are tested in the checkout", allow_module_level=True)

from benchmarks.targets import TARGETS, TITLES, Target  # noqa: E402
from benchmarks.work import counting, percentiles, stamped, timing  # noqa: E402

FLOOD = next(target for target in TARGETS if (target.what, target.than) == ("flood/256", "curve"))
PING = next(target for target in TARGETS if (target.what, target.than) == ("ping", "curve"))


def benchmarks(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_more_is_better_for_rates_and_less_for_times() -> None:
    assert FLOOD.holds(0.71, 0.7)
    assert not FLOOD.holds(0.69, 0.7)
    assert PING.holds(1.0, 1.1)
    assert not PING.holds(1.2, 1.1)


def test_every_target_has_a_title_and_its_goal_is_no_easier_than_its_floor() -> None:
    for target in TARGETS:
        assert target.what in TITLES
        assert target.holds(target.goal, target.floor)


def test_a_ratio_is_the_median_of_those_of_the_rounds_and_what_is_below_the_floor_falls_short() -> None:
    pytest.importorskip("grpc")  # the report names the versions of all that is compared
    from benchmarks.report import Report

    report = Report()
    report.values["flood/256"]["ipc_twisted"] = [10.0, 90.0, 30.0]
    report.values["flood/256"]["curve"] = [100.0, 100.0, 50.0]
    assert report.ratio(FLOOD) == 0.6
    assert report.short() == [FLOOD]
    assert "FALLS SHORT by 0.10" in str(report)
    report.own["guard_rejected"] = 0
    assert report.short() == [FLOOD]
    report.own["guard_rejected"] = 1
    assert report.short() == [FLOOD, Target("guard_rejected", "", 0, 0)]


def test_a_receiver_answers_at_the_end_of_each_phase_with_what_it_cost() -> None:
    count = counting(2, 1)
    answers = [count(b"") for _ in range(3)]
    assert answers[0] is None
    for answer in answers[1:]:
        assert answer is not None
        assert json.loads(answer).keys() == {"seconds", "cpu", "peak"}


def test_the_way_of_a_message_is_the_time_since_it_was_stamped() -> None:
    first, last = stamped(8), stamped(256)
    assert (len(first), len(last)) == (8, 256)
    on_message = timing(2)
    assert on_message(first) is None
    answer = on_message(last)
    assert answer is not None
    ways = json.loads(answer)
    assert 0 < ways["p50"] <= ways["p99"] < 10
    assert percentiles([*range(1, 101)]) == {"p50": 51e-9, "p99": 100e-9}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--systems", "curve,tcp"), "no such system: tcp"),
        (("--rounds", "0"), "must be a number above 0, not '0'"),
        (("--scale", "x"), "must be a number above 0, not 'x'"),
    ],
)
def test_wrong_usage_is_told(options: tuple[str, ...], says: str) -> None:
    ended = benchmarks(*options)
    assert ended.returncode == 2
    assert says in ended.stderr


@pytest.mark.slow
def test_a_short_run_over_every_system_measures_all_there_is(tmp_path: Path) -> None:
    for module in ("grpc", "jupyter_client", "tqdm", "zmq"):
        pytest.importorskip(module)
    written, drawn = tmp_path / "values.json", tmp_path / "chart.svg"
    ended = benchmarks("--rounds", "1", "--scale", "0.001", "--json", str(written), "--svg", str(drawn), "--check")
    values = json.loads(written.read_text())
    targets = values["targets"]
    assert [target["value"] for target in targets if target["value"] is None] == []
    short = [
        target for target in targets if not Target(*list(target.values())[:4]).holds(target["value"], target["floor"])
    ]
    assert ended.returncode == (1 if short else 0), ended.stderr
    assert ended.stdout.count("FALLS SHORT") == len(short)
    assert all(rate > 0 for systems in values["values"].values() for rates in systems.values() for rate in rates)
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
