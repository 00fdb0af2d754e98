r"""The reward gap ``E r(ODE) - E r(SDE_eta)``: what deploying by the probability flow changes.

**Untuned.** All eta-samplers share the marginals of the data only if they start from its noised law. From the prior
N(0, prior_std^2) they do not, and what is left of the mismatch depends on eta: with ``w = s0^2 / (s0^2 + rho^2)`` and q
its value at the start,

.. math:: x_{end} | y \sim N(m + w^{(1 + \eta^2)/2} (y - m),\; s_0^2 (1 - w^{\eta^2}))

so on VE (prior variance rho_T^2) ``mean = m (1 - q^{(1 + eta^2)/2})``, ``var = s0^2 (1 - q^{1 + eta^2})``, and for
``r = -x^2``, m = 0 the gap is ``s0^2 (q - q^{1 + eta^2})``; on VP it is ``-s0^2 (1 - s0^2)(1 - q^{eta^2}) / (s0^2 +
rho_T^2)``. On a mixture of the line the probability flow is the monotone map ``F_0^{-1} F_T`` of distribution
functions, and

.. math:: E r(SDE_\eta) = E_{p_0} r + \int (prior - p_T)\, u, \qquad u(x) = E[r(x_{end}) | x_T = x]

because from p_T the sampler would end in p_0; u comes from ``line.Line`` and only the small mismatch weighs its error.

**Tuned.** A policy trained with the eta-sampler and a path KL, run by the eta'-sampler, is ``problems.OptimalControl``:
the trained and the deployed law. "Tuned" in the sense of a network that is the score of the noised tilted law is
``reward_gap`` of the tilted law.

**On a grid** both are moment recursions (any d) or quadrature (the line), exact for the steps that are really taken.

Reference: arXiv:2510.10767, 2026 (the question; its theorems 3.2 and 4.1). All formulas are derived here.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.problems.control import OptimalControl, transition
from girsanov.problems.laws import Gaussian, Mixture
from girsanov.problems.moments import affine_kernels, chain_law, prior_moments
from girsanov.problems.recursions import path_kl_limit, tuned_model
from girsanov.problems.rewards import QuadraticReward
from girsanov.processes import Process
from girsanov.samplers.gddim import GDDIM
from girsanov.theory.line import Line, Score, geometric_grid, integrate, quantile

PURE_NOISE = 1e150
"""The rho that stands for alpha = 0: for eta >= 0.3 memory is below 1e-13 there."""


@dataclass(frozen=True)
class Gap:
    """Expected rewards of the two samplers."""

    ode: float
    sde: float

    @property
    def gap(self) -> float:
        """``E r(ODE) - E r(SDE)``."""
        return self.ode - self.sde


def untuned_law(process: Process, data: Gaussian, eta: float, start: float = 1.0) -> Gaussian:
    """End law of the exact eta-sampler in continuous time, started from the process's prior at time ``start``."""
    c = process(start)
    k, S = transition(data, eta, c)
    spread = process.prior_std**2 * torch.eye(data.d, dtype=torch.float64)
    cov = S + k @ spread @ k.mT
    return Gaussian(data.mean - float(c.alpha) * k @ data.mean, 0.5 * (cov + cov.mT))


def reward_gap(process: Process, data: Mixture, reward: Score, eta: float, grid: Grid | None = None) -> Gap:
    """Rewards of the exact model's ODE and eta-SDE, started from the prior.

    Args:
        process: the noising process.
        data: a Gaussian of any dimension with a quadratic reward, or a mixture on the line with any smooth one.
        reward: ``r(x [B, d]) -> [B]``.
        eta: stochasticity of the SDE, above 0.
        grid: times of gDDIM steps; None is continuous time from t = 1.

    Raises:
        GirsanovError: eta is not positive, or data and reward have no exact formula.
    """
    if not eta > 0:
        raise GirsanovError(f"the gap compares the ODE with an SDE: give eta > 0, not {eta}")
    if isinstance(data, Gaussian) and isinstance(reward, QuadraticReward):
        laws = [_gaussian_end(process, data, e, grid) for e in (0.0, eta)]
        ode, sde = (float(reward.expected(law.mean, law.cov)) for law in laws)
        return Gap(ode, sde)
    if data.d != 1:
        raise GirsanovError(
            "the gap is exact for Gaussian data with a quadratic reward, and for mixtures on the line: bound it with "
            "theory.gap_bound, or sample"
        )
    if grid is not None:
        model = data.model(process)
        ode, sde = (Line(model, GDDIM(e), grid, reach(data)).expect(reward) for e in (0.0, eta))
        return Gap(ode, sde)
    return Gap(_flow_reward(process, data, reward), _sde_reward(process, data, reward, eta))


def tuned_gap(control: OptimalControl, grid: Grid | None = None, eta_deploy: float = 0.0, factor: float = 1.0) -> Gap:
    """Rewards of a policy trained by ``control`` (eta-SDE and path KL): under the eta'-sampler, and as it was trained.

    Args:
        control: Gaussian data, quadratic reward, beta, process and the eta of training.
        grid: gDDIM steps in training and deployment (the optimum is then that of the grid); None is continuous time.
        eta_deploy: stochasticity of the deployed sampler; its reward is ``Gap.ode``.
        factor: scale of the learned correction at deployment (``deployment_factor``), 1 as it is.
    """
    trained, deployed = tuned_laws(control, grid, eta_deploy, factor)
    ode, sde = (float(control.reward.expected(law.mean, law.cov)) for law in (deployed, trained))
    return Gap(ode, sde)


def tuned_laws(
    control: OptimalControl, grid: Grid | None = None, eta_deploy: float = 0.0, factor: float = 1.0
) -> tuple[Gaussian, Gaussian]:
    """The laws behind ``tuned_gap``: as trained, and as deployed."""
    process, law = control.process, control.law
    model = law.model(process)
    mean, cov = prior_moments(model)
    if grid is None:
        c = process(1.0)
        rho = float(c.sigma / c.alpha) if float(c.alpha) > 0 else PURE_NOISE
        scale = float(c.alpha) if float(c.alpha) > 0 else float(c.sigma) / PURE_NOISE
        start = Gaussian(mean / scale, cov / scale**2)
        return control.trained_law(Gaussian(mean, cov)), control.deployed_law(start, rho, eta_deploy, factor)
    kernels = affine_kernels(model, GDDIM(control.eta), grid)
    limit = path_kl_limit(kernels, (mean, cov), control.reward, control.beta)
    assert limit.kernels is not None
    tuned = tuned_model(model, grid, kernels, limit.kernels)
    base = model.net

    def scaled(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return torch.lerp(base(x, t, cond), tuned.net(x, t, cond), factor)

    deployed = affine_kernels(dataclasses.replace(model, net=scaled), GDDIM(eta_deploy), grid)
    return limit.law, chain_law(deployed, mean, cov)


def reach(data: Mixture) -> float:
    """Half-width of an interval about 0 that holds all of the law but 1e-15."""
    return float((data.means.abs() + 9 * data.eigenvalues.amax(-1, keepdim=True).sqrt()).max())


def _gaussian_end(process: Process, data: Gaussian, eta: float, grid: Grid | None) -> Gaussian:
    if grid is None:
        return untuned_law(process, data, eta)
    model = data.model(process)
    return chain_law(affine_kernels(model, GDDIM(eta), grid), *prior_moments(model))


def _start(process: Process, data: Mixture) -> tuple[Mixture, Gaussian]:
    """The noised data at t = 1, and the prior."""
    c = process(1.0)
    return data.noised(float(c.alpha), float(c.sigma)), Gaussian(0.0, process.prior_std**2)


def _flow_reward(process: Process, data: Mixture, reward: Score) -> float:
    """``E r(F_0^{-1}(F_T(X)))``, X from the prior."""
    noised, prior = _start(process, data)
    return integrate(lambda x: reward(quantile(data, noised, x)), prior)


def _sde_reward(process: Process, data: Mixture, reward: Score, eta: float, steps: int = 200) -> float:
    """``E_{p_0} r + int (prior - p_T) u``, u by Richardson extrapolation over the steps."""
    noised, prior = _start(process, data)
    exact = integrate(reward, data)
    mismatch = []
    for n in (steps, 2 * steps):
        chain = Line(data.model(process), GDDIM(eta), geometric_grid(process, n), reach(data))
        u = chain.conditional(reward)
        mismatch.append(integrate(u, prior) - integrate(u, noised))
    return exact + 2 * mismatch[1] - mismatch[0]
