"""The README's Python example runs, and reaches the answer that it claims."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_reaches_the_exact_answer(capsys: pytest.CaptureFixture[str]) -> None:
    # cov e_1 / beta = (1, 0.5). Seed 0, 4,000 samples (standard error 0.02), 30 iterations of training: within 0.15
    # (seeds 0 to 4 are within 0.09).
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    found = [float(v) for v in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    assert len(found) == 2
    assert abs(found[0] - 1.0) < 0.15 and abs(found[1] - 0.5) < 0.15
