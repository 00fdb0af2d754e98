"""Reward models: likelihoods against enumeration, fits against closed forms, the truth from simulated labels."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from girsanov.evaluation import calibration
from girsanov.preferences import Compared
from girsanov.reward_models import REWARD_LOSSES, Comparisons, RewardModelling, Scoring, measure, ranked
from girsanov.reward_models.gated import Gated, GatedConfig
from girsanov.reward_models.losses import Regression, bradley_terry, plackett_luce
from girsanov.reward_models.method import score_items
from girsanov.reward_models.model import RewardModel
from girsanov.reward_models.scorers import FeaturesConfig, LinearConfig, PixelsConfig, TextConfig
from girsanov.reward_models.training import random_pairs, train_reward_model
from girsanov.train import TrainConfig
from girsanov.types import Cond
from tests.laws.mutation import Mutation, check, mutants

DATA, METHOD = (sys.modules[f"girsanov.reward_models.{n}"] for n in ("data", "method"))
F64 = torch.float64


def table(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def minimise(loss, start: torch.Tensor) -> torch.Tensor:
    """The minimum of a smooth function of a tensor, by LBFGS."""
    x = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    return x.detach()


# ---- likelihoods


def law_plackett_luce_is_choosing_the_best_of_what_is_left() -> None:
    """All 24 rankings of four items: each is a product of softmaxes, they sum to 1, any two follow Bradley-Terry."""
    r = table(0.3, -1.0, 0.8, 0.1)
    loss, total, before = plackett_luce(), 0.0, torch.zeros(4, 4, dtype=F64)
    for order in itertools.permutations(range(4)):
        p = float((-loss.rows(Compared(r[list(order)][None]))).exp())
        left, product = list(range(4)), 1.0
        for i in order:
            product *= float(r[left].softmax(0)[left.index(i)])
            left.remove(i)
        assert p == pytest.approx(product, rel=1e-12)
        total += p
        for i, j in itertools.combinations(order, 2):
            before[i, j] += p
    assert total == pytest.approx(1.0, rel=1e-12)
    apart = torch.sigmoid(r[:, None] - r[None, :])
    torch.testing.assert_close(before + 0.5 * torch.eye(4, dtype=F64), apart)


def law_the_simulated_annotator_is_plackett_luce() -> None:
    """20,000 rankings of three items at T = 2, seed 0: the chi-square of six orders below 5 + 4 sqrt(10)."""
    r = table(1.0, 0.0, -2.0).expand(20000, 3)
    items = torch.arange(3, dtype=F64)[:, None].expand(20000, 3, 1)
    data = ranked(items, r, 2.0)
    code = (data.items[:, :, 0].long() * torch.tensor([9, 3, 1])).sum(1)
    chi = 0.0
    for order in itertools.permutations(range(3)):
        p = float((-plackett_luce().rows(Compared(r[:1, list(order)] / 2))).exp())
        seen = int((code == order[0] * 9 + order[1] * 3 + order[2]).sum())
        chi += (seen - 20000 * p) ** 2 / (20000 * p)
    assert chi < 5 + 4 * math.sqrt(10)
    assert data.score is not None and torch.equal(data.score, r.gather(1, data.items[:, :, 0].long()))
    sure = ranked(items[:3].contiguous(), r[:3], 0.0)
    assert sure.items[:, :, 0].tolist() == [[0, 1, 2]] * 3


# ---- optima


def law_bradley_terry_comes_back_from_exact_odds() -> None:
    """Three arms, every ordered pair at the weight of its probability: r = r* up to a constant."""
    truth = table(0.0, 1.0, 2.0)
    pairs = list(itertools.permutations(range(3), 2))
    weight = torch.stack([torch.sigmoid(truth[i] - truth[j]) for i, j in pairs])
    chosen = torch.tensor(pairs)
    found = minimise(lambda r: (weight * bradley_terry().rows(Compared(r[chosen]))).sum(), torch.zeros(3, dtype=F64))
    torch.testing.assert_close(found - found[0], truth, atol=1e-6, rtol=0)


def law_two_items_are_apart_by_the_logit() -> None:
    """Counts of 7 and 3: logit .7; with a margin of scores a apart by 2, logit .7 + 2a; smoothed, that of the share."""
    for name, expected in {
        "bradley-terry": math.log(7 / 3),
        "margin": math.log(7 / 3) + 2.0,
        "choice": math.log(7 / 3),
        "plackett-luce": math.log(7 / 3),
        "noisy": math.log(0.66 / 0.34),
    }.items():
        loss = REWARD_LOSSES[name]()

        def weighed(r: torch.Tensor, loss=loss) -> torch.Tensor:
            there, back = torch.stack([r[0], r[1]]), torch.stack([r[1], r[0]])
            batch = Compared(torch.stack([there, back]), score=torch.stack([table(2.0, 0.0), table(0.0, 2.0)]))
            return (table(7.0, 3.0) * loss.rows(batch)).sum()

        found = minimise(weighed, torch.zeros(2, dtype=F64))
        assert float(found[0] - found[1]) == pytest.approx(expected, abs=1e-6), name


def law_regression_is_the_mean_of_what_is_known() -> None:
    """Item 0 is rated 1 and 4, item 1 once 2 and once not at all: 2.5 and 2."""
    given = torch.stack([table(1.0, 2.0), table(4.0, math.nan)])
    found = minimise(lambda r: Regression()(Compared(r.expand(2, 2), score=given)), torch.zeros(2, dtype=F64))
    torch.testing.assert_close(found, table(2.5, 2.0), atol=1e-7, rtol=0)


def law_the_truth_comes_back_from_labels() -> None:
    """w = (1, -.5, .25) on normal features, 2,000 pairs, and 700 rankings of four; seeds 0 and 1: the chi-square of w
    with the Fisher information (3 degrees) below 3 + 4 sqrt(6)."""
    w = table(1.0, -0.5, 0.25)
    for seed, (n, k) in enumerate([(2000, 2), (700, 4)]):
        x = torch.randn(n, k, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        data = ranked(x, x @ w, 1.0, seed=seed)

        def nll(v: torch.Tensor, data=data) -> torch.Tensor:
            return plackett_luce().rows(Compared(data.items @ v)).sum()

        found = minimise(nll, torch.zeros(3, dtype=F64))
        information = torch.autograd.functional.hessian(nll, found)
        assert float((found - w) @ information @ (found - w)) < 3 + 4 * math.sqrt(6)
        exact = calibration(data.items[:, 0] @ w, data.items[:, 1] @ w) if k == 2 else None
        assert exact is None or abs(exact.z) < 4


def law_pairs_of_a_ranking_are_calibrated_if_they_are_drawn_blindly() -> None:
    """The exact scores of 2,000 rankings of four, seed 2: |z| < 4 for pairs at random, above 8 for best and worst.

    Rows with fewer items draw from those that are there.
    """
    r = torch.randn(2000, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    data = ranked(r.unsqueeze(2), r, 1.0, seed=2)
    config = LinearConfig(features=1)
    net = config.build().double()
    with torch.no_grad():
        net.nets[0].outer.weight.fill_(1.0)
    exact = RewardModel(config, net)
    assert abs(measure(exact, data).pairs.z) < 4
    best = calibration(data.items[:, 0, 0], data.items[:, 3, 0])
    assert abs(best.z) > 8 and best.slope is not None and best.slope.low > 1.1
    there = torch.tensor([[True, True, False, False]] * 50 + [[True] * 4] * 2000)
    better, worse = random_pairs(there)
    assert bool((better[:50] == 0).all() and (worse[:50] == 1).all() and (better < worse).all())
    assert len(torch.cat([better, worse], 1)[50:].unique(dim=0)) == 6


# ---- the method, the gate, the ensemble


def _losses(data: Comparisons, net: torch.nn.Module, **options) -> torch.Tensor:
    from girsanov.methods.base import Turn
    from girsanov.policy import Policy

    policy, method = Policy(Scoring(net)), RewardModelling(**options)
    batch = method.collect(policy, data.batch(0), {}, Turn(0, 0))
    return sum(chunk.loss for chunk in method.losses(policy, batch, {}))


def law_the_method_is_its_formula() -> None:
    """Two members, three items, one row with two of them, classes: written out item by item, and centred."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 1, 2, 2, generator=g, dtype=F64)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    cond = Cond({"label": torch.tensor([3, 1])}, torch.tensor([1, 0]))
    net = PixelsConfig(shape=(1, 2, 2), classes=4, width=6, blocks=1, members=2).build(0).double()
    data = Comparisons(x, cond, valid, batch_size=2)
    found = _losses(data, net, loss=plackett_luce(), centre=0.3)
    each = torch.stack(
        [torch.stack([net(x[i, k][None], cond.take(torch.tensor([i])))[0] for k in range(3)]) for i in range(2)]
    )
    terms = []
    for i, keep in ((0, [0, 1, 2]), (1, [0, 1])):
        for m in range(2):
            s = each[i, keep, m]
            terms.append(sum(s[k:].logsumexp(0) - s[k] for k in range(len(s))))
    expected = torch.stack(terms).mean() + 0.3 * each[valid].square().mean()
    torch.testing.assert_close(found, expected)


def law_an_ensemble_trains_as_its_members_alone() -> None:
    """The gradient of member 1 is half of that of the same network trained alone."""
    g = torch.Generator().manual_seed(1)
    data = Comparisons(torch.randn(8, 2, 3, generator=g, dtype=F64), batch_size=8)
    both, alone = (FeaturesConfig(features=3, width=4, members=m).build(3).double() for m in (2, 1))
    alone.nets[0].load_state_dict(both.nets[1].state_dict())
    _losses(data, both).backward()
    _losses(data, alone).backward()
    assert not torch.equal(both.nets[0].inner.weight, both.nets[1].inner.weight)
    for p, q in zip(both.nets[1].parameters(), alone.nets[0].parameters(), strict=True):
        torch.testing.assert_close(2 * p.grad, q.grad)


def law_a_pessimist_subtracts_the_spread() -> None:
    """Members that say 1, 2 and 6 of an item: mean 3, standard deviation sqrt(7); minus twice that, minus the shift."""
    model = RewardModel(LinearConfig(features=1, members=3), LinearConfig(features=1, members=3).build(), 0.5, 2.0)
    assert float(model.joined(table(1.0, 2.0, 6.0))) == pytest.approx(3 - 2 * math.sqrt(7) - 0.5)
    hopeful = RewardModel(model.config, model.net, 0.5)
    assert float(hopeful.joined(table(1.0, 2.0, 6.0))) == 2.5


def law_ratings_are_least_squares() -> None:
    """40 items, three objectives, one with ratings missing: numpy's least squares on what is known (ridge 0)."""
    g = torch.Generator().manual_seed(2)
    phi, ratings = torch.randn(40, 4, generator=g, dtype=F64), torch.randn(40, 3, generator=g, dtype=F64)
    ratings[::3, 1] = math.nan
    net = GatedConfig(features=4, prompt=2, objectives=3).one().double()
    net.fit_ratings(phi, ratings, ridge=0.0)
    for j in range(3):
        known = ratings[:, j].isfinite().numpy()
        a = np.c_[phi.numpy()[known], np.ones(known.sum())]
        expected = np.linalg.lstsq(a, ratings[:, j].numpy()[known], rcond=None)[0]
        np.testing.assert_allclose(np.r_[net.weight[:, j], net.bias[j]], expected, atol=1e-10)


def law_the_gate_finds_what_each_prompt_weighs() -> None:
    """Two kinds of prompt weigh two objectives (.8, .2) and (.1, .9) at scale 2; exact odds on a grid of items.

    The population optimum has these weights and this scale: with the labels' exact probabilities as weights, no noise.
    """
    net = GatedConfig(features=2, prompt=2, objectives=2, hidden=0).one().double()
    net.weight.copy_(torch.eye(2, dtype=F64))
    truth = torch.tensor([[0.8, 0.2], [0.1, 0.9]], dtype=F64)
    points = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)), dtype=F64)
    pairs = torch.tensor(list(itertools.permutations(range(9), 2)))
    items = points[pairs].repeat(2, 1, 1)
    kind = torch.arange(2).repeat_interleave(len(pairs))
    cond = Cond({"prompt": torch.eye(2, dtype=F64)}, kind)
    gap = 2.0 * ((items[:, 0] - items[:, 1]) * truth[kind]).sum(1)
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        scores = score_items(lambda x, c: net(x, c).unsqueeze(1), items, cond)[..., 0]
        loss = (torch.sigmoid(gap) * bradley_terry().rows(Compared(scores))).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        torch.testing.assert_close(net.weights(torch.eye(2, dtype=F64)), truth, atol=1e-4, rtol=0)
        assert float(net.log_scale.exp()) == pytest.approx(2.0, abs=1e-3)


LAWS = [v for k, v in dict(globals()).items() if k.startswith("law_")]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_laws(law) -> None:
    law()


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_gradients_of_losses(name: str) -> None:
    """Against finite differences in float64; five prompts, three items, one not there."""
    g = torch.Generator().manual_seed(0)
    r = torch.randn(5, 3, generator=g, dtype=F64, requires_grad=True)
    given = torch.randn(5, 3, generator=g, dtype=F64).sort(1, descending=True).values
    valid = torch.ones(5, 3, dtype=torch.bool)
    valid[2, 2] = False
    loss = REWARD_LOSSES[name]()
    assert torch.autograd.gradcheck(lambda r: loss.rows(Compared(r, score=given, valid=valid)), (r,))
    (gradient,) = torch.autograd.grad(loss(Compared(r, score=given, valid=valid)), r)
    assert float(gradient[2, 2]) == 0.0


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(features=4),
        FeaturesConfig(features=4, width=5),
        PixelsConfig(shape=(1, 2, 2), width=5, blocks=1, members=2),
    ],
    ids=lambda c: type(c).__name__,
)
def test_gradients_in_the_sample(config) -> None:
    """A reward model is a differentiable reward: against finite differences in float64."""
    x = torch.randn(3, *getattr(config, "shape", (4,)), generator=torch.Generator().manual_seed(0), dtype=F64)
    model = RewardModel(config, config.build(1).double(), pessimism=0.5)
    assert model.differentiable and torch.autograd.gradcheck(model.score, (x.requires_grad_(True),))


def test_padding_of_a_text_changes_nothing() -> None:
    net = TextConfig(length=12, width=8, blocks=2, heads=2).build(0).double()
    ids = torch.tensor([[5, 6, 257, 7, 0, 0, 0]])
    torch.testing.assert_close(net(ids), net(ids[:, :4]))
    assert not torch.equal(net(ids[:, :4]), net(torch.tensor([[6, 5, 257, 7]])))  # the order counts


def test_a_trained_model_is_as_good_as_its_annotator_lets_it_be() -> None:
    """Linear reward of 3 features, 1,500 pairs to train and 1,500 to test, seed 0: the accuracy within 4 standard
    errors of the annotator's own, mean max(p, 1 - p), and calibrated (|z| < 4, slope within 4 errors of 1)."""
    w = torch.tensor([1.5, -1.0, 0.5])
    x = torch.randn(3000, 2, 3, generator=torch.Generator().manual_seed(0))
    train, test = ranked(x, x @ w, 1.0, batch_size=300).split(0.5)
    model = train_reward_model(LinearConfig(features=3), train, train=TrainConfig(iterations=150, lr=0.05), centre=0.0)
    found = measure(model, test)
    gap = (test.items[:, 0] - test.items[:, 1]) @ w
    best = float(torch.sigmoid(gap.abs()).mean())
    assert abs(found.pairs.accuracy.value - best) < 4 * math.sqrt(best * (1 - best) / 1500)
    assert abs(found.pairs.z) < 4 and found.pairs.slope is not None and abs(found.pairs.slope.value - 1) < 0.25
    assert found.correlation is not None and found.correlation.low > 0.97
    assert abs(float(model.compared(train).mean())) < 1e-5  # the shift


MUTATIONS = [
    Mutation(DATA, "ranked", "-(-u.clamp_min(1e-300).log()).log()", "u", law_the_simulated_annotator_is_plackett_luce),
    Mutation(DATA, "ranked", "descending=True", "descending=False", law_the_simulated_annotator_is_plackett_luce),
    Mutation(METHOD, "score_items", ".repeat_interleave(k)", ".repeat(k)", law_the_method_is_its_formula),
    Mutation(
        sys.modules["girsanov.reward_models.training"],
        "random_pairs",
        ".argsort(1)",
        ".cumsum(1).argsort(1)",
        law_pairs_of_a_ranking_are_calibrated_if_they_are_drawn_blindly,
    ),
    Mutation(RewardModelling, "losses", "scores[batch.valid]", "scores", law_the_method_is_its_formula),
    Mutation(RewardModelling, "losses", ".mean()", ".sum()", law_an_ensemble_trains_as_its_members_alone),
    Mutation(
        RewardModel, "joined", "mean - self.pessimism", "mean + self.pessimism", law_a_pessimist_subtracts_the_spread
    ),
    Mutation(Regression, "rows", "given.isfinite()", "given.isnan()", law_regression_is_the_mean_of_what_is_known),
    Mutation(Gated, "fit_ratings", "torch.ones_like", "torch.zeros_like", law_ratings_are_least_squares),
    Mutation(Gated, "forward", "self.log_scale.exp()", "self.log_scale", law_the_gate_finds_what_each_prompt_weighs),
    Mutation(Gated, "weights", "softmax(1)", "sigmoid()", law_the_gate_finds_what_each_prompt_weighs),
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
