"""Studies: the paired gap and its trend, the page, and a policy redeployed at another noise."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from girsanov.annealing import Linear
from girsanov.deployment import Deployed, Redeployed, deployment_factor, sampled_at
from girsanov.errors import GirsanovError
from girsanov.methods import AdjointMatching, ClippedPG, DiffusionDPO, FlowGRPO, MixGRPO, ODEAdjointMatching
from girsanov.methods.policy_gradient import AnnealedEta
from girsanov.models import Model
from girsanov.policy import Policy
from girsanov.problems import LinearReward
from girsanov.processes import RectifiedFlow
from girsanov.recipes.digits import DigitsConfig
from girsanov.recipes.mixture import MixtureConfig
from girsanov.report.svg import Line
from girsanov.samplers import GDDIM
from girsanov.studies.digits import DDPO, GapWatch
from girsanov.studies.page import Plot, Section, Table, write_study
from girsanov.studies.stochasticity import run_study


def test_the_trend_is_the_mean_of_paired_slopes() -> None:
    """Gaps 1 + (2 + d_i) e with sum d_i = 0: slope 2, its interval that of d; 200 samples, seed 0."""
    d = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = d - d.mean()
    watch = GapWatch(None, 1.0, 2, 200)
    for e in (0, 2, 4):
        base = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(e + 1))
        watch.at.append(e)
        watch.sde.append(base)
        watch.ode.append(base + 1 + (2 + d) * e)
    record = watch.record()
    assert abs(record["trend"] - 2) < 1e-12 and abs(record["trend_half"] - 1.972 * float(d.std()) / 200**0.5) < 1e-3
    assert [round(g, 12) for g in record["gap"]] == [1, 5, 9] and record["gap_half"][0] < 1e-12


def test_settings_carry_the_noise() -> None:
    config = DDPO.config(0.7, 5, 3)
    assert config["method"]["sampler"] == {"kind": "gddim", "eta": 0.7} and config["sampler"]["eta"] == 0.0
    assert config["train"] == {"lr": 2e-4, "iterations": 5, "seed": 3}


def test_the_page_holds_what_was_seen(tmp_path: Path) -> None:
    plot = Plot("one", "A <title>", "eta", [Line([0, 1], [1.0, 2.0], name="a & b", dots=True)])
    section = Section("part", "Part", ["text"], [Table(("x", "y"), [("0.5", 1.25)])], [plot], {"value": 1.25})
    page = write_study(tmp_path, "Study", "lead", [section], "girsanov study x").read_text()
    assert "1.2500" in page and "A &lt;title&gt;" in page and "<svg" in page
    record = json.loads((tmp_path / "study.json").read_text())["sections"]["part"]
    assert record["value"] == 1.25 and record["tables"][0]["rows"] == [["0.5", "1.2500"]]
    picture = (tmp_path / "plots" / "one.svg").read_text()
    assert picture.startswith("<svg") and "a &amp; b" in picture and picture.count("<svg") == 1
    with pytest.raises(GirsanovError, match="did you mean exact"):
        run_study(tmp_path, "", ["exakt"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:on a grid of 10 steps")  # Flow-GRPO's: tests/laws/test_deployment.py
def test_redeployed() -> None:
    """The factor of the method's own sampler; a strength multiplies it; methods without an eta say so."""
    policy = Policy(Model(Net(), RectifiedFlow(), "velocity", (1,)))
    with torch.no_grad():
        policy.net.layer.weight.add_(0.5)
    x, t = torch.ones(2, 1), torch.tensor(0.5, dtype=torch.float64)
    reference = policy.view("reference")(x, t)
    change = policy.view()(x, t) - reference
    reward = LinearReward(1.0)
    for method, eta in (
        (AdjointMatching(reward=reward, sampler=GDDIM(2.0), any_noise=True), 2.0),
        (FlowGRPO(reward=reward), 0.7 / 2**0.5),
    ):
        c = deployment_factor(eta, 0.0)
        for exact in (True, False):
            method_at = Redeployed.of(method, 0.0, exact=exact)
            for strength in (0.0, 0.5, 1.0):
                got = method_at.deploy(policy, strength=strength)(x, t)
                torch.testing.assert_close(got, reference + strength * c * change)
    assert isinstance(Redeployed.of(method, 0.0).deploy(policy), Deployed)
    annealed = ClippedPG(reward=reward, sampler=GDDIM(9.0), schedule=AnnealedEta(Linear(2.0, 0.5)))
    assert Redeployed.of(annealed, 0.0).eta_train == 0.5
    with pytest.raises(GirsanovError, match="no single eta"):
        Redeployed.of(MixGRPO(reward=reward), 0.0)
    with pytest.raises(GirsanovError, match="without a sampler"):
        Redeployed.of(DiffusionDPO(), 0.0)
    with pytest.raises(GirsanovError, match="training needs eta > 0"):
        Redeployed.of(ODEAdjointMatching(reward=reward), 1.0).deploy(policy)


def test_the_sampler_of_a_deployment() -> None:
    """A deterministic solver stays for eta = 0; else gDDIM at that eta, and nothing is written to the run."""
    config = MixtureConfig()
    assert sampled_at(config, 0.0) is config
    changed = sampled_at(config, 1.5)
    assert changed.sampler.data == {"kind": "gddim", "eta": 1.5} and config.sampler.kind == "heun"
    assert sampled_at(changed, 1.5) is changed and sampled_at(changed, 0.0).sampler.options["eta"] == 0.0
    assert dataclasses.replace(DigitsConfig()).sampler.kind == "euler"
