"""Named members of the policy-gradient family: each is a point of one composition and differs from its neighbour."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.grids import Grid
from girsanov.methods import METHODS
from girsanov.methods.advantages import Clipped, GlobalStd, GroupNormalised, LeaveOneOut
from girsanov.methods.base import Turn
from girsanov.methods.policy_gradient import SCHEDULES, ClippedPG, nodes
from girsanov.methods.policy_gradient.branch import BranchGRPO
from girsanov.methods.policy_gradient.credit import StepLength
from girsanov.methods.policy_gradient.ddpo import DDPO, DPOK, DDPOScoreFunction
from girsanov.methods.policy_gradient.flash import Compressed
from girsanov.methods.policy_gradient.grpo import DanceGRPO, FlowGRPO, FlowGRPOFast, MixGRPO, MixGRPOFlash
from girsanov.methods.policy_gradient.nodes import BestChild, Extremes, LikelihoodFusion, fuse
from girsanov.methods.policy_gradient.paths import Chains
from girsanov.methods.policy_gradient.penalty import PathKL, PerStepKL
from girsanov.methods.policy_gradient.remedies import PCPO, FlowDPPO, GRPOGuard, RSMHinge, TempFlowGRPO
from girsanov.methods.policy_gradient.steps import AllSteps, PrunedSteps
from girsanov.methods.policy_gradient.trees import Trees
from girsanov.methods.policy_gradient.windows import (
    DecayingWindow,
    ExponentialWindow,
    RandomWindow,
    SlidingWindow,
    Window,
)
from girsanov.policy import Policy
from girsanov.problems import Gaussian, QuadraticReward, affine_kernels, end_law, per_step_kl_limit
from girsanov.processes import RectifiedFlow
from girsanov.samplers import GDDIM, DPMSolverPP2M, Euler, FlowSDE, Mixed
from girsanov.surrogates import Clip, ScoreFunction
from tests.laws.correction import PLANE, FastTurn, collect, descend, gradient, requests, tunable
from tests.laws.mutation import Mutation, check, mutants

GRID = Grid.uniform(6)
REWARD = QuadraticReward([[0.5, 0.2], [0.2, 0.8]], [0.6, -0.3])
MEMBERS = {name: cls for name, cls in METHODS.items() if issubclass(cls, ClippedPG) and cls is not ClippedPG}


def policy() -> Policy:
    return tunable(PLANE.model(RectifiedFlow()), GRID, scale=0.2)


def made(cls: type[ClippedPG], **changes: object) -> ClippedPG:
    return cls(reward=REWARD, grid=GRID, **changes)


def second(method: ClippedPG, tuned: Policy) -> Tensor:
    """The gradient at a second update: after the anchor, with moved weights."""
    batch = method.anchor(tuned, collect(method, tuned, requests(32, 8)), {})
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.01 * torch.randn(p.shape, dtype=p.dtype, generator=g))
    return gradient(tuned, method, batch)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_a_composition(name: str) -> None:
    """Its parts in a plain ClippedPG give the same gradient to the bit: a member adds no code."""
    member = made(MEMBERS[name])
    parts = {f.name: getattr(member, f.name) for f in dataclasses.fields(member)}
    assert torch.equal(second(member, policy()), second(ClippedPG(**parts), policy()))
    assert not set(vars(MEMBERS[name])) & {"collect", "losses", "anchor", "_step"}


NEIGHBOURS = [
    (DDPO, DDPOScoreFunction),
    (DDPOScoreFunction, DPOK),
    (DDPO, FlowGRPO),
    (FlowGRPO, FlowGRPOFast),
    (FlowGRPO, DanceGRPO),
    (FlowGRPO, GRPOGuard),
    (FlowGRPO, PCPO),
    (FlowGRPOFast, TempFlowGRPO),
    (FlowGRPO, FlowDPPO),
    (FlowGRPO, RSMHinge),
    (FlowGRPOFast, MixGRPO),
    (MixGRPO, MixGRPOFlash),
    (DanceGRPO, BranchGRPO),
]


@pytest.mark.parametrize("pair", NEIGHBOURS, ids=lambda p: f"{p[0].__name__}-{p[1].__name__}")
def test_neighbours_differ_on_the_same_requests(pair: tuple[type[ClippedPG], type[ClippedPG]]) -> None:
    grid = Grid.uniform(9)  # enough steps after the window for a multistep solver to differ from Euler
    a, b = (second(cls(reward=REWARD, grid=grid), tunable(PLANE.model(RectifiedFlow()), grid, 0.2)) for cls in pair)
    assert float((a - b).norm() / a.norm()) > 1e-3


def first(method: ClippedPG) -> Tensor:
    tuned = policy()
    return gradient(tuned, method, collect(method, tuned, requests(32, 8)))


def by_step(flat: Tensor) -> Tensor:
    """Gradient of the shifts of each grid time, [T + 1, 2]."""
    return flat[: 2 * len(GRID.ts)].view(-1, 2)


@pytest.mark.parametrize("cls", [GRPOGuard, PCPO])
def test_the_published_factor_of_each_step(cls: type[ClippedPG]) -> None:
    """First update, no KL: Flow-GRPO's gradient times ``std / |dt|``, or ``|dt| std / |gain|``, step by step."""
    plain, other = by_step(first(made(FlowGRPO, kl=None))), by_step(first(made(cls, kl=None)))
    for step in list(GRID)[:-1]:
        kernel = FlowSDE(0.7).kernel(PLANE.model(RectifiedFlow()), torch.zeros(1, 2, dtype=torch.float64), step)[0]
        h, std, gain = (float(v) for v in (step.h.abs(), kernel.std, kernel.gain.abs()))
        factor = std / h if cls is GRPOGuard else h * std / gain
        torch.testing.assert_close(other[step.i], factor * plain[step.i], rtol=1e-9, atol=1e-12)


def test_tempflow_weighs_its_step_with_the_noise() -> None:
    """One noisy step an iteration, the group's samples from one noise, gradient times 2.25 std."""
    method = made(TempFlowGRPO, kl=None)
    even = dataclasses.replace(method, weight=FlowGRPO(reward=REWARD).weight)
    tuned = policy()
    batch = collect(method, tuned, requests(32, 8))
    assert len(batch.parts) == 1
    (part,) = batch.parts
    alike = part.tr.x_t.view(4, 8, 2)
    assert bool((alike == alike[:, :1]).all()) and not torch.equal(alike[0], alike[1])
    torch.testing.assert_close(
        gradient(tuned, method, batch), 2.25 * float(part.tr.std) * gradient(tuned, even, batch), rtol=1e-10, atol=0
    )
    steps = {collect(method, tuned, requests(4, 4), Turn(0, i)).parts[0].tr.step.i for i in range(60)}
    assert steps == set(range(5))


@pytest.mark.parametrize("cls", [FlowDPPO, RSMHinge])
def test_other_clips_start_with_the_gradient_of_flow_grpo(cls: type[ClippedPG]) -> None:
    same = {"kl": None, "sampler": FlowSDE(0.7), "steps": FlowGRPO(reward=REWARD).steps}
    torch.testing.assert_close(first(made(cls, **same)), first(made(FlowGRPO, kl=None)), rtol=1e-12, atol=0)


def test_dance_draws_one_start_a_group_and_trains_its_share_of_the_steps() -> None:
    method = made(DanceGRPO)
    batch = collect(method, policy(), requests(16, 8))
    assert len(batch.parts) == 3 and max(p.tr.step.i for p in batch.parts) < 5  # 0.6 of 5, the last left out
    assert method.kl is None and method.advantage == Clipped(GroupNormalised(1e-8), 5.0)
    assert made(FlowGRPO).advantage == Clipped(GlobalStd(1e-4), 5.0)


def test_the_kl_of_flow_grpo_has_no_dt() -> None:
    """``|mu - mu_ref|^2 / (2 sigma_t^2)`` with ``sigma_t^2 = std^2 / |dt|``, the mean over dimensions, as published."""
    tuned = policy()
    method = made(FlowGRPO)
    batch = collect(method, tuned, requests(8, 8))
    for part, chunk in zip(batch.parts, method.losses(tuned, batch, {}), strict=True):
        mean, h = part.kernel(tuned.view()).mean, part.tr.step.h.abs()
        want = (mean - part.reference).square().mean(1) / (2 * part.tr.std**2 / h)
        got = chunk.metrics["kl"] * h
        torch.testing.assert_close(got, want.mean(), rtol=1e-10, atol=0)
        bare = dataclasses.replace(method, kl=None)
        (alone,) = (c.loss for c, p in zip(bare.losses(tuned, batch, {}), batch.parts, strict=True) if p is part)
        torch.testing.assert_close((chunk.loss - alone) * len(batch.parts), 0.04 * want.mean(), rtol=1e-8, atol=1e-12)


# ---- trees


def tree(**changes: object) -> ClippedPG:
    parts = {"sampler": GDDIM(1.0), "advantage": GroupNormalised(0.0), "paths": Trees((0.0, 0.2, 0.4))}
    return ClippedPG(**{"reward": REWARD, "grid": GRID, "steps": AllSteps(leave=0), **parts, **changes})


def test_a_tree_has_its_leaves_its_credit_and_its_own_scale_at_every_depth() -> None:
    """Three binary splits make 8 leaves; a node's reward is the mean of its leaves; each depth has mean 0 and std 1."""
    batch = collect(tree(), policy(), requests(32, 16))
    assert batch.reward.shape == (4, 8) and len(batch) == 4
    assert [len(p.advantage) for p in batch.parts] == [8, 16, 32, 32, 32]
    for part in batch.parts:
        nodes = batch.reward.reshape(len(part.advantage), -1).mean(1)
        depth = nodes.view(2, -1)
        want = (depth - depth.mean(1, keepdim=True)) / depth.std(1, correction=0, keepdim=True)
        torch.testing.assert_close(part.advantage.view(2, -1), want, rtol=1e-9, atol=1e-12)
        a = part.advantage.view(2, -1)
        assert float(a.mean(1).abs().max()) < 1e-12 and float((a.std(1, correction=0) - 1).abs().max()) < 1e-12
    published = Trees()
    assert published.leaves(requests(32, 16)) == (16, 4)
    assert [int(s * 20) for s in published.splits] == [0, 3, 6, 9]


def test_a_branch_starts_where_its_parent_was_and_the_first_leaf_is_the_chain() -> None:
    tuned, prompts = policy(), requests(16, 8)
    grown, chains = (collect(tree(paths=p), tuned, prompts) for p in (Trees((0.0, 0.2, 0.4)), Chains()))
    for k, part in enumerate(grown.parts):
        first = part.tr.x_s.view(2, -1, 2)[:, 0]
        assert torch.equal(first, chains.parts[k].tr.x_s[::8])
        assert len({tuple(x) for x in part.tr.x_s.tolist()}) == len(part.tr.x_s)  # siblings part ways
    before, after = grown.parts[0].tr.x_s, grown.parts[1].tr.x_t
    assert torch.equal(after, before.repeat_interleave(2, 0))
    assert torch.equal(chains.reward[::8], grown.reward[:, 0])


def tree_gradient_is_unbiased() -> None:
    """Trees and chains have the same expected gradient: leave-one-out, 24 batches of 256, seed 0, t of 23 degrees."""
    tuned = policy()
    plain = {"advantage": LeaveOneOut(), "surrogate": ScoreFunction()}
    found = []
    for i in range(24):
        a, b = (
            gradient(tuned, m, collect(m, tuned, requests(256, 8), FastTurn(s, i)))
            for m, s in ((tree(**plain), 0), (tree(**plain, paths=Chains()), 1))
        )
        found.append(a - b)
    values = torch.stack(found)
    spread = values.std(0) / 24**0.5
    used = spread > 0
    assert float((values.mean(0)[used] / spread[used]).abs().max()) < 5


def test_the_gradient_of_trees_is_that_of_chains_in_the_mean() -> None:
    tree_gradient_is_unbiased()


@mutants([Mutation(nodes, "fuse", ".mul(w)", ".mul(2 * w)", tree_gradient_is_unbiased)])
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_rewards_rise_by_the_likelihood_of_the_children() -> None:
    """A loop over the tree: softmax of the siblings' mean log-density at the first step after their split."""
    tuned, prompts = policy(), requests(16, 8)
    method = tree(paths=Trees((0.0, 0.2, 0.4), fusion=LikelihoodFusion()), advantage=LeaveOneOut())
    batch = collect(method, tuned, prompts)
    level, want = batch.reward.flatten(), {16: batch.reward.flatten()}
    for n, k in ((8, 2), (4, 1)):  # splits before steps 2 and 1 of the grid's 5: two children each
        tr = batch.parts[k].tr
        density = [
            -0.5 * float((x - m).square().mean()) / float(tr.std) ** 2 for x, m in zip(tr.x_s, tr.mean, strict=True)
        ]
        fused = []
        for i in range(n):
            odds = [math.exp(density[2 * i + j]) for j in (0, 1)]
            fused.append(sum(w * float(level[2 * i + j]) for j, w in enumerate(odds)) / sum(odds))
        level = want[n] = torch.tensor(fused, dtype=torch.float64)
    for part in batch.parts:
        r = want[len(part.advantage)].view(2, -1)
        others = (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)
        torch.testing.assert_close(part.advantage.view(2, -1), r - others, rtol=1e-6, atol=1e-7)
    nan = float("nan")
    values = torch.tensor([[1.0], [nan], [nan], [nan]])
    assert torch.equal(fuse(values, torch.full((2, 2), 0.5)).nan_to_num(-7.0), torch.tensor([[1.0], [-7.0]]))


@mutants(
    [
        Mutation(
            nodes.LikelihoodFusion,
            "__call__",
            "softmax(1)",
            "softmax(0)",
            lambda: test_rewards_rise_by_the_likelihood_of_the_children(),
        ),
        Mutation(
            PrunedSteps, "__call__", "self.first - min", "self.first + min",
            lambda: test_depths_are_pruned_by_the_published_window(),
        ),
    ]
)  # fmt: skip
def test_mutations_of_trees_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)


def test_pruning_takes_nodes_out_of_the_loss_and_leaves_the_rest_alone() -> None:
    """Best leaf of each last split, or the ends of each tree; a node counts if a leaf below it does."""
    tuned, prompts = policy(), requests(16, 8)
    whole = collect(tree(), tuned, prompts)
    kept = {
        BestChild(): whole.reward.view(2, 4, 2) == whole.reward.view(2, 4, 2).amax(2, keepdim=True),
        Extremes(0.5): torch.stack([(r <= r.sort().values[1]) | (r >= r.sort().values[-2]) for r in whole.reward]),
    }
    for width, want in kept.items():
        splits = tree().paths.splits
        pruned = collect(tree(paths=Trees(splits, width=width)), tuned, prompts)
        assert torch.equal(pruned.reward, whole.reward) and torch.equal(pruned.mask.flatten(), want.flatten())
        for a, b in zip(pruned.parts, whole.parts, strict=True):
            below = want.flatten().view(len(b.advantage), -1).any(1)
            assert torch.equal(a.mask, below) and torch.equal(a.advantage, torch.where(below, b.advantage, 0.0))
    with pytest.raises(GirsanovError, match=r"lies in \(0, 1\], not 2"):
        Extremes(2.0)


def test_depths_are_pruned_by_the_published_window() -> None:
    """Depths 15 .. 18 of 19, one nearer to the splits every 30 iterations, until it starts at 9."""
    prune = PrunedSteps()
    for index in (0, 29, 30, 95, 180, 1000):
        low = 15 - min(index // 30, 15 - 9)
        assert prune(19, Turn(0, index)) == sorted(set(range(19)) - set(range(low, low + 4)))
    with pytest.raises(GirsanovError, match="leaves none of 3"):
        PrunedSteps(0, 3, stop=0)(3, Turn(0, 0))
    with pytest.raises(GirsanovError, match="starts at or after its stop"):
        PrunedSteps(first=3)


def test_whole_trees_are_taken_apart_and_add_up() -> None:
    tuned, method = policy(), tree(kl=PerStepKL(0.3), surrogate=Clip(1e-4))
    batch = method.anchor(tuned, collect(method, tuned, requests(40, 8)), {})
    whole = gradient(tuned, method, batch)
    parts = sum(gradient(tuned, method, batch.take(r)) * len(r) / 5 for r in torch.arange(5).split(2))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-13)
    small = collect(tree(), tuned, requests(6, 6))  # groups of 6: one split, three trees
    assert small.reward.shape == (3, 2) and [len(p.advantage) for p in small.parts] == [6] * 5


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tree(kl=PathKL(0.1)), "the path KL is defined on chains: use PerStepKL on trees"),
        (
            lambda: Trees((1.0,)),
            "a tree splits into 2 or more at shares of the grid in [0, 1), not "
            "Trees(splits=(1.0,), fan=2, fusion=MeanFusion(), width=EveryLeaf())",
        ),
        (
            lambda: collect(tree(rollout_micro_batch=4), policy(), requests(8, 8)),
            "trees are rolled out at once: leave rollout_micro_batch at None",
        ),
    ],
)
def test_trees_say_what_they_cannot_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


# ---- windows


def starts(schedule: Window, n: int, steps: int = 25, length: int = 4) -> list[tuple[int, int]]:
    sampler = Mixed(FlowSDE(0.7), Euler(), 0, length)
    found = [schedule.at(sampler, Grid.uniform(steps), Turn(0, i, n)) for i in range(n)]
    return [(s.start, s.length) for s in found]


def test_the_sliding_window_is_the_published_one() -> None:
    """25 steps, w = 4, stride 1, tau = 25: position ``floor(i / 25)`` of 0 .. 22, shorter at the end, then 0 again."""
    found = starts(SlidingWindow(), 25 * 24)
    for i, (start, length) in enumerate(found):
        assert start == i // 25 % 23 and length == min(4, 23 - start)
    assert found[25 * 22] == (22, 1) and found[25 * 23] == (0, 4)
    assert [s for s, _ in starts(SlidingWindow(every=1, stride=3), 9)] == [0, 3, 6, 9, 12, 15, 18, 21, 0]


class Published:
    """The published scheduler's state machine (progressive, decay, exp_decay with roll-back), one iteration a call."""

    def __init__(self, stay: object, step: int, most: int) -> None:
        self.stay, self.step, self.most, self.at, self.seen = stay, step, most, 0, 0

    def window(self, length: int) -> list[int]:
        return list(range(self.at, min(self.at + length, self.most)))

    def advance(self) -> None:
        self.seen += 1
        if self.seen >= self.stay(self.at):
            self.seen, self.at = 0, self.at + self.step
        if self.at > self.most:
            self.at = self.seen = 0


STAYS = {
    "progressive": (lambda s: SlidingWindow(25, stride=s), lambda l: 25),
    "decay": (lambda s: DecayingWindow(25, stride=s), lambda l: max(6, int(25 * (1 - l / 23) + 6 * (l / 23)))),
    "exp_decay": (
        lambda s: ExponentialWindow(25, stride=s),
        lambda l: math.ceil(25 * math.exp(-0.1 * max(0, l - 13))),
    ),
}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("name", STAYS)
def test_every_window_goes_through_the_published_sequence(name: str, stride: int) -> None:
    """25 steps, w = 4, tau = 25, overlap (stride 1 and 2) and none (4), over two rounds; its empty windows left out."""
    make, stay = STAYS[name]
    published, want = Published(stay, stride, 23), []
    while len(want) < 1200:
        if published.window(4):
            want.append((published.at, len(published.window(4))))
        published.advance()
    assert starts(make(stride), 1200) == want


def test_the_random_window_lies_in_its_share_and_stays_as_long_as_it_says() -> None:
    """MixGRPO: starts 0 .. 23 - 4, whole windows; Flow-GRPO-Fast with 10 steps: within the first 5."""
    assert set(starts(RandomWindow(every=1), 600)) == {(s, 4) for s in range(20)}
    assert set(starts(RandomWindow(every=1, share=0.5, leave=1), 200, 10, 2)) == {(s, 2) for s in range(4)}
    found = [s for s, _ in starts(RandomWindow(every=3, share=0.5, leave=1), 600)]
    assert all(len(set(found[i : i + 3])) == 1 for i in range(0, 600, 3))
    assert found == [s for s, _ in starts(RandomWindow(every=3, share=0.5, leave=1), 600)]


def test_flash_takes_the_published_number_of_steps_after_its_window() -> None:
    """T = 25, w = 4: ``floor(.4 (25 - last))`` points from the window's end to 0; 11 steps at first, not 25."""
    sampler, grid, schedule = Mixed(FlowSDE(0.7), DPMSolverPP2M(), 0, 4), Grid.uniform(25), Compressed()
    for index in (0, 25 * 5, 25 * 15, 25 * 22):
        now = schedule.at(sampler, grid, Turn(0, index))
        times, last = schedule.times(now, grid), now.start + now.length - 1
        points = max(2, int(0.4 * (25 - last)))
        assert len(times) == last + 1 + points - 1
        torch.testing.assert_close(times.ts[: last + 2], grid.ts[: last + 2])
        torch.testing.assert_close(
            times.ts[last + 1 :], torch.linspace(float(grid.ts[last + 1]), 0, points, dtype=torch.float64)
        )
    assert len(schedule.times(sampler, grid)) == 11 and len(Compressed(ratio=1.0).times(sampler, grid)) == 25
    method = made(MixGRPOFlash, schedule=Compressed(SlidingWindow(every=1)), sampler=sampler)
    method = dataclasses.replace(method, grid=Grid.uniform(8))
    batch = collect(method, policy(), requests(8, 4))
    assert [p.tr.step.i for p in batch.parts] == [0, 1, 2, 3] and batch.parts[0].tr.step.n == 5
    with pytest.raises(GirsanovError, match=r"lies in \(0, 1\], not 0"):
        Compressed(ratio=0)


def test_only_the_window_has_noise_and_is_trained() -> None:
    method = made(MixGRPO, schedule=SlidingWindow(every=1), sampler=Mixed(FlowSDE(0.7), DPMSolverPP2M(), 0, 2))
    for i, want in enumerate([[0, 1], [1, 2], [2, 3], [3], [0, 1]]):
        batch = collect(method, policy(), requests(8, 4), Turn(0, i))
        assert [p.tr.step.i for p in batch.parts] == want


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n.endswith("window")])
def test_windows_need_a_mixed_sampler(name: str) -> None:
    with pytest.raises(GirsanovError) as error:
        made(FlowGRPO, schedule=SCHEDULES[name]())
    assert str(error.value) == (
        "a window moves over a mixed sampler and FlowSDE is not one: use Mixed(FlowSDE(0.7), Euler(), length=4)"
    )
    with pytest.raises(
        GirsanovError, match="^a window moves every 1 or more iterations and leaves 0 or more steps, not"
    ):
        SCHEDULES[name](every=0)


# ---- where normalised members end


def reward_std(law: Gaussian, reward: QuadraticReward) -> float:
    """Standard deviation of ``b^T x - x^T A x / 2``: ``Var = tr((A S)^2) / 2 + g^T S g`` with ``g = b - A m``."""
    g, moved = reward.b - reward.A @ law.mean, reward.A @ law.cov
    return float(0.5 * (moved @ moved).trace() + g @ law.cov @ g) ** 0.5


def test_flow_grpo_ends_where_its_std_and_its_dt_put_beta() -> None:
    """``beta_eff = beta |dt| s n / (n - 1)`` with s the std of the reward at the end itself; within 3 %.

    One dimension, 4 equal Flow-SDE steps, one group of 512 an iteration, seed 0. Advantages are not clipped: a bound of
    +-5 cuts the tail of a curved reward and moves the end. (A reward that curves more makes the std, and with it beta,
    shrink on the way, and the last part of it endless.)
    """
    grid, reward, beta, n = Grid.uniform(4), QuadraticReward(0.3, 1.0), 4.0, 512
    model, sampler = Gaussian(0.0, 1.0).model(RectifiedFlow()), FlowSDE(0.7)
    kernels = affine_kernels(model, sampler, grid)
    start = (torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    effective = beta
    for _ in range(60):
        want = per_step_kl_limit(kernels, start, reward, effective).law
        effective = beta * 0.25 * (reward_std(want, reward) + 1e-4) * n / (n - 1)
    assert effective < 0.6 * beta
    tuned = tunable(model, grid)
    method = FlowGRPO(
        reward=reward, grid=grid, kl=PerStepKL(beta, StepLength()), steps=AllSteps(), advantage=GlobalStd()
    )
    descend(tuned, method, requests(n), iterations=150, lr=0.1, tail=50)
    got = end_law(tuned.view("ema"), sampler, grid)
    torch.testing.assert_close(got.mean, want.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(got.cov, want.cov, rtol=0.03, atol=0)
    plain = per_step_kl_limit(kernels, start, reward, beta).law
    assert abs(float(plain.mean - want.mean)) > 0.1 * float(want.mean)
