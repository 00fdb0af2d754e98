r"""Deploying a tuned policy with another stochasticity than it was trained with: one scalar makes it exact.

**Theorem.** Let a policy be trained with the eta-sampler and a path KL of weight beta to its optimum, on any data, with
any reward, and let the untuned eta-sampler be memoryless (its end is independent of its start). Let Delta be what
training added to the prediction. Then the eta'-sampler of the prediction ``reference + c Delta``,

.. math:: c(\eta, \eta') = \frac{(\eta^2 + \eta'^2)(1 + \eta^2)}{2 \eta^2 (1 + \eta'^2)}
    = 1 + \frac{(\eta^2 - 1)(\eta^2 - \eta'^2)}{2 \eta^2 (1 + \eta'^2)}

has the marginals of the trained process at every noise level, so it ends in the same law ``p exp(r / beta) / Z``.

**Derivation.** In ``y = x / alpha``, per unit of ``-d rho``, with s the score of the noised data p and W a Brownian
motion,

1. the untuned sampler is ``dy = (1 + eta^2) rho s + eta sqrt(2 rho) dW``, with marginals p;
2. a drift u costs ``beta |u|^2 / (4 eta^2 rho)``; with ``h(rho, y) = E[exp(r(y_end) / beta) | y]`` under 1, the
   optimal one is ``u = 2 eta^2 rho grad log h`` (the value is beta log h). A drift of the sampler is ``(1 + eta^2)
   rho`` times a score, so training adds ``Delta s = 2 eta^2 / (1 + eta^2) grad log h`` to the score;
3. the path law of the tuned sampler is ``exp(r(y_end) / beta) / h(rho_T, y_T)`` times that of 1. Without memory
   ``h(rho_T, .)`` is a constant Z, and the marginals are ``p h / Z``;
4. a process with these marginals and noise ``eta' sqrt(2 rho)`` has the drift of 2, less ``eta^2 rho grad log(p h)``
   (which leaves its probability flow, ``rho s + eta^2 rho grad log h``), plus ``eta'^2 rho grad log(p h)``, together
   ``(1 + eta'^2) rho s + (eta^2 + eta'^2) rho grad log h``;
5. that is the eta'-sampler of the score ``s + (eta^2 + eta'^2) / (1 + eta'^2) grad log h = s + c Delta s``.

``c = 1`` for eta' = eta, and for every eta' if eta = 1, which is theorem 1 of adjoint matching. To the ODE ``c = (1 +
eta^2) / 2``: raw deployment under-tilts for eta > 1 and over-tilts for eta < 1. The argument is local in rho, so
with an eta that varies along the path each noise level has its own c.

**Any prediction.** A prediction is ``p = a x_0 + b eps`` with ``x_t = alpha x_0 + sigma eps``. Two predictions at one
x_t differ by ``Delta p = (b - a sigma / alpha) Delta eps``: a function of time times the difference of the scores. So
scaling the raw difference by c scales the score's difference by c, for x0, eps, score, velocity and v alike.

**Where it ends.** (a) Memory: with correlation kappa of start and end (``theory.memory``; the product of those of the
two samplers) a linear reward on Gaussian data is tilted by ``1 - kappa`` of its due when corrected and by ``(1 -
kappa) / c`` when not, so for c < 1 correcting is worse than nothing from ``kappa = (1 - c) / (1 + c)`` on: refused. (b)
The optimum: a policy gradient with a KL per step, or none, and a policy that is far from converged, learn another
Delta. (c) Steps: the grid's own error comes on top. For eta < 1 it falls slowly with their number, and on coarse grids
correcting is no nearer than not: warned, by the memory from the end of the first step (``check_grid``).

References: Domingo-Enrich et al. 2025, arXiv:2409.08861, theorem 1 (eta = 1); the theorem for other eta is derived
here. ``docs/deployment.md`` holds the measurements.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.config import Part, make
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.base import Chunk, Method, State, Turn
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.models import ModelLike, Wrapper
from girsanov.policy import Policy
from girsanov.problems.control import deployment_factor as deployment_factor
from girsanov.processes import Process
from girsanov.samplers.base import Sampler
from girsanov.samplers.gddim import GDDIM
from girsanov.samplers.stochasticity import eta_of
from girsanov.theory.memory import memory as memory_of
from girsanov.types import Batch, Cond, Prompts

NOTICEABLE = 0.05
"""Memory above which a correction is reported as approximate."""


@dataclass(frozen=True)
class Deployed(Wrapper):
    """``reference + c (tuned - reference)``, two network passes. With LoRA both run the same base weights.

    Attributes:
        tuned, reference: models of the same process, prediction kind and shape.
        c: scale of what tuning added; ``deployment_factor`` gives the one for another sampler.
    """

    tuned: ModelLike
    reference: ModelLike
    c: float

    def __post_init__(self) -> None:
        mine, other = ((m.prediction, m.shape, m.process) for m in (self.tuned, self.reference))
        if mine != other:
            raise GirsanovError(
                f"the two models of a deployment differ in prediction, shape or process: {mine[:2]} and {other[:2]}; "
                "give the tuned model and the reference it was tuned from"
            )

    @property
    def inner(self) -> ModelLike:
        """The tuned model."""
        return self.tuned

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The scaled prediction [B, *D]."""
        return torch.lerp(self.reference(x, t, cond), self.tuned(x, t, cond), self.c)


def check_memory(memory: float, c: float) -> None:
    """Whether a correction by c is worth its while, given the correlation of start and end.

    Warns where the correction is approximate. Raises GirsanovError where no correction is closer (Gaussian data, linear
    reward).
    """
    if c == 1.0:
        return
    limit = (1 - c) / (1 + c)
    if c < 1 and memory >= limit:
        raise GirsanovError(
            f"the sampler remembers its start (correlation {memory:.2f}), and from {limit:.2f} on scaling by "
            f"c = {c:.2f} is further off than leaving the policy as it is: deploy it unscaled, train with eta >= 1, or "
            "start from pure noise (rectified flow)"
        )
    if memory > NOTICEABLE:
        warnings.warn(
            f"the sampler remembers its start (correlation {memory:.2f}), so the deployment factor c = {c:.2f} is "
            f"approximate: about {100 * memory:.0f} % of the tilt is missing",
            stacklevel=3,
        )


def check_grid(process: Process, grid: Grid, eta_train: float, eta_deploy: float, c: float) -> None:
    """Warns where pure noise is left in so long a step that what it forgets, it forgets before it could be controlled.

    The step from alpha = 0 draws its end afresh: it can move that end, not reshape it, so on the grid the memory that
    counts is the one from the end of that step.
    """
    if not (c < 1 and float(process(grid.ts[0]).alpha) == 0 and len(grid) > 1):
        return
    memory = math.prod(memory_of(process, eta, float(grid.ts[1])) for eta in (eta_train, eta_deploy))
    if memory >= (1 - c) / (1 + c):
        warnings.warn(
            f"on a grid of {len(grid)} steps the first one takes much of what eta = {eta_train:g} would learn from "
            f"pure noise (correlation {memory:.2f} from its end on): scaling by c = {c:.2f} may be no nearer than "
            "leaving the policy as it is; train with more steps or with eta >= 1",
            stacklevel=3,
        )


def scale_for(
    process: Process, eta_train: float, eta_deploy: float, memory: float | None = None, grid: Grid | None = None
) -> float:
    """The deployment factor, checked against the memory of a process (by default from t = 1, unit data) and a grid."""
    c = deployment_factor(eta_train, eta_deploy)
    check_memory(memory_of(process, eta_train) * memory_of(process, eta_deploy) if memory is None else memory, c)
    if grid is not None:
        check_grid(process, grid, eta_train, eta_deploy, c)
    return c


def sampled_at(config: Any, eta: float) -> Any:
    """A recipe's configuration whose evaluations sample at eta; its own sampler stays if it does.

    Raises GirsanovError for recipes without a sampler to set.
    """
    if not hasattr(config, "sampler"):
        raise GirsanovError("this recipe has no sampler to set the noise of: leave out --eta-deploy")
    if _matches(make(Sampler, config.sampler), eta):
        return config
    return dataclasses.replace(config, sampler=Part("gddim", {"eta": eta}))


def _matches(sampler: Sampler, eta: float) -> bool:
    return not sampler.stochastic if eta == 0 else isinstance(sampler, GDDIM) and sampler.eta == eta


def deploy_at(
    policy: Policy,
    eta_train: float,
    eta_deploy: float,
    exact: bool = True,
    *,
    name: str = "current",
    memory: float | None = None,
    grid: Grid | None = None,
) -> ModelLike:
    """The model to sample with noise ``eta_deploy``, of a policy that was trained with noise ``eta_train``.

    Args:
        policy: the tuned policy; its reference is the model it was tuned from.
        eta_train: stochasticity of the training sampler (Flow-GRPO's level a is ``sqrt(2)`` times it).
        eta_deploy: stochasticity of the sampler to be used, 0 for an ODE solver.
        exact: two passes, ``reference + c (tuned - reference)``; else one pass with the weights (or the LoRA update)
            scaled by c, which is the same to first order in what was learned.
        name: whose weights: "current" or "ema".
        memory: correlation of start and end under both samplers; by default that of the continuous process from t = 1
            on data of unit standard deviation.
        grid: times of the training sampler, to be warned where they are too few.

    Raises:
        GirsanovError: eta_train is not positive, or the process remembers so much that scaling does harm.
    """
    c = scale_for(policy.model.process, eta_train, eta_deploy, memory, grid)
    if c == 1.0:
        return policy.view(name, "rollout")
    if not exact:
        return policy.view(name, "rollout", strength=c)
    return Deployed(policy.view(name, "rollout"), policy.view("reference", "rollout"), c)


@dataclass(frozen=True)
class Redeployed(Method):
    """A method whose tuned model is meant for another sampler: training is the method's, ``deploy`` is scaled.

    Attributes:
        method: what tunes (or tuned) the policy.
        eta_train, eta_deploy, exact: as in ``deploy_at``.
    """

    method: Method
    eta_train: float
    eta_deploy: float
    exact: bool = True

    @classmethod
    def of(cls, method: Method, eta_deploy: float, eta_train: float | None = None, exact: bool = True) -> "Redeployed":
        """The method for sampling at ``eta_deploy``; eta_train is read off its sampler (the last one of a schedule).

        Raises GirsanovError where the method's sampler has no single eta.
        """
        if eta_train is None:
            sampler = getattr(method, "sampler", None)
            if not isinstance(sampler, Sampler):
                raise GirsanovError(
                    f"{type(method).__name__} trains without a sampler, so its corrections belong to no eta: leave "
                    "out the deployment factor, or say which eta it is to be taken for"
                )
            if isinstance(method, ClippedPG):
                sampler = method.schedule.at(sampler, method.grid, Turn(0, 1, 2))
            eta_train = eta_of(sampler)
        return cls(method, eta_train, eta_deploy, exact)

    def deploy(self, policy: Policy, name: str = "current", strength: float = 1.0) -> ModelLike:
        """The scaled model; a strength of the tuning multiplies the factor."""
        grid = getattr(self.method, "grid", None)
        c = strength * scale_for(policy.model.process, self.eta_train, self.eta_deploy, grid=grid)
        if c == 1.0 or not self.exact:
            return self.method.deploy(policy, name, c)
        return Deployed(self.method.deploy(policy, name), policy.view("reference", "rollout"), c)

    def setup(self, policy: Policy) -> State:
        """The method's."""
        return self.method.setup(policy)

    def modules(self) -> dict[str, nn.Module]:
        """The method's."""
        return self.method.modules()

    def collect(self, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> Batch:
        """The method's."""
        return self.method.collect(policy, prompts, state, turn)

    def anchor(self, policy: Policy, batch: Batch, state: State) -> Batch:
        """The method's."""
        return self.method.anchor(policy, batch, state)

    def losses(self, policy: Policy, batch: Batch, state: State) -> Iterator[Chunk]:
        """The method's."""
        return self.method.losses(policy, batch, state)

    def after_update(self, policy: Policy, state: State, turn: Turn) -> None:
        """The method's."""
        self.method.after_update(policy, state, turn)
