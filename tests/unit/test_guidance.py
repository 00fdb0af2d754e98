"""Where guidance is used by default: what methods declare, what a recipe makes of it, which passes it reaches."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.base import Turn
from girsanov.methods.forward.base import ForwardMethod
from girsanov.methods.preference.base import ErrorPreference
from girsanov.models import extrapolated
from girsanov.policy import USES, Policy
from girsanov.problems import LinearReward
from girsanov.prompts import ClassPrompts
from girsanov.recipes.pipelines import guidance_told
from girsanov.recipes.text_to_image import TextToImage
from girsanov.types import Prompts
from tests.tiny import tiny_policy

ROLLOUT = {"dgpo", "rwr", *(name for name, cls in METHODS.items() if issubclass(cls, ErrorPreference))}
NOWHERE = {name for name, cls in METHODS.items() if issubclass(cls, ForwardMethod)} - ROLLOUT


def test_what_methods_declare() -> None:
    """DiffusionNFT, AWM, RVM and CRD go without, DGPO and losses of errors have it in the rollout, densities always."""
    assert {"nft", "awm", "rvm", "crd", "fpo", "ram", "orw-cfm-w2"} == NOWHERE
    for name, cls in METHODS.items():
        assert cls.guided == (() if name in NOWHERE else ("rollout",) if name in ROLLOUT else USES), name


@pytest.mark.parametrize("name", METHODS)
def test_recipes_follow_it(name: str) -> None:
    """The default of ``guided`` is the method's."""
    assert tuple(TextToImage().defaults(name)["guided"]) == METHODS[name].guided


def watched_policy(uses: tuple[str, ...], seen: list[tuple[bool, bool]]) -> Policy:
    """A policy whose guidance of 3 books (a gradient is wanted, it is guided) for every pass that combines two."""
    plain = tiny_policy(torch.float32).model

    def guide(p_cond: Tensor, p_null: Tensor, scale: float) -> Tensor:
        seen.append((torch.is_grad_enabled(), scale == 3.0))
        return extrapolated(p_cond, p_null, scale)

    return Policy(dataclasses.replace(plain, guide=guide), dict.fromkeys(uses, 3.0))


def with_null(prompts: Prompts) -> Prompts:
    """Requests whose negative branch is their own condition."""
    cond = dataclasses.replace(prompts.cond, null=prompts.cond)
    return dataclasses.replace(prompts, cond=cond)


@pytest.mark.parametrize("name", ["nft", "awm", "dgpo", "rwr", "ram", "online-dpo", "clipped-pg"])
def test_which_passes_are_guided(name: str) -> None:
    """By the method's own declaration: rollouts of dgpo, rwr, online-dpo; every pass of clipped-pg; none of nft's."""
    seen: list[tuple[bool, bool]] = []
    grid = "rollout_grid" if name == "online-dpo" else "grid"
    method = METHODS[name](**{"reward": LinearReward([1.0, 0.5]), grid: Grid.uniform(3)})
    policy = watched_policy(METHODS[name].guided, seen)
    state = method.setup(policy)
    prompts = with_null(ClassPrompts(num_classes=4, groups_per_batch=4, group_size=2).batch(0, 0, 1))
    batch = method.collect(policy, prompts, state, Turn(0, 0, 1))
    sampled = len(seen)
    chunks = list(method.losses(policy, batch, state))
    functools.reduce(torch.add, [chunk.loss for chunk in chunks]).backward()
    assert (sampled > 0) == bool(METHODS[name].guided)
    assert (len(seen) > sampled) == ("train" in METHODS[name].guided)
    assert all(scaled for _, scaled in seen) and not any(graph for graph, _ in seen[:sampled])


def test_what_reports_say() -> None:
    """The scale where it is used, and that it is not."""
    assert guidance_told(4.5, USES) == "guidance 4.5"
    assert guidance_told(4.5, ("rollout",)) == "guidance 4.5 in rollout alone"
    assert guidance_told(4.5, ()) == guidance_told(1.0, USES) == "without guidance"
