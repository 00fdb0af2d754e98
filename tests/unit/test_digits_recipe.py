"""The digits recipe's configuration: another network is still one of 8 x 8 digits in ten classes."""

import pytest
import torch

from girsanov.launch import configure, limit_threads
from girsanov.nets import NETS
from girsanov.recipes import get_recipe


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("short", [True, False])
def test_any_network_gets_the_shape_and_classes_of_the_data(kind: str, short: bool) -> None:
    net = configure(get_recipe("digits"), [{"net": kind if short else {"kind": kind}}]).net
    assert net.kind == kind and net.options["shape"] == [1, 8, 8] and net.options["classes"] == 10


def test_the_users_options_stay_on_top() -> None:
    assert configure(get_recipe("digits"), [{"net": {"kind": "mlp", "width": 32}}]).net.options["width"] == 32


def test_threads_are_the_recipes_unless_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before, recipe = torch.get_num_threads(), get_recipe("digits")
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        limit_threads(recipe)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        limit_threads(recipe)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
