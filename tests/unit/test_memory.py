"""Peak memory of a training iteration grows with the number of steps by the stored states, and no more.

The measure is the resident size of a process (benchmarks/memory.py), T = 10 against T = 40, in states a step.
"""

import pytest

from benchmarks.memory import measure


@pytest.mark.parametrize(("name", "states"), [("am", 3.0), ("draft-2", 0.0)])
def test_the_peak_grows_by_what_is_stored(name: str, states: float) -> None:
    """AM keeps the state, the reference's velocity and the target of every step; truncated methods keep no step."""
    growth, stored, _ = measure(name)
    assert stored == pytest.approx(states, abs=0.05)
    assert growth < stored + 0.2


def test_checkpointed_backpropagation_keeps_one_state_a_step() -> None:
    growth, _, _ = measure("draft checkpointed")
    assert growth < 1.2
