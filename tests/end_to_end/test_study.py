"""The sampler study from the command line, small: every part on digits runs and its page and numbers are written."""

import json
from pathlib import Path

import pytest

from girsanov.cli import main


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path) -> None:
    out, numbers = tmp_path / "study", tmp_path / "numbers.json"
    parts = ["digits", "deployment", "deployment-am"]
    assert main(["study", "stochasticity", "--fast", "--out", str(out), "--json", str(numbers), "--parts", *parts]) == 0
    record = json.loads(numbers.read_text())
    assert set(record["sections"]) == {"ddpo", "mix-grpo", "deployment", "deployment-am"}
    assert str(tmp_path) not in numbers.read_text() and "--parts digits" in record["command"]
    for row in record["sections"]["ddpo"]["rows"]:
        assert row["at"] == [0, 1, 2] and row["gap_half"][0] > 0
        assert row["gap"][0] == pytest.approx(row["ode"][0] - row["sde"][0], abs=1e-9)
    for row in record["sections"]["deployment-am"]["rows"]:
        same = row["raw"]["reward"] == row["corrected"]["reward"]
        assert same == (row["c"] == 1.0) and row["raw"]["kl"] > 0
    page = (out / "report.html").read_text()
    assert page.count("<table") == 4 and (out / "plots" / "ddpo-gap.svg").exists()


def test_an_unknown_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "stochasticty"]) == 2
    assert "did you mean stochasticity" in capsys.readouterr().err
