"""The bench's problems: two Gaussians with exact moments, one mixture on the line by quadrature, one way to ask them.

Every tuned field is judged twice: by the law its own sampler ends in (against the method's limit), and by one common
chain, the memoryless sampler of adjoint matching on the same grid. Every one of its steps draws noise, so any field has
a finite path KL there, and its reward lies on or below that chain's exact frontier.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from girsanov.bench.nets import Features, affine_features, bump_features
from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods.adjoint.matching import AdjointMatching
from girsanov.methods.advantages.base import LeaveOneOut
from girsanov.methods.base import Method
from girsanov.methods.continuous.ctrl import CTRL
from girsanov.methods.continuous.price import PathKLPrice
from girsanov.methods.continuous.returns import LambdaReturn
from girsanov.methods.policy_gradient.clipped import ClippedPG
from girsanov.methods.policy_gradient.penalty import PathKL
from girsanov.models import Model
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.problems.limits import GaussianProblem, aim, limit
from girsanov.problems.line import (
    LineKernel,
    Nodes,
    line_kernels,
    line_path_kl,
    line_path_kl_limit,
    start_nodes,
    transport,
    uniform,
)
from girsanov.problems.moments import affine_kernels, chain_law, end_law, prior_moments
from girsanov.problems.recursions import path_kl, path_kl_limit
from girsanov.problems.rewards import LinearReward, QuadraticReward, tilt
from girsanov.processes import RectifiedFlow
from girsanov.samplers.base import AffineSampler, Sampler
from girsanov.samplers.heun import Heun
from girsanov.samplers.memoryless_flow import MemorylessFlow

STEPS = 10
"""Steps of the grid that methods train on; their limits are those of this grid."""

BETA = 1.0
"""Weight of the KL for every method that has one."""

GROUP = 16
"""Samples a group."""

COMMON: AffineSampler = MemorylessFlow()
"""The chain in which all fields are compared."""


@dataclass(frozen=True)
class Summary:
    """What is compared of a law: mean [d], covariance [d, d], mass of the right-hand component (mixtures)."""

    mean: Tensor
    cov: Tensor
    weight: float | None = None

    @classmethod
    def of(cls, law: Mixture) -> "Summary":
        """Of a closed-form law."""
        return cls(law.mean, law.cov, None if len(law.weights) == 1 else float(law.weights[-1]))

    def extrapolated(self, coarse: "Summary", factor: float) -> "Summary":
        """Richardson's value from this grid and a coarser one whose error is ``factor`` times as large."""
        gain, weight = 1 / (factor - 1), self.weight
        if weight is not None and coarse.weight is not None:
            weight += gain * (weight - coarse.weight)
        return Summary(self.mean + gain * (self.mean - coarse.mean), self.cov + gain * (self.cov - coarse.cov), weight)

    def error(self, other: "Summary") -> float:
        """Largest of: mean in stds of the other, covariance relative to the other's, difference of the weights."""
        root = torch.linalg.cholesky(other.cov)
        shift = torch.linalg.solve(root, self.mean - other.mean)
        spread = torch.linalg.solve(root, torch.linalg.solve(root, self.cov).mT) - torch.eye(len(shift))
        worst = max(float(shift.abs().max()), float(spread.abs().max()))
        return worst if self.weight is None or other.weight is None else max(worst, abs(self.weight - other.weight))


@dataclass(frozen=True)
class Curve:
    """The frontier of the common chain: KL and the best reward at it, both rising, [n]."""

    kl: np.ndarray
    reward: np.ndarray

    def best(self, kl: float) -> float:
        """The best reward at a KL within the curve, by monotone cubics in sqrt(KL), where the curve is smooth."""
        at = min(max(kl, float(self.kl[0])), float(self.kl[-1]))
        return float(PchipInterpolator(np.sqrt(self.kl), self.reward)(np.sqrt(at)))


@dataclass(frozen=True)
class BenchProblem(ABC):
    """Data, reward and the exact answers.

    Attributes:
        name: in the table.
        law, reward: the problem.
        features: of the correction that is trained.
        deploy: samples the fields of methods that never sample.
    """

    name: str
    law: Mixture
    reward: QuadraticReward
    features: Features = affine_features

    deploy: Sampler = Heun()

    @property
    def grid(self) -> Grid:
        """The times that methods train on."""
        return Grid.uniform(STEPS)

    @property
    def model(self) -> Model:
        """The exact model before tuning."""
        return self.law.model(RectifiedFlow())

    @property
    def target(self) -> Mixture:
        """The tilted law."""
        return tilt(self.law, self.reward, BETA)

    @abstractmethod
    def limit(self, method: Method, steps: int = STEPS) -> Summary | None:
        """Where the method ends on a grid of so many steps, if that is known."""

    @abstractmethod
    def aim(self, method: Method) -> Summary | None:
        """What the limit tends to."""

    @abstractmethod
    def end(self, model: Model, sampler: Sampler) -> Summary:
        """End law of a field under a sampler."""

    @abstractmethod
    def score(self, model: Model) -> tuple[float, float]:
        """Path KL and expected reward of a field under the common chain."""

    @abstractmethod
    def optimum(self, beta: float) -> tuple[float, float]:
        """Path KL and expected reward of the common chain's optimum at a beta."""

    @cached_property
    def frontier(self) -> Curve:
        """The exact frontier of the common chain, from no KL to that of beta / 8."""
        betas = BETA * np.concatenate([[1e6], np.geomspace(32, 0.125, 17)])
        points = np.array([self.optimum(float(b)) for b in betas])
        return Curve(points[:, 0], points[:, 1])


@dataclass(frozen=True)
class GaussianBench(BenchProblem):
    """Gaussian data: everything in closed form."""

    @cached_property
    def problem(self) -> GaussianProblem:
        """The same as the library's limits know it."""
        assert isinstance(self.law, Gaussian)
        return GaussianProblem(self.law, self.reward, sampler=self.deploy, grid=self.grid, group=GROUP)

    def limit(self, method: Method, steps: int = STEPS) -> Summary | None:
        """``problems.limits.limit``."""
        found = limit(method, self.problem, Grid.uniform(steps))
        return None if found is None else Summary.of(found.law)

    def aim(self, method: Method) -> Summary | None:
        """``problems.limits.aim``."""
        found = aim(method, self.problem)
        return None if found is None else Summary.of(found)

    def end(self, model: Model, sampler: Sampler) -> Summary:
        """Exact moments of the affine field."""
        return Summary.of(end_law(model, sampler, self.grid))

    def score(self, model: Model) -> tuple[float, float]:
        """Exact, from the kernels' affine maps."""
        start = prior_moments(model)
        reference, tuned = (affine_kernels(m, COMMON, self.grid) for m in (self.model, model))
        law = chain_law(tuned, *start)
        return float(path_kl(tuned, reference, start)), float(self.reward.expected(law.mean, law.cov))

    def optimum(self, beta: float) -> tuple[float, float]:
        """The linear-quadratic recursion."""
        start, reference = prior_moments(self.model), affine_kernels(self.model, COMMON, self.grid)
        best = path_kl_limit(reference, start, self.reward, beta)
        assert best.kernels is not None
        kl = float(path_kl(best.kernels, reference, start))
        return kl, float(self.reward.expected(best.law.mean, best.law.cov))


LINE = uniform(-8.0, 8.0, 1601)


@dataclass(frozen=True)
class LineBench(BenchProblem):
    """A mixture of two on the line, by quadrature; 0 separates the components."""

    def _pay(self, x: np.ndarray) -> np.ndarray:
        return self.reward(torch.from_numpy(x.reshape(-1, 1))).numpy().reshape(x.shape)

    def _summary(self, nodes: Nodes) -> Summary:
        mean, cov = (torch.tensor(v, dtype=torch.float64) for v in ([nodes.mean], [[nodes.variance]]))
        return Summary(mean, cov, nodes.mass(0.0))

    def _optimal(self, sampler: Sampler, steps: int, beta: float) -> tuple[list[LineKernel], Sequence[LineKernel]]:
        kernels = line_kernels(self.model, sampler, Grid.uniform(steps))
        return kernels, line_path_kl_limit(kernels, self._pay, beta, LINE)[0]

    def limit(self, method: Method, steps: int = STEPS) -> Summary | None:
        """Of the methods whose fixed point is the path-KL optimum (by the envelope theorem, adjoint matching too)."""
        known = _path_kl_weight(method, self.reward)
        if known is None:
            return None
        sampler, beta = known
        return self._summary(transport(self._optimal(sampler, steps, beta)[1], start_nodes(LINE), LINE))

    def aim(self, method: Method) -> Summary | None:
        """The tilted mixture, for those."""
        return None if _path_kl_weight(method, self.reward) is None else Summary.of(self.target)

    def end(self, model: Model, sampler: Sampler) -> Summary:
        """Densities through the sampler's kernels."""
        return self._summary(transport(line_kernels(model, sampler, self.grid), start_nodes(LINE), LINE))

    def score(self, model: Model) -> tuple[float, float]:
        """By quadrature; an infinite KL for a field that throws mass off the line."""
        reference, tuned = (line_kernels(m, COMMON, self.grid) for m in (self.model, model))
        start = start_nodes(LINE)
        try:
            return line_path_kl(tuned, reference, start, LINE), transport(tuned, start, LINE).expect(self._pay)
        except GirsanovError:
            return float("inf"), float("nan")

    def optimum(self, beta: float) -> tuple[float, float]:
        """Value iteration."""
        reference, tuned = self._optimal(COMMON, STEPS, beta)
        start = start_nodes(LINE)
        return line_path_kl(tuned, reference, start, LINE), transport(tuned, start, LINE).expect(self._pay)


def _path_kl_weight(method: Method, reward: QuadraticReward) -> tuple[Sampler, float] | None:
    """Sampler and beta of a method that ends in the path-KL optimum; that does not depend on the data."""
    if limit(method, GaussianProblem(Gaussian(0.0, 1.0), reward)) is None:
        return None
    if isinstance(method, AdjointMatching) and not method.noiseless_last:
        return method.sampler, method.beta
    if isinstance(method, ClippedPG) and isinstance(method.kl, PathKL) and method.advantage == LeaveOneOut():
        return method.sampler, method.kl.beta
    if isinstance(method, CTRL) and isinstance(method.price, PathKLPrice) and isinstance(method.target, LambdaReturn):
        return method.sampler, method.price.beta
    return None


PROBLEMS: dict[str, BenchProblem] = {
    "gaussian": GaussianBench(
        "gaussian",
        Gaussian([0.8, -0.3], [[1.2, 0.4], [0.4, 0.6]]),
        QuadraticReward([[0.8, 0.2], [0.2, 0.4]], [0.6, -0.4]),
    ),
    "gaussian-linear": GaussianBench("gaussian-linear", Gaussian(0.8, 1.69), LinearReward(0.4)),
    "mixture": LineBench(
        "mixture",
        Mixture([0.7, 0.3], [[-1.5], [1.5]], [[[0.25]], [[0.25]]]),
        LinearReward(0.5),
        bump_features,
    ),
}
"""Every problem by name."""
