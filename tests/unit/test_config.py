"""Configuration: what is described is what is built, and every mistake is named with its place."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
import yaml

from girsanov.config import Part, dump_config, load_config, make, merge, parse_overrides, read_yaml
from girsanov.config.parts import describe, family_of, members, parameters, shape
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS, Method
from girsanov.methods.adjoint.costs import PowerCost
from girsanov.methods.adjoint.gauss_newton import GaussNewton
from girsanov.methods.adjoint.ode import ODEAdjointMatching
from girsanov.methods.policy_gradient.steps import Subset
from girsanov.problems import LinearReward
from girsanov.processes import RectifiedFlow, VPTable
from girsanov.recipes import RECIPES, get_recipe
from girsanov.recipes.mixture import MixtureConfig
from girsanov.rewards import Reward
from girsanov.samplers import SAMPLERS
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.samplers.heun import Heun
from girsanov.settings import settings


def load(*texts: str) -> MixtureConfig:
    return load_config(MixtureConfig, parse_overrides(texts))


def own_methods() -> list[tuple[str, str]]:
    """Every recipe with every method of the family that its configuration takes; presets have tests of their own."""
    recipes = [r for r, place in RECIPES.items() if "presets:" not in place]
    families = {r: shape(parameters(get_recipe(r).config)["method"][0])[1] for r in recipes}
    return [(r, m) for r, family in families.items() for m in members(family)]


@pytest.mark.parametrize(("recipe", "method"), own_methods())
def test_a_configuration_reloads_from_its_own_dump(recipe: str, method: str) -> None:
    found = get_recipe(recipe)
    config = load_config(found.config, {"method": {"kind": method}}, found.defaults(method))
    again = load_config(found.config, yaml.safe_load(dump_config(config)))
    assert again == config
    assert dump_config(again) == dump_config(config)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_from_its_name_and_describes_itself(method: str) -> None:
    config = load(f"method={method}")
    built = make(Method, config.method, LinearReward([1.0, 0.0]), RectifiedFlow())
    assert type(built) is METHODS[method]
    data = describe(built)
    data.pop("reward", None)  # given by the recipe, not by the description
    assert data == config.method.data


def test_parts_are_chosen_by_name_at_any_depth() -> None:
    config = load("method=ode-am", "method.sampler=heun", "method.cost={kind: power, q: 1.5}", "method.grid.n=7")
    built = make(Method, config.method, LinearReward([1.0, 0.0]))
    assert built == ODEAdjointMatching(
        reward=built.reward, sampler=Heun(), cost=PowerCost(lam=1.0, q=1.5), grid=Grid.uniform(7)
    )


def test_a_sub_setting_keeps_the_kind_that_is_there() -> None:
    config = load("method=am", "method.sampler.eta=0.7", "method.any_noise=true")
    assert make(Method, config.method, LinearReward([1.0, 0.0])).sampler == GDDIM(0.7)


def test_another_kind_drops_the_options_of_the_old_one() -> None:
    below = {"method": {"kind": "ode-am", "cost": {"kind": "power", "q": 1.5}}}
    merged = merge(below, {"method": {"cost": {"kind": "quadratic"}}})
    assert merged == {"method": {"kind": "ode-am", "cost": {"kind": "quadratic"}}}
    assert merge({"method": "am"}, {"method": {"beta": 2}}) == {"method": {"kind": "am", "beta": 2}}
    assert merge(merged, {"method": "am"}) == {"method": "am"}
    assert merge(merged, {"method": "ode-am"}) == merged


def test_a_nested_setting_keeps_the_others_of_the_default() -> None:
    config = load("train.iterations=3")
    assert config.train == dataclasses.replace(MixtureConfig().train, iterations=3)


def test_text_from_the_command_line_becomes_numbers() -> None:
    config = load("train.lr=1e-3", "train.ema=null", "slope=[2, 0.5]", "lora=4")
    assert config.train.lr == 1e-3 and config.train.ema is None and config.slope == (2.0, 0.5) and config.lora == 4


def test_a_grid_that_is_no_named_one_is_described_by_its_times() -> None:
    grid = Grid([1.0, 0.4, 0.1])
    data = describe(grid)
    assert data == {"kind": "times", "ts": [1.0, 0.4, 0.1]}
    assert make(Grid, Part("times", {"ts": data["ts"]})) == grid


def test_grids_that_need_the_process_take_it_from_the_recipe() -> None:
    table = VPTable.stable_diffusion(50)
    assert make(Grid, Part("trailing", {"n": 5}), table) == Grid.trailing(5, table)
    with pytest.raises(GirsanovError, match="'trailing' needs process: VPTable, which this recipe does not have"):
        make(Grid, Part("trailing", {"n": 5}), RectifiedFlow())


def test_the_dict_of_a_family_is_found_by_its_annotation() -> None:
    assert members(Sampler) == SAMPLERS and members(Method) == METHODS


ONE = {
    "train.lrr=1": "train.lrr is no setting: did you mean lr?",
    "trian.lr=1": "trian is no setting: did you mean train?",
    "train.lr=-1": "train.lr must be greater than 0, not -1",
    "train.lr=quick": "train.lr must be a valid number, not 'quick'",
    "train=5": "train must hold settings, not 5",
    "method=ode-amm": "method 'ode-amm' is no method: did you mean ode-am?",
    "method=5": "method must be a name or {kind: name, ...}, not 5",
    "method.sampler=hein": "method.sampler 'hein' is no sampler: did you mean heun?",
    "method.sampler.etta=1": "method.sampler.etta is no setting: did you mean eta?",
    "method.grid={kind: shifted}": "method.grid.n is missing",
    "method.grid.n=0": "method.grid is refused: a grid has at least one step, not 0",
    "method.cost={kind: power, q: 1}": (
        "method.cost is refused: a power cost needs q > 1, not 1.0: at q = 1 the optimal control is not unique"
    ),
    "slope=[1, 2, 3]": "slope must have at most 2 items, not [1, 2, 3]",
    "slope=[1, x]": "slope.1 must be a valid number, not 'x'",
    "stop_on=[hacking]": (
        "stop_on.0 must be 'reward-hacking', 'not-finite', 'kl-range', 'ratio-not-one', 'zero-variance', 'all-dropped' "
        "or 'old-is-current', not 'hacking'"
    ),
}


@pytest.mark.parametrize(("text", "sentence"), ONE.items(), ids=ONE)
def test_one_mistake_is_one_sentence(text: str, sentence: str) -> None:
    kind = "ode-am" if "cost" in text else "am"
    with pytest.raises(GirsanovError) as error:
        load_config(MixtureConfig, {"method": {"kind": kind}}, parse_overrides([text]))
    assert str(error.value) == sentence


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(GirsanovError) as error:
        load("train.lr=-1", "train.epoch=2", "method=am", "method.sampler.eta=x", "bach=3", "width=0")
    assert str(error.value).splitlines() == [
        "the configuration has 5 mistakes:",
        "  bach is no setting: did you mean batch?",
        "  method.sampler.eta must be a valid number, not 'x'",
        "  train.epoch is no setting: did you mean epochs?",
        "  train.lr must be greater than 0, not -1",
        "  width must be greater than or equal to 1, not 0",
    ]


@pytest.mark.parametrize("text", ["train.lr", "=3", "train..lr=3", "a b"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(GirsanovError) as error:
        parse_overrides([text])
    assert str(error.value) == f"{text!r} is no setting: write key=value or key.sub=value, without spaces"


def test_files_that_hold_no_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    cases = {
        "a: [1,\nb: 2": f"{path} is not valid YAML (line 2): write `key: value` lines",
        "- 1\n- 2": f"{path} holds no settings: write `key: value` lines",
    }
    for text, sentence in cases.items():
        path.write_text(text)
        with pytest.raises(GirsanovError) as error:
            read_yaml(path)
        assert str(error.value) == sentence
    with pytest.raises(GirsanovError) as error:
        read_yaml(tmp_path / "none.yaml")
    assert str(error.value) == f"there is no file {tmp_path / 'none.yaml'}: give the path of a YAML file of settings"
    path.write_text("")
    assert read_yaml(path) == {}


@settings
class Rewarded:
    """A configuration with a reward."""

    reward: Part[Reward] = Part("bold")


def test_the_users_own_reward_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def corner(images, prompts):\n    return images.flatten(1)[:, 0]\n")
    config = load_config(Rewarded, {"reward": f"{file}:corner"})
    reward = make(Reward, config.reward)
    x = torch.arange(6.0).view(3, 2)

    class Asked:
        meta = (0, 1, 2)

    assert reward.name == "corner" and torch.equal(reward(x, Asked()), x[:, 0])
    with pytest.raises(GirsanovError) as error:
        load_config(Rewarded, {"reward": f"{file}:edge"})
    assert str(error.value) == f"reward {file} has no 'edge': it has corner"
    with pytest.raises(GirsanovError) as error:
        load_config(Rewarded, {"reward": "boldd"})
    assert str(error.value) == "reward 'boldd' is no reward: did you mean bold?"


def parts_of(family: type) -> set[type]:
    """The concrete classes of the package that derive from a family, but for what the bench and reward models have
    for themselves (whether those modules are loaded depends on the tests before this one)."""
    ours = [s for s in family.__subclasses__() if s.__module__.startswith("girsanov.")]
    below = {s for s in ours if not s.__module__.startswith(("girsanov.reward_models.", "girsanov.bench."))}
    return {c for c in below if not inspect.isabstract(c)}.union(*(parts_of(c) for c in below))


def test_every_part_of_a_method_has_a_name() -> None:
    """What a method is composed of can be chosen in a configuration: each family's dict lists all its members."""
    fields = [annotation for cls in METHODS.values() for annotation, _ in parameters(cls).values()]
    families = {found for how, found in map(shape, fields) if how == "family" and found not in (Reward, Grid)}
    assert len(families) > 12
    for family in {family_of(f) for f in families}:
        made = {m if inspect.isclass(m) else type(m()) for m in members(family).values()}  # a factory's point counts
        assert parts_of(family) - made == set(), f"name them in the dict of {family.__name__}"


def test_second_order_targets_and_published_steps_are_chosen_by_name() -> None:
    ode = make(
        Method, load("method=ode-am", "method.target={kind: gauss-newton, steps: 2}").method, LinearReward([1.0])
    )
    assert ode.target == GaussNewton(2)
    am = make(Method, load("method=am", "method.steps.kind=subset", "method.steps.late=5").method, LinearReward([1.0]))
    assert am.steps == Subset(10, 5)
