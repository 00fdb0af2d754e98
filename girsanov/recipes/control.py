r"""Control of a diffusion: a policy learned along its own paths, beside the exact answer.

A run starts at a random admissible policy (or where ``actor`` says) and is judged by what it loses to the best policy,
the regret ``gamma int d(dx) KL(pi || pi*)`` of ``girsanov.control.occupation``, with states drawn from the discounted
occupation time d exactly. Besides, the errors of its slope, offset and covariance: of the least-squares lines through
the means of the learned and of the exact policy at those states, ``|learned - exact| / |exact|``.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from girsanov.config import Part, make, merge
from girsanov.control.agents import Agent
from girsanov.control.environments import Environment
from girsanov.control.occupation import occupy, regret
from girsanov.control.policies import Actor, PolicyConfig
from girsanov.control.solution import Solution
from girsanov.errors import GirsanovError
from girsanov.models import ModelLike
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.recipes.base import Assembled, Metric, Recipe, RunConfig, Samples
from girsanov.recipes.control_drawings import draw_states, drawings
from girsanov.settings import Count, Natural, settings
from girsanov.train import Run, TrainConfig

EVALUATION_SEED = 1_000_003

TRAIN = TrainConfig(
    iterations=80,
    lr=0.03,
    betas=(0.9, 0.99),
    schedule="cosine",
    epochs=4,
    minibatches=4,
    max_grad_norm=5.0,
    ema=0.995,
)
"""Several updates a batch, as CPPO takes them; the averaged weights are those of the last ten iterations or so."""

KNOWN = {"critic": "galerkin", "rate": "generator"}
"""Value and q from the environment's drift and diffusion: no noise of the environment is left in either, and the limit
is the optimum of continuous time whatever dt is. The published forms, which know neither, are
``method.critic=least-squares method.rate=td``; they take several times the paths here, and by their variance hundreds
of times on pairs."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "cppo": {"method": {**KNOWN, "trust": {"kind": "sqrt-kl", "target": 0.3}}},
    "cpg": {"method": KNOWN, "train": {"iterations": 300, "lr": 0.05, "epochs": 1, "minibatches": 1, "ema": 0.97}},
}
"""Settings by method."""


@settings
class ControlConfig(RunConfig):
    """The configuration of a recipe of this family.

    Attributes:
        method: the agent and its options.
        environment: what it acts in.
        actor: form and start of the policy.
        batch: paths an iteration, over all processes.
        samples: states that an evaluation draws.
        evaluation_seed: of their noise.
    """

    method: Part[Agent] = Part("cppo")  # type: ignore[assignment]  # agents are methods
    train: TrainConfig = TRAIN
    environment: Part[Environment] = Part("lq")
    actor: Part[PolicyConfig] = Part("affine")
    batch: Count = 256
    samples: Count = 2000
    evaluation_seed: Natural = EVALUATION_SEED


class ControlRecipe(Recipe):
    """What the recipes of this family share; a subclass names an environment."""

    config: ClassVar[type[RunConfig]] = ControlConfig
    methods: ClassVar[Sequence[str]] = tuple(DEFAULTS)
    threads: ClassVar[int | None] = 1  # small matrices

    def defaults(self, method: str) -> dict[str, Any]:
        """Rates of q and of learning seen to work."""
        return DEFAULTS.get(method, {})

    def build(self, config: ControlConfig, device: torch.device, accelerator: Any = None) -> Assembled:
        """Environment, policy, agent, and the evaluation against the exact answer."""
        if config.lora is not None or config.precision != "fp32":
            raise GirsanovError("policies over actions are small: train all their weights, without --lora and in fp32")
        environment = make(Environment, config.environment)
        method = make(Agent, config.method, environment)
        require_same(method.environment, environment)
        actor = make(PolicyConfig, config.actor).build(environment, config.train.seed)
        prompts = ClassPrompts(num_classes=1, groups_per_batch=config.batch, group_size=1, seed=config.train.seed)
        policy = Policy(actor)
        policy.net.to(device)
        run = Run(policy, method, config.train, prompts, accelerator)
        best = environment.solution()
        if best is None:
            raise GirsanovError(f"{config.environment.kind} has no exact solution to be judged by: choose another one")
        exact = best

        def sample(model: ModelLike, n: int, seed: int) -> Samples:
            return Samples(occupy(environment, as_actor(model), Noise(seed, 0, torch.arange(n), device=device)))

        def evaluate(run: Run) -> dict[str, float]:
            x = sample(run.model(), config.samples, config.evaluation_seed).x
            return measure(environment, exact, as_actor(run.model()), x)

        return Assembled(
            run,
            evaluate,
            sample,
            lambda s: draw_states(s.x, environment),
            METRICS,
            f"A Gaussian policy in the environment {config.environment.kind!r}, dt = {environment.dt:g}, discount "
            f"{environment.discount:g}, entropy weight {environment.entropy:g}, learned from {config.batch} paths an "
            "iteration. The exact answer is that of continuous time.",
            {"Best possible value": f"{best_value(environment, exact):.4f} on average over the first state"},
            pictured=4000,
            captions=("the first policy", "the learned policy"),
            drawings=lambda run: drawings(run, environment, exact),
        )


METRICS = (
    Metric("reward", "Value at the start", "high"),
    Metric("judge", "Loss against the best policy", "low"),
    Metric("slope_error", "Error of the slope", "low", percent=True),
    Metric("offset_error", "Error of the offset", "low", percent=True),
    Metric("variance_error", "Error of the covariance", "low", percent=True),
)


class LQRecipe(ControlRecipe):
    """Linear-quadratic control in one dimension."""

    name: ClassVar[str] = "lq"
    summary: ClassVar[str] = "linear-quadratic control of a diffusion, solved exactly; seconds"

    def complete(self, wanted: Any) -> dict[str, Any]:
        """A dt at which the chain's optimum is within half a per cent of that of continuous time."""
        return default_environment(wanted, {"kind": "lq", "dt": 0.02})


class PairsRecipe(ControlRecipe):
    """Optimal pair trading."""

    name: ClassVar[str] = "pairs"
    summary: ClassVar[str] = "how much to hold of a spread that reverts, solved exactly; seconds"

    def defaults(self, method: str) -> dict[str, Any]:
        """The best slope is about -11, so the rates of learning are larger."""
        rates = {"cppo": 0.1, "cpg": 0.2}
        return merge(super().defaults(method), {"train": {"lr": rates[method]}} if method in rates else {})

    def complete(self, wanted: Any) -> dict[str, Any]:
        """The policy looks at the spread alone: one that looks at the wealth may lose it all in finite time."""
        return default_environment(wanted, {"kind": "pairs", "dt": 0.05}) | {"actor": {"kind": "affine", "sees": [0]}}


def default_environment(wanted: Any, environment: dict[str, Any]) -> dict[str, Any]:
    """The recipe's environment, unless the settings name another one."""
    chosen = wanted.get("environment", {}) if isinstance(wanted, dict) else {}
    kind = chosen if isinstance(chosen, str) else chosen.get("kind", environment["kind"])
    return {"environment": environment if kind == environment["kind"] else {"kind": kind}}


def require_same(one: Environment, other: Environment) -> None:
    """Raises GirsanovError if an agent was given another environment than its run."""
    if one != other:
        raise GirsanovError(
            f"the agent's environment (dt = {one.dt:g}, discount = {one.discount:g}) is not that of the run "
            f"(dt = {other.dt:g}, discount = {other.discount:g}): set environment, and leave method.environment out"
        )


def as_actor(model: Any) -> Actor:
    """A view of the policy as what it is."""
    assert isinstance(model, Actor)
    return model


def best_value(environment: Environment, exact: Solution) -> float:
    """``E V*(X_0)``, in closed form where there is one, else over 4096 starts."""
    known = getattr(exact, "objective", None)
    if known is not None:
        return float(known)
    start = environment.start(4096, torch.Generator().manual_seed(0), torch.float64)
    return float(exact.value(start).mean())


@torch.no_grad()
def measure(environment: Environment, exact: Solution, actor: Actor, x: Tensor) -> dict[str, float]:
    """Value, regret and errors of a policy, at states x [B, n] of its occupation time."""
    loss = regret(environment, exact, actor, x)
    law, (mean, covariance) = actor(x), exact.policy(x)
    lines = [line(x, m) for m in (law.mean, mean)]
    spreads = [c.expand(len(x), -1, -1).mean(0) for c in (law.covariance, covariance)]
    value = best_value(environment, exact) - float(loss.mean())
    error = float(loss.std()) / math.sqrt(len(loss))
    return {
        "reward": value,
        "reward_se": error,
        "judge": float(loss.mean()),
        "judge_se": error,
        "slope_error": relative(lines[0][1:], lines[1][1:]),
        "offset_error": relative(lines[0][:1], lines[1][:1]),
        "variance_error": relative(spreads[0], spreads[1]),
    }


def line(x: Tensor, mean: Tensor) -> Tensor:
    """Offset and slopes [1 + n, m] of the least-squares line through means [B, m] at states [B, n]."""
    return torch.linalg.lstsq(torch.cat([torch.ones_like(x[:, :1]), x], 1), mean).solution


def relative(found: Tensor, exact: Tensor) -> float:
    """``|found - exact| / |exact|`` in the Frobenius norm."""
    return float((found - exact).norm() / exact.norm())
