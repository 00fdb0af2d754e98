"""Methods of language models with completions of their own kind: mixtures, self-play, replay, segments, labels."""

import dataclasses
import itertools
import math
import sys

import pytest
import torch
from torch.nn.functional import logsigmoid

from girsanov.data.records import Segment
from girsanov.judging import ScoreJudge
from girsanov.language import (
    LANGUAGE_METHODS,
    Encoder,
    Sampling,
    TextComparisons,
    TextRequests,
    batches,
    game,
    generate,
    replay,
    selfplay,
)
from girsanov.language.base import OPPOSE, REFERENCE, view
from girsanov.language.mixture import mixture
from girsanov.language.preference import PreferenceMethod
from girsanov.language.rewards import Long
from girsanov.language.segments import token_weights
from girsanov.language.token_rewards import DPOModel
from girsanov.language.tokens import pad
from girsanov.methods.base import Turn
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.preferences import Compared, make_loss
from girsanov.sequences import levels
from girsanov.train import TrainConfig, fit
from tests.language_models import chat, model, steady
from tests.laws.bandit import REF, minimum
from tests.laws.mutation import Mutation, check, mutants

F64 = torch.float64
MIXTURE, PAIRS, SEGMENTS, BASELINE = (
    sys.modules[f"girsanov.{n}"]
    for n in ("language.mixture", "preferences.pairs", "language.segments", "language.baseline")
)


def small(**more):
    return model("abc", layers=1, width=8, scale=9.0, **more)


def moved(policy: Policy, seed: int = 0, size: float = 0.05) -> Policy:
    """The policy away from its reference."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return policy


def table(m, ids: list[int]) -> torch.Tensor:
    """Log-probs of every next token, [len(ids), V]."""
    return m.ask(lambda net: net.lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1))


# ---- the mixture of Nash-MD-PG


def law_the_mixture_is_sampled() -> None:
    """4,000 samples, seed 0, share .3 of another model: chi-square of the 7 completions (6 degrees) below 6 + 4
    sqrt(12); at share 0 and 1 the completions are those of the one and of the other."""
    one, two = steady(scale=25.0, layers=1), steady(scale=25.0, layers=1, seed=5)
    prompt, noise, n = [1, 2], torch.arange(4000), 4000
    found = generate(one, [prompt] * n, Noise(0, 0, noise), Sampling(max_tokens=2), mixture(one, two, 0.3))
    drawn = [t[o].tolist() for t, o in zip(found.tokens, found.own, strict=True)]
    every = [[0], *([a, b] for a, b in itertools.product((1, 2), range(3)))]

    def mixed(ids: list[int]) -> torch.Tensor:
        return (0.7 * table(one, ids)[-1] + 0.3 * table(two, ids)[-1]).log_softmax(-1)

    chance = [sum(mixed([*prompt, *ids[:t]])[ids[t]] for t in range(len(ids))) for ids in every]
    p = torch.stack(chance).exp().detach()
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=F64))
    seen = torch.tensor([float(drawn.count(c)) for c in every], dtype=F64)
    chi = float(((seen - n * p).square() / (n * p)).sum())
    assert chi < 6 + 4 * math.sqrt(12), chi
    for share, alone in ((0.0, one), (1.0, two)):
        a = generate(one, [prompt] * 50, Noise(0, 0, noise[:50]), Sampling(max_tokens=5), mixture(one, two, share))
        b = generate(alone, [prompt] * 50, Noise(0, 0, noise[:50]), Sampling(max_tokens=5))
        assert torch.equal(a.tokens, b.tokens)


def law_nash_md_pg_is_its_formula() -> None:
    """The loss from the completions of both sides, drawn again by hand; a judge in the place of the reward."""
    policy = moved(Policy(small()), size=0.3)
    prompts = TextRequests(texts=["a", "ab"], groups_per_batch=2, group_size=8).batch(0)
    sampling, turn = Sampling(max_tokens=4), Turn(3, 0)
    now, ref = (view(policy, name) for name in ("current", "reference"))
    asked = [now.encoder.prompt(p) for p in prompts.meta]
    own = generate(now, asked, turn.noise(prompts.ids, 1), sampling)
    other = generate(now, asked, turn.noise(prompts.ids, OPPOSE), sampling, mixture(now, ref, 0.25))
    ours, theirs = now.encoder.texts(own), now.encoder.texts(other)
    assert ours != theirs
    gap = torch.tensor([float(len(a) - len(b)) for a, b in zip(ours, theirs, strict=True)], dtype=F64)
    liked = ScoreJudge(lambda prompt, answer: float(answer.text.count("c")))
    for judge in (None, liked):
        method = LANGUAGE_METHODS["nash-md-pg"](
            beta=0.3, reward=Long(), share=0.25, temperature=2.0, sampling=sampling, judge=judge
        )
        batch = method.collect(policy, prompts, method.setup(policy), turn)
        (chunk,) = method.losses(policy, batch, {})
        wins = torch.sigmoid(gap / 2)
        if judge is not None:
            counts = [(a.count("c"), b.count("c"), bool(a and b)) for a, b in zip(ours, theirs, strict=True)]
            wins = torch.tensor([0.5 * (1 + (x > y) - (x < y)) if ok else 0.5 for x, y, ok in counts], dtype=F64)
        d = (now.logp(own) - ref.logp(own)).detach()
        torch.testing.assert_close(chunk.loss, -((wins - 0.5 - 0.3 * d) * now.logp(own)).mean())


# ---- SPIN


def law_spin_rests_at_the_data() -> None:
    """The population minimum on three arms is ``pi_t (p / pi_t)^(1 / beta)``: p itself for beta = 1, and at p."""
    data = torch.tensor([0.2, 0.2, 0.6], dtype=F64).log()
    index = torch.tensor(list(itertools.product(range(3), repeat=2)))
    for beta, start in ((1.0, REF), (0.7, REF), (2.5, REF), (0.7, data)):
        weight = data.exp()[index[:, 0]] * start.exp()[index[:, 1]]
        loss = make_loss("spin", beta=beta)
        found = minimum(loss, lambda log_pi, r=start, w=weight: (Compared(log_pi[index], r[index]), w))
        want = (start + (data - start) / beta).softmax(0)
        torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


def law_the_opponent_is_the_last_iterate() -> None:
    """Losers are the reference's, whatever the policy has become, until it is refreshed after ``every`` updates."""
    policy = Policy(small())
    method = LANGUAGE_METHODS["spin"](every=2, sampling=Sampling(max_tokens=4))
    rows = [(p, ["abc", "b"]) for p in ("a", "ab", "c", "bb")]
    data = TextComparisons.encode(policy.model.encoder, rows, batch_size=4)
    state, prompts = method.setup(policy), data.batch(0)
    moved(policy, size=0.2)
    for update in (1, 2):
        turn = Turn(0, update)
        batch = method.collect(policy, prompts, state, turn)
        asked = [policy.model.encoder.prompt(p) for p in prompts.meta]
        noise = turn.noise(prompts.ids, OPPOSE)
        wanted = generate(view(policy, REFERENCE), asked, noise, Sampling(max_tokens=4))
        texts = policy.model.encoder.texts(batch.items.flat())
        assert texts[::2] == ["abc"] * 4 and texts[1::2] == policy.model.encoder.texts(wanted)
        torch.testing.assert_close(batch.ref, view(policy, REFERENCE).logp(batch.items.flat()).view(4, 2).detach())
        method.after_update(policy, state, turn)
        same = all(torch.equal(a, policy.state()[n]) for n, a in policy.copies[REFERENCE].items())
        assert same == (update == 2)


# ---- RTO


def law_rto_rests_at_the_dpo_model() -> None:
    """Token rewards by hand; for beta1 = beta2 they are 0 at the DPO model itself, token by token."""
    tuned = moved(Policy(small()), 7).model
    policy = moved(Policy(small()), 1)
    rows = pad([[1, 2, 3, 0], [2, 1, 1, 2, 0]], [1, 2], 0)
    now, ref = (view(policy, n).token_logp(rows).detach() for n in ("current", "reference"))
    own = tuned.token_logp(rows).detach()
    found = DPOModel.of(tuned, 0.4, 0.1)(policy, rows, now)
    torch.testing.assert_close(found, 0.4 * (own - ref) - 0.1 * (now - ref))
    with torch.no_grad():
        for p, q in zip(policy.parameters(), tuned.net.parameters(), strict=True):
            p.copy_(q)
    rest = DPOModel.of(tuned, 0.3, 0.3)(policy, rows, view(policy, "current").token_logp(rows).detach())
    assert rest.abs().max() < 1e-12


# ---- dense DPO and POVID


def law_segments_weigh_tokens() -> None:
    """Letters are tokens: D and N by hand, with weights of the data, of the method, and none; then tokens of a chat."""
    policy = moved(Policy(small()))
    encoder = policy.model.encoder
    rows, marks = [("a", ["abc", "cb"]), ("b", ["ca", "a"])], [[(Segment(1, 2, 3.0),), (Segment(0, 1),)], [(), ()]]
    data = TextComparisons.encode(encoder, rows, segments=marks, batch_size=2)
    method = LANGUAGE_METHODS["dense-dpo"](beta=0.7, emphasis=5.0)
    prompts = data.batch(0)
    batch = method.collect(policy, prompts, method.setup(policy), Turn(0, 0))
    (chunk,) = method.losses(policy, batch, {})
    weights = {"abc": [1, 3, 1, 1], "cb": [5, 1, 1], "ca": [1, 1, 1], "a": [1, 1]}
    score = {}
    for prompt, texts in rows:
        for text in texts:
            ids, start = encoder.row(prompt, text)
            w = torch.tensor(weights[text], dtype=F64)
            gaps = [
                table(view(policy, n), ids)[start - 1 : -1].gather(1, torch.tensor(ids[start:])[:, None])[:, 0]
                for n in ("current", "reference")
            ]
            score[text] = (w * (gaps[0] - gaps[1])).sum() / w.sum()
    want = -(logsigmoid(0.7 * (score["abc"] - score["cb"])) + logsigmoid(0.7 * (score["ca"] - score["a"]))) / 2
    torch.testing.assert_close(chunk.loss, want)
    talk = Encoder(chat(), 64)
    answer = "fine, thank you"
    for template in (talk, Encoder(chat(), 64, template=False)):
        ids, start = template.row("how are you", answer)
        at = answer.index("thank")
        found = token_weights(template, "how are you", answer, ids, start, [Segment(at, at + 5, 4.0)], "here")
        marked = template.tokenizer.decode([i for i, w in zip(ids, found.tolist(), strict=True) if w == 4.0])
        assert marked.strip() == "thank" and bool((found[:start] == 1).all()) and found[-1] == 1


def law_all_negatives_share_one_logit() -> None:
    """Rows of two and of three negatives: ``s_0 - mean of the others`` by hand; a constant of a prompt cancels."""
    policy = moved(Policy(small()))
    rows = [("a", ["abc", "b", "cc", "ca"]), ("ab", ["c", "a", "bb"])]
    data = TextComparisons.encode(policy.model.encoder, rows, batch_size=2)
    method = LANGUAGE_METHODS["povid"](beta=0.4)
    batch = method.collect(policy, data.batch(0), method.setup(policy), Turn(0, 0))
    order = data.batch(0).group.tolist()
    (chunk,) = method.losses(policy, batch, {})
    d = batch.logp(view(policy, "current")) - batch.ref
    logits = []
    for i, r in enumerate(order):
        k = len(rows[r][1])
        logits.append(0.4 * (d[i, 0] - d[i, 1:k].mean()))
    torch.testing.assert_close(chunk.loss, -logsigmoid(torch.stack(logits)).mean())
    shifted = Compared(
        batch.logp(view(policy, "current")) + torch.tensor([[1.0], [-2.0]]), batch.ref, valid=batch.valid
    )
    torch.testing.assert_close(method.loss(shifted), chunk.loss)


# ---- P3O on and off policy


def law_p3o_on_off_is_its_formula() -> None:
    """The first iteration has its own completions alone; the second's loss and sample size by hand."""
    policy = Policy(small())
    method = LANGUAGE_METHODS["p3o-on-off"](reward=Long(), beta=0.0, sampling=Sampling(max_tokens=4))
    source = TextRequests(texts=["a", "ab", "c"], groups_per_batch=3, group_size=4)
    state = method.setup(policy)
    first = method.collect(policy, source.batch(0), state, Turn(0, 0))
    (chunk,) = method.losses(policy, first, state)
    logp, own = view(policy, "current").token_logp(first.fresh.rows), first.fresh.rows.own
    torch.testing.assert_close(chunk.loss, -(first.fresh.advantage * logp)[own].mean())
    moved(policy, 4, 0.1)
    second = method.collect(policy, source.batch(1), state, Turn(0, 1))
    (chunk,) = method.losses(policy, second, state)
    on, off = second.fresh, second.stale
    a, b = (view(policy, "current").token_logp(side.rows) for side in (on, off))
    rho = (b - off.logp).detach().exp()[off.rows.own]
    size = rho.sum() ** 2 / (len(rho) * (rho**2).sum())
    assert 0.1 < float(size) < 0.95 and torch.equal(off.rows.tokens[:, :1], first.fresh.rows.tokens[:, :1])
    want = -(on.advantage * a)[on.rows.own].mean()
    want = want - (rho.clamp(max=float(size)) * (off.advantage * b)[off.rows.own]).mean()
    want = want + (1 - size) * (off.logp - b)[off.rows.own].mean()
    torch.testing.assert_close(chunk.loss, want)
    assert len(state["replay"]) == 2


# ---- labels and baselines


def labelled(m, **more) -> TextComparisons:
    rows = [("a", ["abc"]), ("ab", ["b"]), ("c", ["cca"]), ("bb", ["ca"])]
    return TextComparisons.encode(m.encoder, rows, labels=[[True], [False], [False], [True]], batch_size=4, **more)


def law_kto_on_labels_is_its_formula() -> None:
    """``-y sigma(y (s - z))`` with z from each prompt and the next row's completion, at the weights of every update."""
    policy = Policy(small())
    data, method = labelled(policy.model), LANGUAGE_METHODS["kto"](beta=0.5)
    prompts, state = data.batch(0), method.setup(policy)
    order = prompts.group.tolist()
    texts = [("a", "abc", 1), ("ab", "b", -1), ("c", "cca", -1), ("bb", "ca", 1)]
    rows = [texts[r] for r in order]

    def want() -> torch.Tensor:
        now, ref = (view(policy, n) for n in ("current", "reference"))
        odd = now.encoder.batch([(rows[i][0], rows[(i + 1) % 4][1]) for i in range(4)])
        z = (0.5 * (now.logp(odd) - ref.logp(odd)).mean()).detach()
        assert z > 0.01  # it is clamped at 0, where a stale one would not be noticed
        even = now.encoder.batch([(p, c) for p, c, _ in rows])
        s, y = 0.5 * (now.logp(even) - ref.logp(even)), torch.tensor([float(y) for *_, y in rows], dtype=F64)
        return -torch.sigmoid(y * (s - z)).mean()

    moved(policy, 1)
    batch = method.anchor(policy, method.collect(policy, prompts, state, Turn(0, 0)), state)
    for _ in range(3):
        (chunk,) = method.losses(policy, batch, state)
        torch.testing.assert_close(chunk.loss, want())
        moved(policy, 1, 0.02)
        method.after_update(policy, state, Turn(0, 0))


def micro_batches(name: str) -> None:
    """Two iterations of two updates, 4 rows at once and one at a time: the same weights."""
    found = []
    for micro in (None, 1):
        policy = Policy(small())
        online = name in ("ppo", "p3o-on-off", "rto", "nash-md-pg")
        more = {"reward": Long()} if online else {}
        if online or name == "spin":
            more["sampling"] = Sampling(max_tokens=4)
        method = LANGUAGE_METHODS[name](**more)
        if name == "rto":
            method = dataclasses.replace(method, dense=DPOModel.of(moved(Policy(small()), 7).model))
        source = labelled(policy.model)
        if online:
            source = TextRequests(texts=["a", "ab"], groups_per_batch=2, group_size=2)
        if name in ("spin", "povid"):
            rows = [(p, ["abc", "b", "cca"]) for p in ("a", "ab", "c", "bb")]
            source = TextComparisons.encode(policy.model.encoder, rows, batch_size=4)
        config = TrainConfig(iterations=2, lr=1e-3, epochs=2, micro_batch=micro, max_grad_norm=None)
        fit(policy, method, source, config)
        found.append([p.detach().clone() for p in policy.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def law_micro_batches_and_several_updates_change_nothing() -> None:
    """Losses with statistics of the batch."""
    for name in ("kto", "bco", "diffusion-kto", "ppo", "p3o-on-off", "rto", "nash-md-pg", "spin", "povid"):
        micro_batches(name)


def law_rows_meet_the_same_others_on_any_number_of_processes() -> None:
    m = small()
    rows = [(p, [c]) for p, c in zip("abcabc", ("a", "b", "c", "aa", "bb", "cc"), strict=True)]
    data = TextComparisons.encode(m.encoder, rows, batch_size=4, seed=2)
    for iteration in range(3):
        whole = data.batch(iteration)
        parts = [data.batch(iteration, rank, 2) for rank in range(2)]
        both = [m.encoder.texts(p.others) for p in parts]
        assert m.encoder.texts(whole.others) == both[0] + both[1]
        assert m.encoder.texts(whole.others) == [rows[r][1][0] for r in whole.group.roll(-1).tolist()]


GAME, PLAY = game.MixtureGame, selfplay.SelfPlay
KTO, OTHERS = law_kto_on_labels_is_its_formula, law_rows_meet_the_same_others_on_any_number_of_processes
LAWS = [v for k, v in dict(globals()).items() if k.startswith("law_")]


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_laws(law) -> None:
    law()


MUTATIONS = [
    Mutation(*what)
    for what in (
        (MIXTURE, "mixture", "geometric_mixture(", "1.2 * geometric_mixture(", law_the_mixture_is_sampled),
        (MIXTURE, "mixture", "cache=others", "cache=own", law_the_mixture_is_sampled),
        (GAME, "collect", "reference_of(policy), self.share", "model, self.share", law_nash_md_pg_is_its_formula),
        (GAME, "collect", "law, OPPOSE", "law, 1", law_nash_md_pg_is_its_formula),
        (PLAY, "collect", "reference_of(policy)", "policy.view()", law_the_opponent_is_the_last_iterate),
        (DPOModel, "__call__", "self.beta1, self.beta2", "self.beta2, self.beta1", law_rto_rests_at_the_dpo_model),
        (SEGMENTS, "token_weights", "low < s.end", "low <= s.end", law_segments_weigh_tokens),
        (batches, "weighted_logp", "found * weight", "found + 0 * weight", law_segments_weigh_tokens),
        (PAIRS.ManyNegatives, "rows", "/ there.sum(1)", "/ 3", law_all_negatives_share_one_logit),
        (replay.ReplayRL, "older", "/ (square * count)", "/ square", law_p3o_on_off_is_its_formula),
        (BASELINE, "mismatched", "*others.tokens[i][others.own[i]]", "*items.tokens[i, 0][items.own[i, 0]]", KTO),
        (PreferenceMethod, "after_update", "if self._parts", "if False", KTO),
        (levels.TokenMean, "__call__", "len(terms) * per", "mask.sum()", lambda: micro_batches("ppo")),
        (TextComparisons, "batch", "order.rows(iteration).roll(-1)[ids]", "rows.roll(-1)", OTHERS),
    )
]


@mutants(MUTATIONS)
def test_mutations_are_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    check(mutation, monkeypatch)
