r"""Spreads of single rates q and of gradients at several dt, from the exact value, beside ``girsanov.control.rates``.

A single published rate scatters like ``|sigma' grad V| / sqrt(dt)``; the gradient of a whole path does not, because its
noise is a stochastic integral; the gradient from one state a path does.
"""

import math

import torch
from torch import Tensor

from girsanov.control import LQ, AffinePolicy
from girsanov.control.occupation import Discounted, Exponential, OccupationSampler, Paths, simulate, starts
from girsanov.control.policies import AffineActor
from girsanov.control.rates import RATES
from girsanov.control.values import QuadraticValue
from girsanov.distributed import Reduce
from girsanov.noise import Noise
from girsanov.report.svg import Line
from girsanov.studies.page import TONES, Plot, Section, Table

STEPS = (0.2, 0.1, 0.05, 0.02, 0.01)
HORIZON = 5.0  # of a path, in units of 1 / discount


def scatter(dt: float, copies: int) -> dict[str, float]:
    """Spread of single rates around the exact q, and of the slope's gradient from one path, at one dt."""
    env = LQ(dt=dt)
    start = AffinePolicy.scalar(-0.3, -0.4, 0.25)
    exact = env.chain().evaluate(start)
    actor = AffineActor(slope=((-0.3,),), offset=(-0.4,), std=0.5).build(env)
    noise = Noise(0, 0, torch.arange(copies))
    uniform, value = noise.uniform(), QuadraticValue.of(exact.V)
    weight = Discounted(HORIZON).weights(env, uniform)
    with torch.no_grad():
        paths = simulate(
            env, actor, starts(env, noise, torch.float64), noise.normal((weight.shape[1], 2), torch.float64)
        )
    x, a = paths.flat
    q, found = exact.q(x, a).view_as(weight), dict[str, float]()
    for name in ("td", "centred", "generator"):
        rate = RATES[name]()(env, paths, value, weight, Reduce())
        found[name] = float(average((rate - q).square(), weight).sqrt())
        found[f"gradient_{name}"] = float(gradients(env, paths, rate, Discounted(HORIZON), uniform).std())
        found[f"one_{name}"] = float(gradients(env, paths, rate, Exponential(), uniform).std())
    push = (env.diffusion(x, a)[:, :, 0] * value.gradient(x)).sum(1).view_as(weight)
    found["predicted"] = float((average(push.square(), weight) / dt).sqrt())
    return found


def average(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the occupation time."""
    return (weight * values).sum() / weight.sum()


def gradients(env: LQ, paths: Paths, rate: Tensor, sampler: OccupationSampler, uniform: Tensor) -> Tensor:
    """The gradient in the slope from each path, [B]: ``sum_k w_k (a - mu) x / S (q + gamma H)``."""
    score = ((paths.a.flatten(0, 1) - paths.law.mean) / paths.law.covariance.view(-1, 1))[:, 0].view_as(rate)
    weight = sampler.weights(env, uniform)
    steps = min(weight.shape[1], rate.shape[1])
    signal = score * paths.states[:, :, 0] * (rate + env.entropy * paths.entropy)
    return (weight[:, :steps] * signal[:, :steps]).sum(1)


def variance_section(fast: bool) -> Section:
    """Measured spreads beside what the formulas say."""
    steps, copies = (STEPS[:3:2], 200) if fast else (STEPS, 4000)
    rows = [{"dt": dt, **scatter(dt, copies)} for dt in steps]
    keys = (
        "td",
        "predicted",
        "centred",
        "generator",
        "gradient_td",
        "gradient_centred",
        "gradient_generator",
        "one_td",
    )
    table = Table(
        ("dt", "td", "(formula)", "centred", "generator", "path: td", "centred", "generator", "one state: td"),
        [[f"{r['dt']:g}", *(r[k] for k in keys)] for r in rows],
        f"Standard deviations, {copies} paths, exact value of a fixed policy. First of single rates around the exact q "
        "(formula: root of E |sigma' grad V|² / dt), then of the slope's gradient from one path: all its steps, and "
        "one state drawn from the occupation time.",
    )
    shown = {"td": "single q, td", "centred": "single q, centred", "gradient_td": "gradient of a path, td"}
    shown |= {"one_td": "gradient from one state, td"}
    x = [-math.log10(r["dt"]) for r in rows]
    lines = [
        Line(x, [math.log10(r[key]) for r in rows], name=label, style=TONES[i], dots=True)
        for i, (key, label) in enumerate(shown.items())
    ]
    first, last = rows[0], rows[-1]
    grown = {key: last[key] / first[key] for key in first}
    text = (
        f"From dt = {first['dt']:g} to {last['dt']:g} the spread of a single td rate grows by a factor "
        f"{grown['td']:.2f} (root of the ratio of the steps: {grown['dt'] ** -0.5:.2f}), that of a centred one by "
        f"{grown['centred']:.2f}. The gradient of a whole path with td rates changes by a factor "
        f"{grown['gradient_td']:.2f} only: its noise is a stochastic integral. That from one state grows by "
        f"{grown['one_td']:.2f}.",
    )
    plot = Plot("timestep-variance", "log10 of the spread", "log10 of 1 / dt", lines)
    return Section("variance", "What shrinks and what grows with dt", text, [table], [plot], {"rows": rows})
