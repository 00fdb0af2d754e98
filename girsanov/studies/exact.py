r"""The sampler study on problems with a known answer: exact curves, and what sampling and training measure beside them.

Untuned: data N(0.8, 1.69), ``r = -x^2``, samplers started from the prior, on VE(7) and VP(0.1, 6). Tuned: the same
data on a rectified flow, ``r = -0.75 x^2 + 0.6 x``, beta 0.7; the optimum of the eta-SDE with a path KL, deployed by
the ODE.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from girsanov.deployment import Deployed, deployment_factor
from girsanov.grids import Grid
from girsanov.models import Model, ModelLike
from girsanov.problems.control import OptimalControl
from girsanov.problems.laws import Gaussian
from girsanov.problems.moments import affine_kernels, chain_law, prior_moments
from girsanov.problems.recursions import path_kl_limit, per_step_kl_limit, tuned_model
from girsanov.problems.rewards import QuadraticReward, expected_reward, tilt
from girsanov.processes import VE, VP, Process, RectifiedFlow, VPTable
from girsanov.report.svg import Line
from girsanov.rollout import rollout
from girsanov.samplers.gddim import GDDIM
from girsanov.studies.page import TONES, Plot, Section, Table
from girsanov.theory import gap_bound, memory, reward_gap
from girsanov.theory.gap import tuned_laws

DATA, SQUARE, TUNING, BETA = Gaussian(0.8, 1.69), QuadraticReward(2.0, 0.0), QuadraticReward(1.5, 0.6), 0.7
ETAS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
STEPS = (10, 40)


def sampled_rewards(model: ModelLike, eta: float, grid: Grid, reward: QuadraticReward, n: int, seed: int = 0) -> Tensor:
    """Rewards [n] of samples drawn with noise keyed by the seed; the same starts for every eta."""
    g = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=g)

    start = model.process.prior(noise(torch.empty(n, 1)))
    return reward(rollout(model, GDDIM(eta), grid, start, noise=noise, keep=()).x0)


def untuned(process: Process, name: str, n: int) -> Section:
    """Gap of the exact model against eta: continuous time, steps, samples, bound."""
    model, rows, curves = DATA.model(process), [], dict[str, Line]()
    for eta in ETAS:
        row = {"eta": eta, "continuous": reward_gap(process, DATA, SQUARE, eta).gap}
        row["bound"] = gap_bound(process, DATA, SQUARE, eta)
        for steps in STEPS:
            grid = Grid.uniform(steps)
            row[f"steps_{steps}"] = reward_gap(process, DATA, SQUARE, eta, grid).gap
            difference = sampled_rewards(model, 0.0, grid, SQUARE, n) - sampled_rewards(model, eta, grid, SQUARE, n)
            row[f"sampled_{steps}"] = float(difference.mean())
            row[f"sampled_{steps}_half"] = 1.96 * float(difference.std()) / math.sqrt(n)
        rows.append(row)
    for key, label in (("continuous", "exact, continuous time"), *((f"steps_{s}", f"exact, {s} steps") for s in STEPS)):
        curves[key] = Line(ETAS, [r[key] for r in rows], name=label, style=TONES[len(curves)])
    for s in STEPS:
        halves = [r[f"sampled_{s}_half"] for r in rows]
        style, values = TONES[len(curves)], [r[f"sampled_{s}"] for r in rows]
        curves[f"sampled_{s}"] = Line(ETAS, values, halves, name=f"sampled, {s} steps", style=style, dots=True)
    table = Table(
        ("eta", "continuous", *(c for s in STEPS for c in (f"{s} steps", "sampled", "±")), "bound"),
        [
            [
                f"{r['eta']:g}",
                r["continuous"],
                *(v for s in STEPS for v in (r[f"steps_{s}"], r[f"sampled_{s}"], r[f"sampled_{s}_half"])),
                r["bound"],
            ]
            for r in rows
        ],
        f"E r(ODE) - E r(SDE). Exact network; {n} samples each, the same starts, 95 % intervals.",
    )
    text = (
        "The network is exact; the gap comes from starting at the prior instead of the noised data, and from the "
        "steps. In continuous time the ODE's reward is the higher one here, because it keeps the prior's smaller "
        "spread and mean while the SDE forgets its start. The steps shrink the SDE's variance, the more the larger eta "
        "is, and turn the sign.",
    )
    plot = Plot(f"gap-{name}", f"Reward gap on {type(process).__name__}, r = -x²", "eta", list(curves.values()))
    return Section(
        f"untuned-{name}", f"Untuned, {type(process).__name__}", text, [table], [plot], {"rows": rows, "n": n}
    )


def tuned(n: int) -> Section:
    """Rewards after tuning at each eta, deployed by the ODE raw and corrected."""
    process = RectifiedFlow()
    target = float(expected_reward(tilt(DATA, TUNING, BETA), TUNING))
    rows = []
    for eta in ETAS:
        control, c = OptimalControl(DATA, TUNING, BETA, process, eta), deployment_factor(eta, 0.0)
        row: dict[str, float] = {"eta": eta, "c": c}
        for steps in (0, 20, 200):
            grid, tag = (None, "") if steps == 0 else (Grid.uniform(steps), f"_{steps}")
            for name, factor in (("raw", 1.0), ("corrected", c)):
                trained, deployed = tuned_laws(control, grid, 0.0, factor)
                row[f"trained{tag}"] = float(TUNING.expected(trained.mean, trained.cov))
                row[f"{name}{tag}"] = float(TUNING.expected(deployed.mean, deployed.cov))
        row |= measured_tuned(control, Grid.uniform(20), c, n)
        rows.append(row)
    lines = [
        Line(ETAS, [r["trained_20"] for r in rows], name="trained SDE, 20 steps", style=TONES[0]),
        Line(ETAS, [r["raw_20"] for r in rows], name="ODE raw, 20 steps", style=TONES[1]),
        Line(ETAS, [r["corrected_20"] for r in rows], name="ODE corrected, 20 steps", style=TONES[2]),
        Line(ETAS, [r["raw"] for r in rows], name="ODE raw, continuous", style=TONES[3]),
        Line(ETAS, [target] * len(ETAS), name="tilted law (any eta, corrected)", style="line-grey"),
    ]
    table = Table(
        (
            "eta",
            "c",
            "trained",
            "raw",
            "corrected",
            "sampled raw",
            "±",
            "sampled corrected",
            "±",
            "raw, 200",
            "corr., 200",
        ),
        [
            [
                f"{r['eta']:g}",
                r["c"],
                r["trained_20"],
                r["raw_20"],
                r["corrected_20"],
                r["sampled_raw"],
                r["sampled_raw_half"],
                r["sampled_corrected"],
                r["sampled_corrected_half"],
                r["raw_200"],
                r["corrected_200"],
            ]
            for r in rows
        ],
        f"E r at 20 steps (last columns: 200). The tilted law has {target:.4f}. {n} samples each, 95 % intervals.",
    )
    text = (
        "A policy trained with the eta-SDE and a path KL, to its optimum. Deployed by the ODE as it is, only eta = 1 "
        "gives the tilted law: above it the reward falls short, below it the policy overshoots. Scaling what was "
        "learned by c = (1 + eta²) / 2 mends it, exactly in continuous time and up to the grid's own error with steps.",
    )
    plot = Plot("tuned-flow", "Reward after tuning at eta, rectified flow", "eta of training", lines)
    return Section(
        "tuned-exact", "Tuned, exact optimum", text, [table], [plot], {"rows": rows, "target": target, "n": n}
    )


def measured_tuned(control: OptimalControl, grid: Grid, c: float, n: int) -> dict[str, float]:
    """The grid's optimum as a network, sampled by the ODE raw and scaled by c."""
    model = control.law.model(control.process)
    kernels = affine_kernels(model, GDDIM(control.eta), grid)
    limit = path_kl_limit(kernels, prior_moments(model), control.reward, control.beta)
    assert limit.kernels is not None
    policy, row = tuned_model(model, grid, kernels, limit.kernels), {}
    for name, factor in (("raw", 1.0), ("corrected", c)):
        r = sampled_rewards(Deployed(policy, model, factor), 0.0, grid, control.reward, n)
        row[f"sampled_{name}"] = float(r.mean())
        row[f"sampled_{name}_half"] = 1.96 * float(r.std()) / math.sqrt(n)
    return row


def per_step() -> Section:
    """The same tuning with a KL a step instead of the path KL: another optimum, for which no factor is exact."""
    model, grid, rows = DATA.model(RectifiedFlow()), Grid.uniform(160), []
    start = prior_moments(model)

    def mean_reward(tuned: Model, factor: float) -> float:
        law = chain_law(affine_kernels(Deployed(tuned, model, factor), GDDIM(0.0), grid), *start)
        return float(TUNING.expected(law.mean, law.cov))

    for eta in ETAS:
        kernels, c = affine_kernels(model, GDDIM(eta), grid), deployment_factor(eta, 0.0)
        row: dict[str, float] = {"eta": eta, "c": c}
        for name, limit_of in (("path", path_kl_limit), ("step", per_step_kl_limit)):
            limit = limit_of(kernels, start, TUNING, BETA)
            assert limit.kernels is not None
            tuned = tuned_model(model, grid, kernels, limit.kernels)
            row[f"{name}_trained"] = float(TUNING.expected(limit.law.mean, limit.law.cov))
            row[f"{name}_raw"], row[f"{name}_corrected"] = mean_reward(tuned, 1.0), mean_reward(tuned, c)
        rows.append(row)
    keys = [f"{name}_{what}" for name in ("path", "step") for what in ("trained", "raw", "corrected")]
    table = Table(
        ("eta", "path: trained", "ODE raw", "ODE corrected", "per step: trained", "ODE raw", "ODE corrected"),
        [[f"{r['eta']:g}", *(r[k] for k in keys)] for r in rows],
        "E r of the exact fixed points on 160 uniform steps.",
    )
    text = (
        "Published policy gradients put a KL on every step and leave it out of the advantage. Their fixed point is not "
        "the optimum of the path KL, what they learn is no multiple of grad log h, and the factor has no claim on it: "
        "the ODE misses the trained reward at eta = 1 too, where c = 1. The table says where it still "
        "brings the ODE nearer to what was trained.",
    )
    return Section("per-step", "A KL a step instead of the path KL", text, [table], (), {"rows": rows})


def memories() -> Section:
    """How much of its start the untuned sampler remembers, and from where on scaling for the ODE does harm."""
    processes = {"rectified flow": RectifiedFlow(), "VP": VP(), "SD table": VPTable.stable_diffusion(), "VE(80)": VE()}
    rows, shown = list[dict[str, float | None]](), list[list[str | float]]()
    for eta in ETAS:
        c = deployment_factor(eta, 0.0)
        limit = (1 - c) / (1 + c) if c < 1 else None
        kept = {name: memory(process, eta) for name, process in processes.items()}
        rows.append({"eta": eta, "c": c, "limit": limit, **kept})
        shown.append([f"{eta:g}", c, *kept.values(), "any" if limit is None else f"below {limit:.2f}"])
    note = "Correlation of start and end from t = 1, data of unit standard deviation."
    table = Table(("eta", "c to the ODE", *processes, "correct if"), shown, note)
    return Section("memory", "Memory of the start", (), [table], (), {"rows": rows})


def exact_sections(fast: bool) -> Sequence[Section]:
    """All exact parts; fast takes a tenth of the samples."""
    n = 2000 if fast else 20000
    return [untuned(VE(7.0), "ve", n), untuned(VP(0.1, 6.0), "vp", n), tuned(n), per_step(), memories()]
