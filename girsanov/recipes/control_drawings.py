"""Charts of a control run: value, policy and occupation, learned and exact."""

import io

import torch
from torch import Tensor

from girsanov.control.environments import Environment
from girsanov.control.environments.pairs import PairsSolution
from girsanov.control.hjb import HJB
from girsanov.control.lattice import Axis, Lattice
from girsanov.control.linear_quadratic import LQSolution
from girsanov.control.occupation import occupy, starts
from girsanov.control.policies import Actor
from girsanov.control.solution import Solution
from girsanov.noise import Noise
from girsanov.recipes.base import Drawing
from girsanov.report.svg import Line
from girsanov.train import Run

SEED, STATES, POINTS, BINS = 30_000_003, 4000, 61, 40
TAIL = 0.005  # share of the states beyond either end of the charts


def exact_actor(exact: Solution, environment: Environment) -> Actor:
    """The best policy, as something that acts."""

    def net(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = exact.policy(x)
        return mean, torch.linalg.cholesky(covariance)

    return Actor(net, environment.state_dim, environment.action_dim)


@torch.no_grad()
def drawings(run: Run, environment: Environment, exact: Solution) -> list[Drawing]:
    """The charts of a run: value and policy along the states that the policy looks at, the occupation of all."""
    from girsanov.control.agents import Agent

    actor, best, method = run.model(), exact_actor(exact, environment), run.method
    assert isinstance(actor, Actor) and isinstance(method, Agent)
    device, n = run.policy.device, environment.state_dim
    learned = occupy(environment, actor, Noise(SEED, 0, torch.arange(STATES), device=device)).cpu()
    right = occupy(environment, best, Noise(SEED, 0, torch.arange(STATES), device=device)).cpu()
    names = environment.states
    ends = [tuple(float(torch.quantile(right[:, i], q)) for q in (TAIL, 1 - TAIL)) for i in range(n)]
    made = list[Drawing]()
    for i in getattr(run.policy.net, "sees", None) or range(n):
        points = torch.linspace(*ends[i], POINTS, dtype=torch.float64)
        x = right.mean(0).expand(POINTS, -1).clone()
        x[:, i] = points
        if run.done:
            value = method.value(run.state)(x.to(device)).cpu()
            made.append(value_chart(points, value, exact.value(x), names[i]))
        made += policy_charts(points, actor, best, x, device, names[i])
    for i, (low, high) in enumerate(ends):
        lines = occupation_lines(learned[:, i], right[:, i], (low, high))
        if n == 1:
            lines[0] = exact_density(environment, best, (low, high))
        made.append(
            Drawing(
                f"Occupation: {names[i]}" if n > 1 else "Occupation",
                names[i],
                lines,
                moments(exact, i, learned[:, i], right[:, i]),
            )
        )
    return made


def value_chart(points: Tensor, value: Tensor, right: Tensor, name: str) -> Drawing:
    """V of the critic and of the best policy."""
    x = points.tolist()
    lines = [
        Line(x, right.tolist(), name="exact, of the best policy", style="line-b"),
        Line(x, value.tolist(), name="learned", style="line-a"),
    ]
    off = float((value - right).abs().max() / (right.max() - right.min()))
    return Drawing("Value", name, lines, f"Largest difference: {100 * off:.1f} % of the range shown.")


def policy_charts(
    points: Tensor, actor: Actor, best: Actor, x: Tensor, device: torch.device, name: str
) -> list[Drawing]:
    """Mean of the first action, with a band of one standard deviation, and that deviation by itself."""
    means, stds, t = list[Line](), list[Line](), points.tolist()
    for who, law, style in (("exact", best(x), "line-b"), ("learned", actor(x.to(device)), "line-a")):
        std = law.covariance[..., 0, 0].sqrt().expand(len(x)).tolist()
        means.append(Line(t, law.mean[:, 0].tolist(), std, f"{who}, ± one std", style))
        stds.append(Line(t, std, name=who, style=style))
    return [
        Drawing("Policy: mean of the action", name, means, "The bands are one standard deviation of the action."),
        Drawing("Policy: standard deviation", name, stds),
    ]


def occupation_lines(learned: Tensor, right: Tensor, ends: tuple[float, float]) -> list[Line]:
    """Where the discounted time is spent, as histograms of states: under the best policy and under the learned one."""
    edges, width = torch.linspace(*ends, BINS + 1, dtype=torch.float64), (ends[1] - ends[0]) / BINS
    x = ((edges[1:] + edges[:-1]) / 2).tolist()
    shown = {"best policy, samples": (right, "line-b"), "learned policy, samples": (learned, "line-a")}
    return [Line(x, density(states, ends, width), name=name, style=style) for name, (states, style) in shown.items()]


def density(states: Tensor, ends: tuple[float, float], width: float) -> list[float]:
    """Histogram of states [B] as a density."""
    return (torch.histc(states, BINS, *ends) / (len(states) * width)).tolist()


def exact_density(environment: Environment, best: Actor, ends: tuple[float, float]) -> Line:
    """The density of the discounted occupation time of a policy, normalised, from the chain on a grid."""
    middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    axis = Axis(middle - 4 * half, middle + 4 * half, 1601)

    def policy(x: Tensor) -> tuple[Tensor, Tensor]:
        law = best(x)
        return law.mean, law.covariance

    solved = HJB(environment, Lattice((axis,))).evaluate(policy)
    mass = solved.occupation(starts(environment, Noise(SEED, 1, torch.arange(STATES)), torch.float64))
    inside = (axis.points >= ends[0]) & (axis.points <= ends[1])
    values = mass * environment.discount / axis.h
    points, density = axis.points[inside][::4].tolist(), values[inside][::4].tolist()
    return Line(points, density, name="best policy, exact", style="line-b")


def moments(exact: Solution, i: int, learned: Tensor, right: Tensor) -> str:
    """Mean and standard deviation of a state: of the learned policy, and of the best one (exact where it is known)."""
    mean, std, source = float(right.mean()), float(right.std()), "samples"
    known = exact.reduced if isinstance(exact, PairsSolution) else exact
    if isinstance(known, LQSolution) and i < known.problem.n:
        o, source = known.occupation, "exact"
        mean = float(o.L1[i] / o.L0)
        std = float((o.L2[i, i] / o.L0 - mean**2).sqrt())
    return (
        f"Mean {float(learned.mean()):.3f}, standard deviation {float(learned.std()):.3f}; of the best policy "
        f"({source}) {mean:.3f} and {std:.3f}. {len(learned)} samples."
    )


def draw_states(x: Tensor, environment: Environment) -> bytes:
    """States [B, n] as PNG: a histogram, or a scatter of the first two of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes, points = figure.add_subplot(), x.cpu().numpy()
    if x.shape[1] == 1:
        low, high = (float(torch.quantile(x.cpu(), q)) for q in (TAIL, 1 - TAIL))
        axes.hist(points[:, 0], bins=60, range=(low, high), color="#1f4e79", density=True)
        axes.set(xlabel=environment.states[0], ylabel="share of discounted time")
    else:
        axes.scatter(points[:, 0], points[:, 1], s=4, color="#1f4e79", alpha=0.4, linewidths=0)
        axes.set(xlabel=environment.states[0], ylabel=environment.states[1])
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
