"""The digits recipe's configuration: another network is still one of 8 x 8 digits in ten classes."""

import pytest

from girsanov.launch import configure
from girsanov.nets import NETS
from girsanov.recipes import get_recipe


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("short", [True, False])
def test_any_network_gets_the_shape_and_classes_of_the_data(kind: str, short: bool) -> None:
    net = configure(get_recipe("digits"), [{"net": kind if short else {"kind": kind}}]).net
    assert net.kind == kind and net.options["shape"] == [1, 8, 8] and net.options["classes"] == 10


def test_the_users_options_stay_on_top() -> None:
    assert configure(get_recipe("digits"), [{"net": {"kind": "mlp", "width": 32}}]).net.options["width"] == 32
