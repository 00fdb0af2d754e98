"""Language models against enumeration: probabilities, samples, gradients, and the end point of DPO."""

import itertools
import math
import sys

import pytest
import torch

from girsanov.language import Completions, LanguageModel, LanguageNet, Sampling, generate
from girsanov.language.base import view
from girsanov.language.batches import ComparedBatch
from girsanov.language.logprobs import divergence, entropy, token_logp
from girsanov.language.named import LANGUAGE_METHODS
from girsanov.language.online import win_probabilities
from girsanov.language.packing import Packed, first_fit
from girsanov.language.preference import OfflinePreference, needs
from girsanov.language.tokens import pad
from girsanov.methods.base import Turn
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.preferences import LOSSES, make_loss, sequence_kl
from girsanov.surrogates import ScoreFunction
from tests.language_models import model, steady
from tests.laws.mutation import Mutation, check, mutants

GENERATION, LOGPROBS, ONLINE = (sys.modules[f"girsanov.language.{n}"] for n in ("generation", "logprobs", "online"))
F64 = torch.float64
PROMPT = [1, 2]


def every(vocabulary: int, longest: int) -> list[list[int]]:
    """Every completion: up to ``longest`` tokens, ending at the first end token (0) or cut."""
    found = []
    for n in range(1, longest + 1):
        for ids in itertools.product(range(vocabulary), repeat=n):
            ended = ids[-1] == 0
            if 0 not in ids[:-1] and (ended or n == longest):
                found.append(list(ids))
    return found


def rows(completions: list[list[int]], prompt: list[int] = PROMPT) -> Completions:
    return pad([[*prompt, *c] for c in completions], [len(prompt)] * len(completions), 0)


def law_all_completions_have_probability_one() -> None:
    """Three tokens, up to three long, two prompts of different length in one batch: 15 completions each."""
    m = steady(scale=25.0)
    all_of = every(3, 3)
    assert len(all_of) == 1 + 2 + 4 + 8
    prompts = [[1, 2], [2, 1, 1, 2]]
    batch = pad([[*p, *c] for p in prompts for c in all_of], [len(p) for p in prompts for _ in all_of], 0)
    logp = m.logp(batch).reshape(2, -1).detach()
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(2, dtype=F64))
    one = m.net.lm(input_ids=torch.tensor([[1, 2, 2, 0]])).logits[0].log_softmax(-1).detach()
    expected = one[1, 2] + one[2, 0]
    assert float(logp[0, all_of.index([2, 0])]) == pytest.approx(float(expected), abs=1e-12)


def law_samples_have_the_models_law() -> None:
    """3,000 samples of two prompts, seed 0: chi-square of the 7 completions (6 degrees) below 6 + 4 sqrt(12) each."""
    m = steady(kind="gpt2", scale=25.0, layers=1)
    all_of = every(3, 2)
    prompts = [[1, 2], [2]] * 3000
    found = generate(m, prompts, Noise(0, 0, torch.arange(6000)), Sampling(max_tokens=2))
    drawn = [t[o].tolist() for t, o in zip(found.tokens, found.own, strict=True)]
    for side, prompt in enumerate(prompts[:2]):
        p = m.logp(rows(all_of, prompt)).exp().detach()
        seen = torch.tensor([float(drawn[side::2].count(c)) for c in all_of], dtype=F64)
        chi = float(((seen - 3000 * p).square() / (3000 * p)).sum())
        assert chi < 6 + 4 * math.sqrt(12), chi


def noting(kept: list[int]):
    """A hook that notes the sizes of what waits for the backward pass."""

    def hook(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    return hook


def law_chunks_change_nothing_but_memory() -> None:
    """Value and gradients of 23 positions over 11 words, chunks of 1, 4, 23 and none; kept: a table a chunk at most."""
    g = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 11).double()
    hidden = torch.randn(23, 6, generator=g, dtype=F64, requires_grad=True)
    target = torch.randint(11, (23,), generator=g)
    weight = torch.randn(23, generator=g, dtype=F64)
    naive = head(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]
    wanted = torch.autograd.grad((weight * naive).sum(), [hidden, *head.parameters()])
    for chunk, recompute in itertools.product((1, 4, 23, None), (True, False)):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(noting(kept), lambda t: t):
            found = token_logp(head, hidden, target, chunk, recompute)
        torch.testing.assert_close(found, naive)
        got = torch.autograd.grad((weight * found).sum(), [hidden, *head.parameters()])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)
        if recompute:
            assert max(kept) <= max(hidden.numel(), 11 * 6)  # no table of 23 x 11 waits for the backward pass


def law_entropy_and_divergence_are_their_sums() -> None:
    g = torch.Generator().manual_seed(1)
    head, other = torch.nn.Linear(5, 7).double(), torch.nn.Linear(5, 7).double()
    h, o = (torch.randn(9, 5, generator=g, dtype=F64) for _ in range(2))
    h.requires_grad_(True)
    p, q = head(h).log_softmax(-1), other(o).log_softmax(-1).detach()
    torch.testing.assert_close(entropy(head, h, 2), -(p.exp() * p).sum(-1))
    own = torch.ones(1, 9, dtype=torch.bool)
    expected = sequence_kl(p[None], q[None], own)
    found = divergence(head, h, other, o, 4)
    torch.testing.assert_close(found.sum(), expected[0])
    (a,), (b,) = (torch.autograd.grad(v.sum(), h, retain_graph=True) for v in (found, expected))
    torch.testing.assert_close(a, b)


def law_packing_changes_nothing() -> None:
    """Rows of 3 to 9 tokens in bins of 12: log-probs and gradients of the padded batch, two kinds of places."""
    for kind in ("llama", "gpt2"):
        _packed(steady("abc", kind, chunk=None, scale=9.0), steady("abc", kind, chunk=3, packed=12, scale=9.0))


def _packed(plain: LanguageModel, bins: LanguageModel) -> None:
    ids = [[1, 2, 0], [3, 1, 2, 1, 2, 3, 1, 2, 0], [2, 1, 3, 0], [1, 1, 2, 2, 3, 0], [2, 0]]
    batch = pad(ids, [1, 3, 2, 1, 1], 0)
    for m in (plain, bins):
        m.net.zero_grad()
        (m.token_logp(batch) * torch.arange(9)).sum().backward()
    torch.testing.assert_close(plain.token_logp(batch), bins.token_logp(batch), rtol=1e-5, atol=1e-6)  # float32 angles
    for a, b in zip(plain.net.parameters(), bins.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    packed = Packed.of(batch.real, 12)
    assert packed.row.shape == (2, 12) and int(packed.real.sum()) == 24


def law_the_policy_gradient_is_that_of_the_expected_reward() -> None:
    """The score-function loss of every completion at its probability against d/dtheta sum_y pi(y) r(y)."""
    m = model(scale=25.0, layers=1)
    all_of = every(3, 2)
    batch, reward = rows(all_of), torch.linspace(-1, 2, 7, dtype=F64)
    p = m.logp(batch).exp()
    wanted = torch.autograd.grad((p * reward).sum(), list(m.net.parameters()))
    logp = m.token_logp(batch)
    loss, _ = ScoreFunction()(logp - logp.detach(), reward, batch.own.any(1))
    got = torch.autograd.grad((p.detach()[:, None] * loss * batch.own).sum(), list(m.net.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(-a, b)


def law_dpo_ends_at_the_tilted_law() -> None:
    """Seven completions, labels at the exact odds of a reward, all pairs: pi_ref exp(r / beta) / Z within 1e-4."""
    m = model(scale=25.0)
    policy = Policy(m)
    all_of = every(3, 2)
    batch, reward, beta = (
        rows(all_of),
        torch.linspace(-0.6, 0.8, 7, dtype=F64)[torch.tensor([3, 0, 6, 2, 5, 1, 4])],
        0.7,
    )
    pairs = torch.tensor(list(itertools.permutations(range(7), 2)))
    odds = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])
    ref = view(policy, "reference").logp(batch).detach()
    method = OfflinePreference(loss=make_loss("dpo", beta=beta))
    optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=120, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        logp = view(policy, "current").logp(batch)
        two = Completions(*(v[pairs] for v in (batch.tokens, batch.real, batch.own)))
        record = ComparedBatch(two, torch.ones(len(pairs), 2) > 0, ref=ref[pairs]).record(logp[pairs], None)
        loss = (odds * method.loss.rows(record)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = view(policy, "current").logp(batch).exp()
    torch.testing.assert_close(found, (ref + reward / beta).softmax(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(view(policy, "reference").logp(batch), ref)  # the reference has not moved


def law_win_probabilities_are_means_over_the_others() -> None:
    score = torch.tensor([[0.0, 1.0, -2.0]], dtype=F64)
    s = torch.sigmoid(torch.tensor([1.0, 2.0, 3.0], dtype=F64) / 2)
    expected = torch.stack([(1 - s[0] + s[1]) / 2, (s[0] + s[2]) / 2, (2 - s[1] - s[2]) / 2])[None]
    torch.testing.assert_close(win_probabilities(score, 2.0), expected)


LAWS = [v for k, v in dict(globals()).items() if k.startswith("law_")]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_laws(law) -> None:
    law()


def test_a_loss_is_computed_as_it_is_written() -> None:
    """DPO, SimPO and TDPO 2 of two pairs from the model's own table of logits, by hand."""
    m = model("abc", scale=25.0)
    policy = Policy(m)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=F64))
    pairs = [([1, 2], [3, 0], [2, 2, 0]), ([2], [1, 0], [3])]
    flat = [[*p, *c] for p, w, l in pairs for c in (w, l)]
    items = pad(flat, [len(p) for p, _, _ in pairs for _ in range(2)], 0).unflat(2)

    def table(name: str, ids: list[int]) -> torch.Tensor:
        ask = torch.tensor([ids])
        return view(policy, name).ask(lambda net: net.lm(input_ids=ask).logits[0].log_softmax(-1))

    logp, ref, kl = (torch.zeros(2, 2, dtype=F64) for _ in range(3))
    for i, (prompt, *sides) in enumerate(pairs):
        for k, side in enumerate(sides):
            new, old = (table(n, [*prompt, *side]) for n in ("current", "reference"))
            for t, token in enumerate(side):
                at = len(prompt) + t - 1
                logp[i, k] += new[at, token]
                ref[i, k] += old[at, token]
                kl[i, k] += (old[at].exp() * (old[at] - new[at])).sum()
    length = torch.tensor([[2.0, 3.0], [2.0, 1.0]], dtype=F64)
    gap = (logp - ref)[:, 0] - (logp - ref)[:, 1]
    mean = (logp / length)[:, 0] - (logp / length)[:, 1]
    from torch.nn.functional import logsigmoid

    expected = {
        "dpo": -logsigmoid(0.3 * gap).mean(),
        "simpo": -logsigmoid(2.0 * mean - 1.0).mean(),
        "tdpo2": -logsigmoid(0.3 * gap - 0.5 * 0.3 * (kl[:, 1] - kl[:, 0])).mean(),
    }
    for name, value in expected.items():
        method = LANGUAGE_METHODS[name](**({} if name == "simpo" else {"beta": 0.3}))
        batch = method.finished(policy, ComparedBatch(items, torch.ones(2, 2) > 0), {}, Turn(0, 0))
        (chunk,) = method.losses(policy, batch, {})
        torch.testing.assert_close(chunk.loss, value, msg=name)
        assert (batch.ref is not None) == (name != "simpo")


def test_what_a_loss_reads_is_found_by_asking_it() -> None:
    assert needs(make_loss("dpo")) == {"ref"} and needs(make_loss("simpo")) == {"length"}
    assert needs(make_loss("tdpo1")) == {"ref", "divergence"} and needs(make_loss("kto")) == {"ref", "mismatched"}
    assert needs(make_loss("mallows-dpo")) == {"ref", "dispersion"} and needs(make_loss("odpo")) == {"ref", "score"}
    assert set(LANGUAGE_METHODS) >= set(LOSSES) - {"povid", "dense-dpo", "diffusion-kto", "spin", "nash-md-pg"}


def test_rows_share_bins_as_first_fit_says() -> None:
    assert first_fit([3, 9, 4, 6, 2], 12) == [[1, 0], [3, 2, 4]]
    with pytest.raises(ValueError, match="row 1 has 9 tokens and a bin 8"):
        first_fit([3, 9], 8)


MUTATIONS = [
    Mutation(LanguageNet, "hidden", "states[:, :-1]", "states[:, 1:]", law_all_completions_have_probability_one),
    Mutation(
        Packed,
        "mask",
        "same = (self.row[:, :, None] == self.row[:, None, :])",
        "same = True",
        law_packing_changes_nothing,
    ),
    Mutation(LanguageNet, "hidden", "bins.column", "bins.column * 0 + torch.arange(12)", law_packing_changes_nothing),
    Mutation(GENERATION, "_walk", "place[:, -1:] + 1", "place[:, -1:]", law_samples_have_the_models_law),
    Mutation(GENERATION, "_walk", "u[:, t]", "u[:, 0]", law_samples_have_the_models_law),
    Mutation(Sampling, "pick", "p.cumsum(-1)", "p.flip(-1).cumsum(-1)", law_samples_have_the_models_law),
    Mutation(
        LOGPROBS,
        "divergence",
        "log_q.exp() * (log_q -",
        "log_q.exp() * (-log_q -",
        law_entropy_and_divergence_are_their_sums,
    ),
    Mutation(LOGPROBS, "chunked", "t.split(chunk)", "t.flip(0).split(chunk)", law_chunks_change_nothing_but_memory),
    Mutation(ONLINE, "win_probabilities", "- 0.5", "", law_win_probabilities_are_means_over_the_others),
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
