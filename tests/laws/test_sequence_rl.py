"""Laws of policy gradients on sequences: exact expected gradients by enumeration, parts against their formulas."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.advantages import GroupNormalised, LeaveOneOut
from girsanov.methods.base import Turn
from girsanov.sequences import SEQUENCE_RL, SequenceRL, Tokens, credit, levels, on_off_loss, rl, rto_rewards, shaped
from girsanov.sequences.credit import CREDITS, GAE, Greedy, Outcome, Whitened
from girsanov.sequences.levels import AVERAGINGS, SequenceSum
from girsanov.sequences.rl import Signals, effective_sample_size
from girsanov.surrogates import Clip, ScoreFunction
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
VOCABULARY, LENGTH = 3, 2
SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
G = torch.Generator().manual_seed(0)
THETA = torch.randn(VOCABULARY + VOCABULARY**2, generator=G, dtype=F64)
REFERENCE = torch.randn(VOCABULARY + VOCABULARY**2, generator=G, dtype=F64)
REWARD = torch.randn(len(SEQUENCES), generator=G, dtype=F64)
BETA = 0.4


def log_probs(theta: Tensor) -> Tensor:
    """Log-probs of the tokens of all sequences, [9, 2]: the second token depends on the first."""
    first, second = theta[:VOCABULARY].log_softmax(0), theta[VOCABULARY:].view(VOCABULARY, -1).log_softmax(1)
    return torch.stack([first[SEQUENCES[:, 0]], second[SEQUENCES[:, 0], SEQUENCES[:, 1]]], 1)


def tokens(theta: Tensor, rows: Tensor, **more: Tensor) -> Tokens:
    """The chosen sequences, sampled by the policy itself."""
    logp = log_probs(theta)[rows]
    fields = {
        "logp": logp,
        "old": logp.detach(),
        "mask": torch.ones_like(logp, dtype=torch.bool),
        "reward": REWARD[rows],
        "group": torch.zeros(len(rows), dtype=torch.int64),
        "ref": log_probs(REFERENCE)[rows],
    }
    return Tokens(**fields | more)


def true_gradient(beta: float = BETA) -> Tensor:
    """Of ``E[r] - beta KL(pi || ref)``."""
    theta = THETA.clone().requires_grad_(True)
    logp = log_probs(theta).sum(1)
    value = (logp.exp() * (REWARD - beta * (logp - log_probs(REFERENCE).sum(1)))).sum()
    return torch.autograd.grad(value, theta)[0]


def mean_gradient(method: SequenceRL, group: int, **more: Tensor) -> Tensor:
    """Minus the gradient of the loss, averaged over all groups of so many samples with their probabilities."""
    chance = log_probs(THETA).sum(1).exp()
    total = torch.zeros_like(THETA)
    for rows in itertools.product(range(len(SEQUENCES)), repeat=group):
        theta, index = THETA.clone().requires_grad_(True), torch.tensor(rows)
        batch = tokens(theta, index, **{k: v[index] for k, v in more.items()})
        loss, _ = method.loss(batch, method.signals(batch, {}, Turn(0, 0)))
        total -= chance[index].prod() * torch.autograd.grad(loss, theta)[0]
    return total


def values() -> Tensor:
    """The exact value before each token, of the reward with its KL, [9, 2]."""
    logp, gap = log_probs(THETA), log_probs(THETA) - log_probs(REFERENCE)
    after = torch.zeros(VOCABULARY, dtype=F64)
    to_go = REWARD - BETA * gap[:, 1]
    for a in range(VOCABULARY):
        rows = SEQUENCES[:, 0] == a
        after[a] = (logp[rows, 1].exp() * to_go[rows]).sum()
    before = (logp.sum(1).exp() * (REWARD - BETA * gap.sum(1))).sum()
    return torch.stack([before.expand(len(SEQUENCES)), after[SEQUENCES[:, 0]]], 1)


def unbiased(method: SequenceRL, group: int, **more: Tensor) -> None:
    torch.testing.assert_close(mean_gradient(method, group, **more), true_gradient(), atol=1e-12, rtol=1e-10)


def remax() -> None:
    greedy = torch.full((9,), float(REWARD[log_probs(THETA).sum(1).argmax()]), dtype=F64)
    unbiased(rl.remax(BETA), 1, greedy=greedy)


def rloo() -> None:
    unbiased(rl.rloo(BETA), 2)


def pairwise() -> None:
    for method in (rl.p3o(BETA), rl.p3o_joint(BETA)):
        unbiased(method, 2)


def actor_critic() -> None:
    """PPO at ratio 1 with any value head (lambda = 1), and with the exact one (any lambda)."""
    wrong = torch.linspace(-1, 1, 18, dtype=F64).view(9, 2)
    prefix = wrong.clone()
    prefix[:, 0] = 0.3  # a value is a function of what came before: the prompt, the first token
    prefix[:, 1] = wrong[SEQUENCES[:, 0] * 3, 1]
    for lam, value in ((1.0, prefix), (0.3, values())):
        plain = SequenceRL(
            credit=GAE(1.0, lam), surrogate=Clip(0.2), average=SequenceSum(), beta=BETA, value_weight=0.0
        )
        unbiased(plain, 1, old_value=value, value=value)


def test_remax_is_unbiased() -> None:
    remax()


def test_rloo_is_unbiased() -> None:
    rloo()


def test_both_clips_of_pairwise_p3o_are_unbiased_at_ratio_1() -> None:
    pairwise()


def test_ppo_is_unbiased_at_ratio_1() -> None:
    actor_critic()


def test_rto_rewards_have_the_gradient_of_their_sum() -> None:
    """Token rewards of a tuned policy: the gradient is that of ``E[r + beta1 log(dpo / ref)] - beta2 KL``."""
    dpo = log_probs(THETA * 0.5 + 0.3 * REFERENCE)
    extra = rto_rewards(dpo, log_probs(THETA), log_probs(REFERENCE), 0.7, BETA)
    method = SequenceRL(credit=Outcome(LeaveOneOut()), surrogate=ScoreFunction(), average=SequenceSum())
    theta = THETA.clone().requires_grad_(True)
    logp = log_probs(theta).sum(1)
    value = REWARD + 0.7 * (dpo - log_probs(REFERENCE)).sum(1) - BETA * (logp - log_probs(REFERENCE).sum(1))
    (want,) = torch.autograd.grad((logp.exp() * value).sum(), theta)
    torch.testing.assert_close(mean_gradient(method, 2, token_reward=extra), want, atol=1e-12, rtol=1e-10)
    assert isinstance(SEQUENCE_RL["rto"]().credit, Whitened)


def grpo() -> None:
    """The published loss, written out: ratios moved off 1, token means of two lengths, k3."""
    theta = THETA.clone().requires_grad_(True)
    rows = torch.tensor([0, 4, 8, 5])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    old = log_probs(THETA + 0.4 * REFERENCE)[rows]
    batch = tokens(theta, rows, old=old, mask=mask)
    method = SEQUENCE_RL["grpo"](kl=0.3, clip=0.2)
    loss, metrics = method.loss(batch, method.signals(batch, {}, Turn(0, 0)))
    r = REWARD[rows]
    a = ((r - r.mean()) / (r.std(correction=0) + 1e-4)).unsqueeze(1)
    rho = (batch.logp - old).exp()
    term = -torch.minimum(rho * a, rho.clamp(0.8, 1.2) * a)
    ratio = (batch.ref - batch.logp).exp()
    term = (term + 0.3 * (ratio - ratio.log() - 1)) * mask
    torch.testing.assert_close(loss, (term.sum(1) / mask.sum(1)).mean())
    assert 0 < float(metrics["clip_fraction"]) < 1 and float(metrics["kl"]) > 0


def test_grpo_is_the_published_loss() -> None:
    grpo()


def k3() -> None:
    """The mean of k3 under the policy is ``KL(pi || ref)``, and it is never negative."""
    batch = tokens(THETA, torch.arange(9))
    zero = Signals(torch.zeros(9, 2, dtype=F64), torch.ones(9, dtype=torch.bool))
    method = SequenceRL(surrogate=ScoreFunction(), average=SequenceSum(), kl=1.0)
    chance = log_probs(THETA).sum(1).exp()
    each = torch.stack(
        [method.loss(tokens(THETA, torch.tensor([i])), Signals(zero.advantage[:1], zero.mask[:1]))[0] for i in range(9)]
    )
    want = (chance * (batch.logp - batch.ref).sum(1)).sum()
    torch.testing.assert_close((chance * each).sum(), want)
    assert bool((each >= 0).all())


def test_the_k3_penalty_is_a_kl() -> None:
    k3()


def gae() -> None:
    """Written out by the sum of discounted errors; lambda = 1 is return minus value, 0 the one-step error."""
    g = torch.Generator().manual_seed(1)
    r, v = (torch.randn(2, 4, generator=g, dtype=F64) for _ in range(2))
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    some = Tokens(v, v, mask, r[:, 0], torch.zeros(2, dtype=torch.int64), old_value=v)
    rewards = r * mask
    value = v * mask
    for gamma, lam in ((0.9, 0.8), (1.0, 1.0), (0.9, 0.0)):
        a, _, target = GAE(gamma, lam)(some, rewards, {}, Turn(0, 0))
        nxt = torch.cat([value[:, 1:], torch.zeros(2, 1, dtype=F64)], 1)
        delta = (rewards + gamma * nxt - value) * mask
        want = torch.stack([sum((gamma * lam) ** k * delta[:, t + k] for k in range(4 - t)) for t in range(4)], 1)
        torch.testing.assert_close(a, want * mask)
        torch.testing.assert_close(target * mask, (want + value) * mask)
        hole = dataclasses.replace(some, mask=torch.tensor([[True, False, True, True]] * 2))  # a tool's answer, say
        kept = dataclasses.replace(some, **{k: getattr(some, k)[:, [0, 2, 3]] for k in ("logp", "old", "old_value")},
                                   mask=torch.ones(2, 3, dtype=torch.bool))  # fmt: skip
        pair = [GAE(gamma, lam)(*x, {}, Turn(0, 0))[0] for x in ((hole, r), (kept, r[:, [0, 2, 3]]))]
        torch.testing.assert_close(pair[0][:, [0, 2, 3]], pair[1])


def test_gae_is_the_discounted_sum_of_errors() -> None:
    gae()


def test_the_completion_is_rewarded_at_its_last_token() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    zero = torch.zeros(2, 3, dtype=F64)
    some = Tokens(zero, zero + 0.5, mask, torch.tensor([2.0, 3.0], dtype=F64), torch.arange(2), ref=zero)
    assert shaped(some, 0.0).tolist() == [[0, 2, 0], [0, 0, 3]]
    assert shaped(some, 0.2).tolist() == [[-0.1, 1.9, 0], [-0.1, -0.1, 2.9]]


def value_loss() -> None:
    """PPO's clipped value loss by hand."""
    z = torch.zeros(1, 1, dtype=F64)
    some = Tokens(z, z, z == 0, z[0], torch.zeros(1, dtype=torch.int64), value=z + 1.0, old_value=z)
    method = SequenceRL(value_weight=2.0, value_clip=0.25, credit=GAE())
    for target, want in ((1.0, (1 - 0.25) ** 2), (-1.0, 4.0), (0.0, 1.0)):
        loss, _ = method.loss(some, Signals(z, torch.ones(1, dtype=torch.bool), z + target))
        assert float(loss) == pytest.approx(2.0 * want / 2)


def test_the_value_loss_is_clipped_as_in_ppo() -> None:
    value_loss()


def averages() -> None:
    terms, mask = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]), torch.tensor([[True] * 3, [True, False, False]])
    want = {"sequence-mean": (2 + 4) / 2, "token-mean": 10 / 4, "sequence-sum": (6 + 4) / 2}
    assert {name: float(cls()(terms, mask)) for name, cls in AVERAGINGS.items()} == want


def test_averages() -> None:
    averages()


def joint_clip() -> None:
    """Where the two readings of P3O part: ratios of 1.3 and 1.3 are clipped each, their pair (1.0) is not."""
    logp = torch.full((2, 1), 0.2624, dtype=F64, requires_grad=True)  # log 1.3
    some = Tokens(logp, torch.zeros(2, 1, dtype=F64), torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0, 0.0]),
                  torch.zeros(2, dtype=torch.int64))  # fmt: skip
    slopes = []
    for name in ("p3o", "p3o-joint"):
        method = SEQUENCE_RL[name](beta=0.0, clip=0.2)
        loss, _ = method.loss(some, method.signals(some, {}, Turn(0, 0)))
        slopes.append(torch.autograd.grad(loss, logp)[0].flatten().tolist())
    assert slopes[0][0] == 0.0 and slopes[0][1] > 0
    assert slopes[1] == [pytest.approx(-0.5), pytest.approx(0.5)]


def test_separate_and_joint_clipping_differ() -> None:
    joint_clip()


def on_off() -> None:
    """On the behaviour policy the size is 1: no hold, twice the policy gradient; off it, the formula by hand."""
    theta = THETA.clone().requires_grad_(True)
    rows = torch.tensor([1, 5, 7])
    a = torch.tensor([[1.0, 1.0], [-0.5, -0.5], [0.2, 0.2]], dtype=F64)
    signals = Signals(a, torch.ones(3, dtype=torch.bool))
    fresh = tokens(theta, rows)
    loss, metrics = on_off_loss(fresh, signals, fresh, signals)
    assert float(metrics["ess"]) == pytest.approx(1.0)
    (got,) = torch.autograd.grad(loss, theta, retain_graph=True)
    (want,) = torch.autograd.grad(-2 * (a * fresh.logp).mean(), theta, retain_graph=True)
    torch.testing.assert_close(got, want)
    stale = dataclasses.replace(fresh, old=log_probs(REFERENCE)[rows])
    rho = (stale.logp - stale.old).exp().detach()
    size = float(rho.sum() ** 2 / (6 * (rho**2).sum()))
    loss, metrics = on_off_loss(fresh, signals, stale, signals)
    want = -(a * fresh.logp).mean() - (rho.clamp(max=size) * a * stale.logp).mean()
    want = want + (1 - size) * (stale.old - stale.logp).mean()
    assert float(loss.detach()) == pytest.approx(float(want.detach())) and size < 0.9
    assert float(effective_sample_size(rho)) == pytest.approx(size)


def test_fakoors_p3o() -> None:
    on_off()


def test_whitened_advantages_have_mean_0_and_std_1_over_real_tokens() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    z = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    some = Tokens(z, z, mask, z[:, 0], torch.arange(2), old_value=z)
    a, _, _ = Whitened(GAE())(some, shaped(some, 0.0), {}, Turn(0, 0))
    assert float(a[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(a[mask].std(correction=0)) == pytest.approx(1, abs=1e-6) and bool((a[~mask] == 0).all())


@pytest.mark.parametrize("name", SEQUENCE_RL)
def test_every_method_runs_and_what_is_padding_does_not_count(name: str) -> None:
    """Padded tokens with other log-probs change neither loss nor gradient; the gradient is finite."""
    g = torch.Generator().manual_seed(3)
    logp, old, ref, value = (-(torch.rand(4, 5, generator=g, dtype=F64)) for _ in range(4))
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [4]])
    results = []
    for noise in (0.0, 7.0):
        parts = [torch.where(mask, x, x - noise).requires_grad_(i == 0) for i, x in enumerate((logp, old, ref, value))]
        reward, group = torch.tensor([1.0, 0.0, 2.0, 2.5], dtype=F64), torch.tensor([0, 0, 1, 1])
        rest = (parts[2], parts[3], parts[3], torch.zeros(4, dtype=F64), parts[2])
        some = Tokens(parts[0], parts[1], mask, reward, group, *rest)
        method = SEQUENCE_RL[name]()
        loss, _ = method.loss(some, method.signals(some, {}, Turn(0, 0)))
        (slope,) = torch.autograd.grad(loss, parts[0])
        assert bool(slope.isfinite().all()) and float(slope[mask].abs().sum()) > 0 and bool((slope[~mask] == 0).all())
        results.append((loss.detach(), slope))
    torch.testing.assert_close(results[0], results[1])


def test_the_parts_are_those_of_the_image_methods() -> None:
    assert isinstance(SEQUENCE_RL["grpo"]().credit.advantage, GroupNormalised)
    assert isinstance(SEQUENCE_RL["rloo"]().credit.advantage, LeaveOneOut)
    assert isinstance(SEQUENCE_RL["ppo"]().surrogate, Clip) and isinstance(SEQUENCE_RL["remax"]().credit, Greedy)
    assert set(CREDITS) == {"outcome", "greedy", "gae", "whitened"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Tokens(torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2, 3) > 0, torch.zeros(2), torch.arange(2)),
            "old must have shape [2, 3], not [2, 2]",
        ),
        (
            lambda: Tokens(
                torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([[True], [False]]), torch.zeros(2), torch.arange(2)
            ),  # fmt: skip
            "completion 1 is empty: leave it out, or let it hold its end token",
        ),
        (
            lambda: SEQUENCE_RL["remax"]().signals(tokens(THETA, torch.tensor([0])), {}, Turn(0, 0)),
            "this method needs the reward of the greedy completions: give Tokens(..., greedy=...)",
        ),
        (
            lambda: SEQUENCE_RL["p3o-joint"]().loss(
                tokens(THETA, torch.tensor([0, 1, 2])), Signals(torch.zeros(3, 2), torch.ones(3) > 0)
            ),
            "pairs are two completions of one prompt side by side: use an even group_size and train.micro_batch, and "
            "train.minibatches=1",
        ),
        (lambda: GAE(1.2), "gamma and lambda lie in [0, 1], not 1.2 and 0.95"),
    ],
)
def test_errors_say_what_to_do(make: object, sentence: str) -> None:
    with pytest.raises(GirsanovError) as error:
        make()
    assert str(error.value) == sentence


@mutants(
    [
        Mutation(credit, "shaped", "r - beta", "r + beta", rloo),
        Mutation(credit, "shaped", "tokens.last", "tokens.mask", rloo),
        Mutation(credit.Greedy, "__call__", "- tokens.need", "+ 3 * tokens.old.sum(1) - tokens.need", remax),
        Mutation(credit.GAE, "__call__", "self.gamma * after", "after", gae),
        Mutation(credit.GAE, "__call__", "self.gamma * self.lam", "self.lam", gae),
        Mutation(credit.GAE, "__call__", "torch.where(here, step, run)", "step", gae),
        Mutation(credit.GAE, "__call__", "a + v", "a", gae),
        Mutation(levels.PairLevel, "__call__", "/ 4", "/ 2", pairwise),
        Mutation(levels.PairLevel, "__call__", "ratio[0::2] - ratio[1::2]", "ratio[0::2] + ratio[1::2]", joint_clip),
        Mutation(levels.SequenceLevel, "__call__", "tokens.logp - tokens.old", "tokens.logp", pairwise),
        Mutation(levels.SequenceMean, "__call__", "mask.sum(1)", "mask.sum()", averages),
        Mutation(rl.SequenceRL, "loss", "- gap - 1", "- 1", k3),
        Mutation(rl.SequenceRL, "loss", "- tokens.logp", "- tokens.old", grpo),
        Mutation(rl.SequenceRL, "_value_loss", "torch.maximum", "torch.minimum", value_loss),
        Mutation(rl, "on_off_loss", "1 - size", "size", on_off),
        Mutation(rl, "effective_sample_size", "* ratio.numel()", "", on_off),
    ]
)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
