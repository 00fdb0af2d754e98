r"""The sampler study on digits: train with noise eta, evaluate under that SDE and under the ODE, epoch by epoch.

Every evaluation draws the same classes from the same starting noise (and, for the SDE, the same noise on the way), so
gaps are paired: with ``g_i(e)`` the difference of the two rewards of sample i at iteration e, the gap is their mean,
and its trend the mean over i of the slope of ``g_i`` against e; both have Student's intervals over samples.

DDPO tunes a variance-preserving diffusion (v-prediction, GDDIM(eta) on all steps); MixGRPO tunes a rectified flow
(GDDIM(eta) in a sliding window, Euler outside, evaluated under GDDIM(eta) on all steps). The second part deploys
Flow-GRPO's sampler (a = 0.7, and others) with a KL in the objective by the ODE, raw and corrected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from girsanov.deployment import deploy_at, deployment_factor
from girsanov.evaluation.diversity import within_class
from girsanov.evaluation.intervals import Interval, mean_interval
from girsanov.launch import configure
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.recipes import get_recipe
from girsanov.recipes.base import Assembled
from girsanov.recipes.digits_data import SHAPE, balanced_labels, digit_prompts
from girsanov.recipes.digits_evaluation import Evaluator
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.train import Run, train

SEED = 2_000_003  # of the evaluation noise, apart from training seeds
UNIFORM = {"kind": "uniform", "n": 20}


@dataclass(frozen=True)
class Setting:
    """One way of training in the study.

    Attributes:
        key, label: its name in the JSON, and what people call it.
        layer: settings of the digits recipe, with ``{eta}`` where the noise goes.
    """

    key: str
    label: str
    layer: Mapping[str, Any]

    def config(self, eta: float, iterations: int, seed: int = 0) -> dict[str, Any]:
        """The settings at a level of noise."""
        train_layer = {**self.layer.get("train", {}), "iterations": iterations, "seed": seed}
        return {**_filled(self.layer, eta), "train": train_layer}


def _filled(value: Any, eta: float) -> Any:
    if isinstance(value, Mapping):
        return {k: _filled(v, eta) for k, v in value.items()}
    return eta if value == "{eta}" else value


NOISY = {"kind": "gddim", "eta": "{eta}"}
TRAIN = {"lr": 2e-4}
DDPO = Setting(
    "ddpo",
    "DDPO, diffusion",
    {
        "process": {"kind": "vp"},
        "prediction": "v",
        "method": {"kind": "ddpo", "grid": UNIFORM, "sampler": NOISY},
        "sampler": {"kind": "gddim", "eta": 0.0},
        "train": TRAIN,
    },
)
MIX = Setting(
    "mix-grpo",
    "MixGRPO, flow",
    {
        "method": {
            "kind": "mix-grpo",
            "grid": UNIFORM,
            "sampler": {"kind": "mixed", "inside": NOISY, "outside": "euler", "start": 0, "length": 4},
            "schedule": {"kind": "sliding-window", "every": 3, "leave": 2, "stride": 1},
        },
        "sampler": {"kind": "gddim", "eta": 0.0},
        "train": TRAIN,
    },
)


def with_kl(kind: str, beta: float) -> Setting:
    """Clipped policy gradient on the flow with a KL in its objective, at GDDIM(eta)."""
    method = {"kind": "clipped-pg", "grid": UNIFORM, "sampler": NOISY, "kl": {"kind": kind, "beta": beta}}
    return Setting(
        f"flow-{kind}",
        f"policy gradient, {kind} KL, flow",
        {"method": method, "sampler": {"kind": "gddim", "eta": 0.0}, "train": TRAIN},
    )


def matched(beta: float) -> Setting:
    """Adjoint matching on the flow at GDDIM(eta): its fixed point is the optimum of the path KL."""
    method = {"kind": "am", "grid": UNIFORM, "sampler": NOISY, "any_noise": True, "beta": beta}
    return Setting(
        "flow-am",
        "adjoint matching, flow",
        {"method": method, "sampler": {"kind": "gddim", "eta": 0.0}, "train": {"lr": 5e-4, "schedule": "cosine"}},
    )


@torch.no_grad()
def pictures(model: ModelLike, sampler: Sampler, evaluator: Evaluator, n: int) -> tuple[Tensor, Tensor]:
    """Decoded samples [n, 1, 8, 8] of balanced classes from fixed noise, and their labels [n]."""
    labels = balanced_labels(n)
    prompts, noise = (
        digit_prompts(labels).to(evaluator.device),
        Noise(SEED, 0, torch.arange(n), device=evaluator.device),
    )
    x_T = model.process.prior(noise.normal(SHAPE))
    path = rollout(model, sampler, evaluator.grid, x_T, prompts.cond, noise=noise, keep=())
    return model.decode(path.x0), labels


def rewards(model: ModelLike, sampler: Sampler, evaluator: Evaluator, n: int) -> Tensor:
    """Rewards [n] of ``pictures``."""
    x, labels = pictures(model, sampler, evaluator, n)
    return evaluator.reward(x, digit_prompts(labels).to(evaluator.device)).double().cpu()


@dataclass
class GapWatch:
    """Evaluates under SDE and ODE every so many iterations.

    Attributes:
        evaluator: reward, judge, grid.
        eta: noise of the SDE.
        every, n: iterations between evaluations, and samples of each.
        at, ode, sde: what was seen: iterations, rewards [n] each time.
    """

    evaluator: Evaluator
    eta: float
    every: int
    n: int
    at: list[int] = field(default_factory=list)
    ode: list[Tensor] = field(default_factory=list)
    sde: list[Tensor] = field(default_factory=list)

    def start(self, run: Run) -> None:
        """Before training: improvement is measured from here."""
        self.look(run)

    def iteration(self, run: Run, metrics: dict[str, float]) -> None:
        """After an iteration."""
        if run.done % self.every == 0:
            self.look(run)

    def end(self, run: Run) -> None:
        """Nothing more."""

    def look(self, run: Run) -> None:
        """One evaluation."""
        model = run.model()
        self.at.append(run.done)
        self.ode.append(rewards(model, GDDIM(0.0), self.evaluator, self.n))
        self.sde.append(rewards(model, GDDIM(self.eta), self.evaluator, self.n))

    def trend(self) -> Interval:
        """Slope of the gap per iteration: the mean over samples of each sample's own slope."""
        e = torch.tensor(self.at, dtype=torch.float64)
        e = e - e.mean()
        gaps = torch.stack(self.ode) - torch.stack(self.sde)
        return mean_interval((e @ gaps) / e.square().sum())

    def record(self) -> dict[str, Any]:
        """All numbers: rewards, improvement, gaps and the gap's trend, with half-widths of 95 % intervals."""
        gaps = [mean_interval(a - b) for a, b in zip(self.ode, self.sde, strict=True)]
        gain, trend = mean_interval(self.ode[-1] - self.ode[0]), self.trend()
        return {
            "at": self.at,
            "ode": [float(v.mean()) for v in self.ode],
            "sde": [float(v.mean()) for v in self.sde],
            "gap": [g.value for g in gaps],
            "gap_half": [half(g) for g in gaps],
            "improvement": gain.value,
            "improvement_half": half(gain),
            "trend": trend.value,
            "trend_half": half(trend),
        }


def half(interval: Interval) -> float:
    """Half the width of an interval."""
    return 0.5 * (interval.high - interval.low)


def assemble(setting: Setting, eta: float, iterations: int, seed: int = 0) -> Assembled:
    """The digits recipe at a setting and a level of noise."""
    recipe = get_recipe("digits")
    return recipe.build(configure(recipe, [setting.config(eta, iterations, seed)]), torch.device("cpu"))


def evaluator_of(parts: Assembled) -> Evaluator:
    """The recipe's evaluator."""
    assert isinstance(parts.evaluate, Evaluator)
    return parts.evaluate


def run_gap(setting: Setting, eta: float, iterations: int, every: int, n: int) -> dict[str, Any]:
    """Trains at eta and follows the gap."""
    parts = assemble(setting, eta, iterations)
    watch = GapWatch(evaluator_of(parts), eta, every, n)
    train(parts.run, [watch])
    return {"setting": setting.key, "eta": eta, **watch.record(), **final_numbers(parts, eta, n)}


def final_numbers(parts: Assembled, eta: float, n: int) -> dict[str, float]:
    """Judge and diversity of the ODE's pictures at the end."""
    evaluator = evaluator_of(parts)
    x, labels = pictures(parts.run.model(), GDDIM(0.0), evaluator, n)
    return quality(x, labels, evaluator)


def quality(x: Tensor, labels: Tensor, evaluator: Evaluator) -> dict[str, float]:
    """What the judge reads correctly, and the diversity within classes."""
    spread = within_class(x.cpu(), labels)
    return {
        "judge": evaluator.judge(x, labels).accuracy,
        "diversity": float(spread[spread.isfinite()].double().mean()),
    }


def run_deployment(setting: Setting, eta: float, iterations: int, n: int) -> dict[str, Any]:
    """Trains at eta, then samples the SDE, and the ODE raw, corrected and with scaled weights.

    ``gain`` is the reward less the untuned model's under the same sampler and noise, so it is paired and sharp.
    """
    parts = assemble(setting, eta, iterations)
    evaluator, run = evaluator_of(parts), parts.run
    base = run.reference()
    untuned = {level: rewards(base, GDDIM(level), evaluator, n) for level in (eta, 0.0)}
    train(run)
    models: Sequence[tuple[str, ModelLike, float]] = (
        ("sde", run.model(), eta),
        ("raw", run.model(), 0.0),
        ("corrected", deploy_at(run.policy, eta, 0.0), 0.0),
        ("one_pass", deploy_at(run.policy, eta, 0.0, exact=False), 0.0),
    )
    record: dict[str, Any] = {"setting": setting.key, "eta": eta, "c": deployment_factor(eta, 0.0)}
    record["untuned"] = float(untuned[0.0].mean())
    for name, model, level in models:
        x, labels = pictures(model, GDDIM(level), evaluator, n)
        r = evaluator.reward(x, digit_prompts(labels).to(evaluator.device)).double().cpu()
        gain = mean_interval(r - untuned[level])
        numbers = {"reward": float(r.mean()), "gain": gain.value, "gain_half": half(gain)}
        record[name] = numbers | quality(x, labels, evaluator) | {"kl": evaluator.drift(model, base)["kl"]}
    return record
