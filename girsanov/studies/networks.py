r"""The deployment theorem with trained networks and few steps, measured without sampling error.

Data: two modes on the line, ``0.7 N(-1.5, 0.25) + 0.3 N(1.5, 0.25)``; reward x; beta = 1; rectified flow, 20 gDDIM
steps. The policy is the exact velocity plus a small network, trained with noise eta. Its ``E r`` under each sampler is
taken by quadrature (``theory.Line``), and so is that of the grid's exact optimum (``theory.line_optimum``): what
separates the two is training, what separates the optimum from the tilted law is the grid.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from girsanov.deployment import Deployed, deploy_at, deployment_factor
from girsanov.grids import Grid
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.advantages.base import LeaveOneOut
from girsanov.methods.base import Method
from girsanov.methods.policy_gradient import ClippedPG, PathKL, PerStepKL
from girsanov.models import Model, ModelLike
from girsanov.nets import MLPConfig
from girsanov.policy import Policy
from girsanov.problems.laws import Mixture
from girsanov.problems.rewards import LinearReward, expected_reward, tilt
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts
from girsanov.report.svg import Line as Curve
from girsanov.samplers.gddim import GDDIM
from girsanov.studies.page import TONES, Plot, Section, Table
from girsanov.theory import Line, line_optimum
from girsanov.train import TrainConfig, fit

LAW = Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]])
REWARD, BETA, PROCESS, GRID, REACH = LinearReward([1.0]), 1.0, RectifiedFlow(), Grid.uniform(20), 7.0
RUNS = (("am", 0.5), ("am", 0.7), ("am", 1.0), ("am", 1.5), ("am", 2.0), ("path", 0.7), ("path", 2.0), ("step", 2.0))
LABELS = {"am": "adjoint matching", "path": "policy gradient, path KL", "step": "policy gradient, per-step KL"}


class Corrected(nn.Module):
    """The exact velocity plus a trained network, in the dtype of the state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.exact = LAW.net(PROCESS, "velocity")
        self.trained = MLPConfig(shape=(1,), width=64, blocks=2).build(seed)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """x [B, 1] at times t [B]."""
        return self.exact(x, t, None) + self.trained(x.float(), t.float(), None).to(x.dtype)


def method_of(name: str, eta: float) -> Method:
    """The method of a run."""
    if name == "am":
        return AdjointMatching(reward=REWARD, beta=BETA, sampler=GDDIM(eta), grid=GRID, any_noise=True)
    penalty = {"path": PathKL, "step": PerStepKL}[name](BETA)
    return ClippedPG(reward=REWARD, sampler=GDDIM(eta), grid=GRID, advantage=LeaveOneOut(), kl=penalty)


def train_policy(name: str, eta: float, fast: bool) -> Policy:
    """A trained policy; adjoint matching needs fewer samples than a policy gradient."""
    policy = Policy(Model(Corrected(0), PROCESS, "velocity", (1,)))
    batch, iterations = (256, 150) if name == "am" else (512, 200)
    config = TrainConfig(iterations=20 if fast else iterations, lr=5e-3, schedule="cosine")
    fit(policy, method_of(name, eta), ClassPrompts(num_classes=1, groups_per_batch=1, group_size=batch), config)
    return policy


def mean_reward(model: ModelLike, eta: float) -> float:
    """``E r`` under gDDIM(eta)."""
    return Line(model, GDDIM(eta), GRID, REACH, points=401).expect(REWARD)


def measure(name: str, eta: float, fast: bool) -> Mapping[str, float | str]:
    """Rewards of the trained network and of the grid's optimum: as trained, ODE raw, corrected, one pass."""
    policy, base, c = train_policy(name, eta, fast), LAW.model(PROCESS), deployment_factor(eta, 0.0)
    optimum = line_optimum(Line(base, GDDIM(eta), GRID, REACH, points=401), REWARD, BETA).model
    with torch.no_grad():
        return {
            "method": name,
            "eta": eta,
            "c": c,
            "trained": mean_reward(policy.view(), eta),
            "raw": mean_reward(policy.view(), 0.0),
            "corrected": mean_reward(deploy_at(policy, eta, 0.0), 0.0),
            "one_pass": mean_reward(deploy_at(policy, eta, 0.0, exact=False), 0.0),
            "optimum_trained": mean_reward(optimum, eta),
            "optimum_raw": mean_reward(optimum, 0.0),
            "optimum_corrected": mean_reward(Deployed(optimum, base, c), 0.0),
        }


def network_section(fast: bool) -> Section:
    """Trains every run and sets its rewards beside the exact ones."""
    target, untuned = float(expected_reward(tilt(LAW, REWARD, BETA), REWARD)), float(expected_reward(LAW, REWARD))
    rows = [measure(name, eta, fast) for name, eta in (RUNS[1:5:3] if fast else RUNS)]
    keys = ("trained", "optimum_trained", "raw", "optimum_raw", "corrected", "optimum_corrected", "one_pass")
    table = Table(
        ("method", "eta", "trained", "(optimum)", "ODE raw", "(optimum)", "ODE corrected", "(optimum)", "one pass"),
        [[LABELS[str(r["method"])], f"{r['eta']:g}", *(float(r[k]) for k in keys)] for r in rows],
        f"E r; 20 steps, no sampling error. Untuned {untuned:.4f}, tilted law {target:.4f}. (optimum): the exact "
        "path-KL optimum on the same grid. One pass: the weights' change scaled by c instead of the prediction's.",
    )
    am = [r for r in rows if r["method"] == "am"]
    etas = [float(r["eta"]) for r in am]
    shown = (("trained", "trained SDE"), ("raw", "ODE raw"), ("corrected", "ODE corrected"), ("one_pass", "one pass"))
    lines = [
        Curve(etas, [float(r[key]) for r in am], name=label, style=TONES[i], dots=True)
        for i, (key, label) in enumerate(shown)
    ]
    lines.append(Curve(etas, [target] * len(etas), name="tilted law", style="line-grey"))
    text = (
        "Small networks trained with adjoint matching and with policy gradients at each eta, beside the exact optimum "
        f"of their grid. Adjoint matching is within {apart(am, 'raw'):.2f} of it under the raw ODE, "
        f"{apart(am, 'corrected'):.2f} under the corrected one. One pass with scaled weights differs from two "
        f"by up to {one_pass(rows):.2f}.",
    )
    plot = Plot("networks", "Networks on two modes, reward x", "eta of training", lines)
    return Section("networks", "Trained networks", text, [table], [plot], {"rows": rows, "target": target})


def apart(rows: list[Mapping[str, float | str]], key: str) -> float:
    """Largest distance of a network's reward from the optimum's."""
    return max(abs(float(r[key]) - float(r[f"optimum_{key}"])) for r in rows)


def one_pass(rows: list[Mapping[str, float | str]]) -> float:
    """Largest distance of scaled weights from scaled predictions."""
    return max(abs(float(r["one_pass"]) - float(r["corrected"])) for r in rows)
