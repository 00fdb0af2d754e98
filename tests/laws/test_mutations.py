"""Deliberate defects in processes, predictions, kernels, samplers and grids, and the law that notices each.

Wrong signs, dropped factors, swapped ends, off-by-one indices: ``mutation.check`` edits one formula in place and
asserts that its law fails.
"""

import pytest

from girsanov import grids, predictions, reductions
from girsanov.kernels import Kernel
from girsanov.processes import VE, VP, Cosine, Process, RectifiedFlow, Schedule, VPTable
from girsanov.samplers import (
    CPS,
    GDDIM,
    DanceSDE,
    DPMSolverPP2M,
    Euler,
    EulerMaruyama,
    FlowSDE,
    Heun,
    MemorylessFlow,
    base,
    euler_maruyama,
    plan,
)
from tests.laws import test_grids as grid_laws
from tests.laws import test_kernels as kernel_laws
from tests.laws import test_predictions as prediction_laws
from tests.laws import test_processes as process_laws
from tests.laws import test_sampler_moments as moment_laws
from tests.laws import test_samplers as sampler_laws
from tests.laws.cases import EVERY_PROCESS
from tests.laws.mutation import Mutation, check, mutants

FLOW = RectifiedFlow()


def derivatives(name: str) -> object:
    return lambda: process_laws.check_derivatives(EVERY_PROCESS[name])


def forward_sde() -> None:
    process_laws.check_forward_sde(EVERY_PROCESS["vp"])


def inverse(name: str) -> object:
    return lambda: process_laws.check_inverse(EVERY_PROCESS[name])


def conversions() -> None:
    prediction_laws.check_conversions(EVERY_PROCESS["cosine"])


def marginals(sampler: object, process: Process = FLOW) -> object:
    return lambda: sampler_laws.check_marginals(sampler, process)


def order(sampler: object, process: str = "cosine") -> object:
    return lambda: moment_laws.check_order(sampler, EVERY_PROCESS[process])


def gain() -> None:
    sampler_laws.test_gain_and_x0("gddim-2", "cosine")


def aliases() -> None:
    sampler_laws.test_aliases(0.7, 0.55)


def trailing() -> None:
    grid_laws.test_trailing(10, [999, 899, 799], [199, 99])


def leading() -> None:
    grid_laws.test_leading(1)


published = sampler_laws.check_published

MUTATIONS = [
    # processes
    Mutation(RectifiedFlow, "_schedule", "-torch.ones_like(t)", "torch.ones_like(t)", derivatives("rectified-flow")),
    Mutation(Cosine, "_schedule", "-h * sigma", "-sigma", derivatives("cosine")),
    Mutation(VP, "_schedule", "-alpha * d_alpha / sigma", "alpha * d_alpha / sigma", derivatives("vp")),
    Mutation(VP, "_schedule", "0.5 * slope * t**2", "slope * t**2", derivatives("vp")),
    Mutation(VP, "time_of_rho", "2 * (self.beta_max", "(self.beta_max", inverse("vp")),
    Mutation(VE, "time_of_rho", "rho / self.sigma_max", "rho * self.sigma_max", inverse("ve")),
    Mutation(VPTable, "_schedule", "alpha**3, d_rho", "alpha, d_rho", derivatives("vp-table")),
    Mutation(VPTable, "_schedule", "-slope * torch.exp(-inner)", "-slope * torch.exp(inner)", derivatives("vp-table")),
    Mutation(VPTable, "time_of_rho", "knots[j - 1] +", "knots[j] +", inverse("vp-table")),
    Mutation(Schedule, "wronskian", "- self.sigma", "+ self.sigma", forward_sde),
    Mutation(Process, "g2", "2 * c.sigma", "c.sigma", forward_sde),
    Mutation(Process, "f", "/ c.alpha", "* c.alpha", forward_sde),
    # predictions
    Mutation(predictions, "affine_map", "a_new * b - b_new * a", "a_new * b + b_new * a", conversions),
    Mutation(predictions, "affine_map", "b_new * c.alpha - a_new * c.sigma", "b_new * c.alpha", conversions),
    Mutation(predictions, "affine_map", "c.alpha * b - c.sigma * a", "c.alpha * b + c.sigma * a", conversions),
    Mutation(predictions, "combine", "x * scale(c_x, x)", "x * scale(c_p, x)", conversions),
    # kernels and sums
    Mutation(Kernel, "log_prob", "0.5 * d", "1.0 * d", kernel_laws.check_log_prob),
    Mutation(Kernel, "log_prob", 'd = 1 if reduce == "mean" else', "d =", kernel_laws.check_log_prob),
    Mutation(Kernel, "log_ratio", "/ variance", "/ (2 * variance)", kernel_laws.check_log_ratio),
    Mutation(Kernel, "kl", "0.5 *", "1.0 *", kernel_laws.check_kl),
    Mutation(Kernel, "_variance", "** 2", "** 1", kernel_laws.check_kl),
    Mutation(reductions, "_cross_factors", "alpha=0.5", "alpha=1.0", kernel_laws.check_log_ratio),
    Mutation(reductions._Cross, "backward", "(x - mean) * g", "(x - old) * g", kernel_laws.check_log_ratio),
    Mutation(reductions._Cross, "backward", "(old - x) * g", "(x - old) * g", kernel_laws.check_log_ratio),
    Mutation(reductions, "_blockwise", "addcmul_(a, b)", "copy_(a * b)", kernel_laws.test_blocks_add_up),
    # samplers
    Mutation(Euler, "coefficients", "c.sigma + h", "c.sigma - h", order(Euler())),
    Mutation(GDDIM, "coefficients", "self.eta**2)", "self.eta)", marginals(GDDIM(0.5))),
    Mutation(GDDIM, "coefficients", "torch.expm1(2 * self.eta**2", "torch.expm1(self.eta**2", sampler_laws.check_ddpm),
    Mutation(GDDIM, "coefficients", "after.sigma * k", "now.sigma * k", moment_laws.check_recursion),
    Mutation(GDDIM, "coefficients", "return after.alpha", "return now.alpha", moment_laws.check_telescope),
    Mutation(base, "rho_ratio", "after.sigma * now.alpha", "after.sigma * after.alpha", moment_laws.check_recursion),
    Mutation(euler_maruyama, "euler_maruyama", "(2 * c.sigma)", "c.sigma", marginals(EulerMaruyama(1.0))),
    Mutation(euler_maruyama, "euler_maruyama", "+ rate", "- rate", marginals(DanceSDE())),
    Mutation(euler_maruyama, "finite_g2", "2 * now.sigma", "now.sigma", published),
    Mutation(euler_maruyama, "finite_g2", "4 * now.alpha >= after.alpha", "now.alpha >= 0", published),
    Mutation(EulerMaruyama, "coefficients", "self.eta**2", "2 * self.eta**2", aliases),
    Mutation(FlowSDE, "coefficients", "self.a**2 / 2", "self.a**2", published),
    Mutation(DanceSDE, "coefficients", "self.eta**2", "self.eta", published),
    Mutation(CPS, "coefficients", "math.pi * self.eta / 2", "math.pi * self.eta", moment_laws.check_terminal_variances),
    Mutation(MemorylessFlow, "coefficients", "2 * (c.sigma + shift)", "2 * c.sigma", published),
    Mutation(MemorylessFlow, "coefficients", "kappa * c.alpha", "kappa", marginals(MemorylessFlow())),
    Mutation(Heun, "stages", "h / 2)", "h)", sampler_laws.check_heun),
    Mutation(Heun, "stages", "Stage(euler, step.s, share)", "Stage(euler, step.t, share)", order(Heun())),
    Mutation(Heun, "stages", "Stage(euler, step.s", "Stage(x, step.s", order(Heun())),
    Mutation(Heun, "stages", "h.abs() / 2", "h.abs()", sampler_laws.check_heun),
    Mutation(DPMSolverPP2M, "kernel", "(2 * before)", "before", order(DPMSolverPP2M())),
    Mutation(DPMSolverPP2M, "kernel", "scale(-weight, x)", "scale(weight, x)", sampler_laws.check_dpm_solver),
    Mutation(DPMSolverPP2M, "kernel", "History(x0, step.t)", "History(data, step.t)", order(DPMSolverPP2M())),
    Mutation(plan, "_work_out", "b * c.alpha - a * c.sigma", "b * c.alpha + a * c.sigma", gain),
    # grids
    Mutation(grids.Grid, "karras", ")) ** power", ")) ** (power - 1)", grid_laws.check_karras),
    Mutation(grids.Grid, "trailing", ".round().long() - 1", ".round().long() - 2", trailing),
    Mutation(grids.Grid, "leading", "(total // n)", "(total // n - 1)", leading),
]


@mutants(MUTATIONS)
def test_the_law_notices(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


@pytest.mark.parametrize("kind", predictions.ROWS)
def test_every_entry_of_the_table_counts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped sign of b, and of a, in any row of the prediction table is noticed by the conversions."""
    right = predictions.ROWS[kind]
    for signs in ((1, -1), (-1, 1)):
        if kind in ("eps", "score") and signs == (-1, 1) or kind == "x0" and signs == (1, -1):
            continue  # that entry is zero
        monkeypatch.setitem(
            predictions.ROWS, kind, lambda c, f=signs: tuple(k * v for k, v in zip(f, right(c), strict=True))
        )
        with pytest.raises(AssertionError):
            conversions()
        monkeypatch.setitem(predictions.ROWS, kind, right)
    conversions()


def test_a_stale_mutation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="update the mutation"):
        check(Mutation(GDDIM, "coefficients", "no such text", "x", sampler_laws.check_ddpm), monkeypatch)
