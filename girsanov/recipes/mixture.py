r"""A mixture of Gaussians in the plane, tuned to a reward whose exact answer is known; it takes seconds.

The pretrained model is exact (the velocity of the mixture in closed form) plus a small network that starts at zero and
is what is tuned. With ``r(x) = slope . x - curvature |x|^2 / 2`` the law that solves ``max E r - beta KL`` is again a
mixture, ``p_ref exp(r / beta) / Z``. The judge is the divergence from it,

.. math:: KL(p_\theta \| p^*) = -H(p_\theta) - E_\theta[\log p^*]

with the entropy of the samples estimated from distances r_k to the k-th neighbour among n,

.. math:: H = \psi(n) - \psi(k) + \log \pi + \frac2n \sum_i \log r_k(x_i)

Reference: Kozachenko & Leonenko 1987 (the entropy estimate).
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import Tensor, nn

from girsanov.config import Part, make
from girsanov.grids import Grid
from girsanov.items import simulate
from girsanov.methods.base import Method
from girsanov.models import Model, ModelLike
from girsanov.nets import MLPConfig
from girsanov.noise import Noise
from girsanov.problems import Mixture, QuadraticReward, expected_reward, frontier, tilt, tilt_kl
from girsanov.processes import RectifiedFlow
from girsanov.prompts import ClassPrompts, groups_in
from girsanov.recipes.base import Assembled, Metric, Recipe, RunConfig, Samples
from girsanov.rollout import rollout
from girsanov.samplers.base import Sampler
from girsanov.settings import Count, Finite, Natural, Positive, settings
from girsanov.spread import Spread
from girsanov.train import PromptSource, Run, TrainConfig
from girsanov.types import Cond

NEIGHBOUR = 5  # k of the entropy estimate
LOT = 500  # samples that a process draws at a time
EVALUATION_SEED = 1_000_003
PAIR_SEED = 7_000_003

DEFAULTS: dict[str, dict[str, Any]] = {
    "am": {"method": {"grid": {"kind": "uniform", "n": 20}}},
    "ode-am": {"method": {"cost": {"kind": "quadratic", "lam": 1.0}}},
    "draft": {"method": {"truncation": {"kind": "last", "k": 3}}, "train": {"lr": 1e-3, "iterations": 40}},
    "draft-lv": {"train": {"lr": 1e-3, "iterations": 40}},
    "refl": {"train": {"lr": 1e-3, "iterations": 40}},
    "clipped-pg": {"train": {"lr": 1e-3, "iterations": 40}},
    "nft": {"train": {"lr": 1e-3, "iterations": 40}},
    "diffusion-dpo": {"method": {"weight": {"kind": "constant", "beta": 5.0}}, "train": {"iterations": 200}},
}
"""Settings by method. Those without a KL term have no stopping point of their own: a small rate, and few iterations."""


@settings
class MixtureConfig(RunConfig):
    """The plane recipe's configuration.

    Attributes:
        slope, curvature: of the reward ``slope . x - curvature |x|^2 / 2``.
        beta: weight of the KL in the law that is aimed at.
        components: how many Gaussians stand on a circle.
        radius, spread: of the circle, and standard deviation of each Gaussian.
        batch, group_size: samples an iteration, over all processes, and of a group that is compared.
        pairs: for methods that learn from pairs: how many are simulated, judged by the reward at temperature beta.
        width: of the tuned network.
        sampler, grid: what evaluations sample with.
        samples: how many they draw.
    """

    method: Part[Method] = Part("am")
    train: TrainConfig = TrainConfig(iterations=60, lr=5e-3, schedule="cosine")
    slope: tuple[Finite, Finite] = (1.0, 0.5)
    curvature: Finite = 0.0
    beta: Positive = 1.0
    components: Count = 5
    radius: Positive = 2.0
    spread: Positive = 0.35
    batch: Count = 128
    group_size: Count = 16
    pairs: Count = 4096
    width: Count = 64
    sampler: Part[Sampler] = Part("heun")
    grid: Part[Grid] = Part("uniform", {"n": 20})
    samples: Count = 2000
    evaluation_seed: Natural = EVALUATION_SEED


class Corrected(nn.Module):
    """A frozen exact network plus a trainable one."""

    def __init__(self, exact: Any, correction: nn.Module) -> None:
        super().__init__()
        self.exact, self.correction = exact, correction

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """x [B, 2] at times t [B] to velocities [B, 2]."""
        return self.exact(x, t, None) + self.correction(x, t, None)


class MixtureRecipe(Recipe):
    """Tune a mixture of Gaussians in the plane to a quadratic reward, with the exact law as judge."""

    name: ClassVar[str] = "mixture"
    summary: ClassVar[str] = "Gaussians in the plane, a reward with a known answer; seconds"
    config: ClassVar[type[RunConfig]] = MixtureConfig
    methods: ClassVar[Sequence[str]] = tuple(DEFAULTS)
    splits: ClassVar[bool] = True
    threads: ClassVar[int | None] = 1  # small matrices: a second thread waits more than it works, where others run

    def defaults(self, method: str) -> dict[str, Any]:
        """Grids and rates seen to work for each method."""
        return DEFAULTS.get(method, {})

    def build(self, config: MixtureConfig, device: torch.device, accelerator: Any = None) -> Assembled:
        """The exact model, the reward, the method, and the evaluation against the exact law."""
        law, reward = data_law(config), reward_of(config)
        beta = float(config.method.options.get("beta", config.beta))
        target = tilt(law, reward, beta)
        process = RectifiedFlow()
        net = Corrected(
            law.net(process, "velocity"), MLPConfig(shape=(2,), width=config.width, blocks=2).build(config.train.seed)
        )
        policy = config.policy(Model(net.to(device), process, "velocity", (2,)))
        method = make(Method, config.method, reward, process)
        sampler, grid = make(Sampler, config.sampler), make(Grid, config.grid, process)
        source: PromptSource = prompts_of(config, config.batch)
        if method.data != "prompts":
            base, many = policy.view("reference", "rollout"), prompts_of(config, config.pairs).batch(0).to(device)
            source = simulate(
                method.data,
                base,
                sampler,
                grid,
                reward,
                many,
                bt_temperature=beta,
                batch_size=config.batch,
                seed=PAIR_SEED,
            )
        run = Run(policy, method, config.train, source, accelerator)
        spread = Spread(run.reduce)

        def sample(model: ModelLike, n: int, seed: int) -> Samples:
            @torch.no_grad()
            def lot(ids: Tensor) -> Tensor:
                noise = Noise(seed, 0, ids, device=device)
                x_T = model.process.prior(noise.normal((2,), policy.dtype))
                return rollout(model, sampler, grid, x_T, noise=noise, keep=()).x0.cpu()

            return Samples(torch.cat(spread.together(n, LOT, lot)))

        def evaluate(run: Run) -> dict[str, float]:
            x = sample(run.model(), config.samples, config.evaluation_seed).x
            return measure(x, law, target, reward)

        exact = float(expected_reward(target, reward))
        kl = float(tilt_kl(law, reward, beta))
        return Assembled(
            run,
            evaluate,
            sample,
            lambda s: draw(s, law, target, config.radius),
            (
                Metric("reward", "Reward", "high"),
                Metric("judge", "Divergence from the exact law", "low"),
                Metric("diversity", "Diversity (mean distance)"),
                Metric("kl", "KL from the pretrained model"),
            ),
            f"A mixture of {config.components} Gaussians in the plane, tuned to {formula(config)}. The answer is "
            f"known: the pretrained density times exp(reward / {beta:g}), normalised; orange contours show it.",
            {"Exact answer": f"reward {exact:.3f} at a KL of {kl:.3f} from the pretrained model"},
            write,
            best_possible(law, reward),
            pictured=600,
        )


def best_possible(law: Mixture, reward: QuadraticReward) -> list[tuple[float, float]]:
    """The exact reward-KL frontier, from the pretrained law on."""
    found = frontier(law, reward, torch.logspace(2, -1, 60, dtype=torch.float64))
    return [(float(k), float(r)) for k, r in zip(found.kl, found.reward, strict=True)]


def prompts_of(config: MixtureConfig, n: int) -> ClassPrompts:
    """Requests for n samples; there is one prompt."""
    size = config.group_size
    return ClassPrompts(num_classes=1, groups_per_batch=groups_in(n, size), group_size=size, seed=config.train.seed)


def data_law(config: MixtureConfig) -> Mixture:
    """Gaussians on a circle."""
    angle = torch.arange(config.components, dtype=torch.float64) * (2 * math.pi / config.components) + 0.3
    means = config.radius * torch.stack([angle.cos(), angle.sin()], 1)
    covs = config.spread**2 * torch.eye(2, dtype=torch.float64).expand(config.components, 2, 2)
    return Mixture(torch.ones(config.components), means, covs)


def formula(config: MixtureConfig) -> str:
    """The reward as people write it."""
    terms = [(config.slope[0], "x"), (config.slope[1], "y"), (-config.curvature / 2, "(x² + y²)")]
    text = " ".join(f"{'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c):g} '}{name}" for c, name in terms if c)
    return f"the reward {text.removeprefix('+ ') or '0'}"


def reward_of(config: MixtureConfig) -> QuadraticReward:
    """``slope . x - curvature |x|^2 / 2``."""
    return QuadraticReward(config.curvature * torch.eye(2, dtype=torch.float64), torch.tensor(config.slope))


def measure(x: Tensor, law: Mixture, target: Mixture, reward: QuadraticReward) -> dict[str, float]:
    """Reward, divergences from the exact and from the pretrained law, and diversity of samples [n, 2]."""
    points = x.detach().cpu().double()
    surprise = -information(points)
    numbers = {
        "reward": reward(points),
        "judge": surprise - target.log_prob(points),
        "diversity": (points - points.roll(len(points) // 2, 0)).norm(dim=1),
        "kl": surprise - law.log_prob(points),
    }
    means = {name: float(v.mean()) for name, v in numbers.items()}
    errors = {f"{name}_se": float(v.std()) / math.sqrt(len(v)) for name, v in numbers.items()}
    return means | errors


def information(x: Tensor) -> Tensor:
    """Per-sample terms of the entropy estimate of samples [n, 2]: their mean is H, [n]."""
    points = x.numpy()
    distance = cKDTree(points).query(points, NEIGHBOUR + 1)[0][:, -1]
    constant = digamma(len(points)) - digamma(NEIGHBOUR) + math.log(math.pi)
    return torch.from_numpy(constant + 2 * np.log(np.maximum(distance, 1e-12)))


def draw(samples: Samples, law: Mixture, target: Mixture, radius: float) -> bytes:
    """Samples over the contours of the pretrained law (grey) and of the exact answer (coloured), as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    edge = 1.75 * radius
    ticks = torch.linspace(-edge, edge, 160, dtype=torch.float64)
    grid, line = torch.cartesian_prod(ticks, ticks), ticks.numpy()
    for density, colour, width in ((law, "#b9b4aa", 0.8), (target, "#c2571a", 1.1)):
        values = density.log_prob(grid).exp().reshape(160, 160).T.numpy()
        levels = values.max() * np.array([0.05, 0.3, 0.7])
        axes.contour(line, line, values, levels=levels, colors=colour, linewidths=width)
    points = samples.x.cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], s=5, color="#1f4e79", alpha=0.55, linewidths=0)
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def write(samples: Samples, folder: Path) -> None:
    """The samples as one array, ``samples.npy`` [n, 2]."""
    np.save(folder / "samples.npy", samples.x.cpu().numpy())
