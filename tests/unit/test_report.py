"""The report's parts: axes, rounding, intervals, and the verdict."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girsanov.folder import RunFolder
from girsanov.report import write_report
from girsanov.report.data import RunData, Shown
from girsanov.report.run import diagnostics, phases
from girsanov.report.svg import Line, chart, legend, number, rounded, ticks
from girsanov.report.verdict import verdict

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers)
def test_ticks_cover_the_range_evenly_with_round_numbers(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    steps = [y - x for x, y in zip(found, found[1:], strict=False)]
    assert 2 <= len(found) <= 10
    tolerance = 1e-9 * max(abs(low), abs(high), 1e-9)
    assert found[0] <= low + tolerance and found[-1] >= high - tolerance
    assert all(s > 0 and math.isclose(s, steps[0], rel_tol=1e-6) for s in steps)
    digits = f"{steps[0]:.3e}".split("e")[0]
    assert high - low <= tolerance or digits in ("1.000", "2.000", "2.500", "5.000")


def test_values_are_rounded_to_their_intervals() -> None:
    assert rounded(1.7293, 0.0462) == ("1.729", "0.046")
    assert rounded(123.456, 7.8) == ("123.5", "7.8")
    assert rounded(123.456, 78.0) == ("123", "78")
    assert rounded(0.98234, 0.0123, percent=True) == ("98.2 %", "1.2 %")
    assert rounded(0.5, 0.0) == ("0.5", "")
    assert number(1e-6) == "1e-06" and number(0.0) == "0" and number(0.987, percent=True) == "98.7 %"


def test_a_chart_puts_points_where_they_belong() -> None:
    svg = chart([Line([0, 10], [0.0, 4.0], [0.0, 1.0], "run", dots=True)], "Reward")
    circles = re.findall(r'<circle class="line-a" cx="([0-9.]+)" cy="([0-9.]+)"', svg)
    assert circles == [("52.0", "180.0"), ("366.0", "68.0")]  # y from 0 at 180 to 6 at 12
    assert "run 4 ± 1 at 10" in svg and svg.count('class="rule"') == 4
    band = re.search(r'<polygon class="band line-a" points="([^"]+)"', svg)
    assert band is not None and band[1] == "52.0,180.0 366.0,40.0 366.0,96.0 52.0,180.0"


def test_charts_survive_what_runs_record() -> None:
    assert chart([Line([], [])], "x") == '<p class="empty">nothing was recorded</p>'
    assert "<polyline" in chart([Line([1, 2], [1e-17, -1e-17])], "x")
    assert "<circle" in chart([Line([3], [2.0])], "x")
    broken = chart([Line([1, 2, 3], [1.0, None, float("nan")])], "x")
    assert broken.count(",") and "nan" not in broken
    assert "&lt;b&gt;" in chart([Line([1], [1.0], name="<b>")], "<b>") and "<b>" not in legend(
        [Line([1], [1], name="<b>")] * 2
    )
    shares = chart([Line([0, 1], [0.99, 0.98], [0.05, 0.05])], "x", percent=True)
    assert "100 %" in shares and "105 %" not in shares


def record(
    path: Path,
    before: tuple[float, float],
    after: tuple[float, float],
    *,
    better: str = "high",
    alarm: str | None = None,
) -> RunData:
    """A run with two evaluations of (reward, judge), all with standard error 0.01."""
    folder = RunFolder.create(path, "mixture", "girsanov run mixture", "a: 1\n")
    metrics = [
        {"key": "reward", "label": "Reward", "better": "high", "percent": False},
        {"key": "judge", "label": "Legibility", "better": better, "percent": True},
    ]
    about = {"description": "d", "facts": {}, "method": "am", "iterations": 5, "metrics": metrics}
    (path / "about.json").write_text(json.dumps(about))
    for i, (reward, judge) in ((0, before), (5, after)):
        folder.log(i, {"reward": reward, "judge": judge, "reward_se": 0.01, "judge_se": 0.01}, "evaluation")
    folder.log(5, {"loss": 1.0, "time/collect": 3.0, "time/loss": 1.0})
    if alarm:
        folder.log(5, {"alarm": alarm, "message": "m"}, "alarm")
    return RunData.read(folder)


CASES = {
    "worked": (
        (0.3, 0.98),
        (0.5, 0.97),
        {},
        "good",
        "It worked",
        "Reward rose from 0.300 to 0.500, legibility held at 97.0 %",
    ),
    "better": ((0.3, 0.8), (0.5, 0.97), {}, "good", "It worked", "legibility rose from 80.0 % to 97.0 %"),
    "hacked": ((0.3, 0.98), (0.9, 0.5), {}, "bad", "The reward was hacked", "legibility fell from 98.0 % to 50.0 %"),
    "rang": (
        (0.3, 0.98),
        (0.9, 0.98),
        {"alarm": "reward-hacking"},
        "warn",
        "It worked, with a warning",
        "rang on the way",
    ),
    "flat": ((0.3, 0.98), (0.31, 0.5), {}, "flat", "No clear effect", "has not moved beyond its noise"),
    "worse": ((0.5, 0.98), (0.3, 0.98), {}, "bad", "It got worse", "Reward fell from 0.500 to 0.300"),
    "low": (
        (0.3, 0.5),
        (0.5, 0.9),
        {"better": "low"},
        "bad",
        "The reward was hacked",
        "legibility rose from 50.0 % to 90.0 %",
    ),
}


@pytest.mark.parametrize(("before", "after", "options", "colour", "headline", "words"), CASES.values(), ids=CASES)
def test_the_verdict(
    tmp_path: Path, before: tuple, after: tuple, options: dict, colour: str, headline: str, words: str
) -> None:
    found = verdict(record(tmp_path / "run", before, after, **options))
    assert (found.colour, found.headline) == (colour, headline)
    assert words in found.reason


def test_what_a_method_says_of_its_value_has_a_chart_and_nothing_else_has(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "digits", "c", "a: 1\n")
    folder.log(1, {"loss": 1.0, "martingale_z": 0.5})
    folder.log(2, {"loss": 0.5, "martingale_z": 3.0})
    (found,) = diagnostics(RunData.read(folder))
    assert found.title.startswith("Martingale test") and "<polyline" in found.svg


def test_a_run_that_has_only_begun_is_not_judged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "mixture", "c", "a: 1\n")
    assert verdict(RunData.read(folder)).headline == "Nothing to judge yet"
    (folder.path / "about.json").write_text(json.dumps({"description": "", "facts": {}, "method": "am", "metrics": []}))
    assert "Nothing to judge yet" in write_report(folder).read_text()


def test_intervals_are_those_of_the_normal_law() -> None:
    shown = Shown("reward", "Reward", "high", False, 1.0, 1.5, 1.96 * 0.1, 1.96 * 0.2)
    assert shown.noise == pytest.approx(1.96 * math.hypot(0.1, 0.2)) and shown.trend == "better"
    assert (shown.text("before"), shown.interval("before")) == ("1.00", "± 0.20")
    assert (shown.text("after"), shown.interval("after")) == ("1.50", "± 0.39")


def test_phases_add_up(tmp_path: Path) -> None:
    rows = phases(record(tmp_path / "run", (0, 0), (1, 1)))
    assert [(r["name"], r["seconds"], r["share"]) for r in rows] == [("collect", 3.0, 75.0), ("loss", 1.0, 25.0)]


def test_what_a_run_says_cannot_break_the_page(tmp_path: Path) -> None:
    record(tmp_path / "run", (0.3, 0.9), (0.5, 0.9), alarm="<script>alert(1)</script>")
    folder = RunFolder(tmp_path / "run")
    folder.log(5, {"alarm": "x", "message": "<script>alert(2)</script>"}, "alarm")
    assert "<script>" not in write_report(folder).read_text()
