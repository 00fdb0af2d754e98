"""Language models: rows and masks, chat templates, the cache, every method by its name, errors in a sentence."""

import dataclasses

import pytest
import torch

from girsanov.adapters.lora import add_lora
from girsanov.config.parts import parameters
from girsanov.data.records import Segment
from girsanov.errors import GirsanovError
from girsanov.jsonl import write_rows
from girsanov.judging import Answer, ScoreJudge
from girsanov.language import (
    LANGUAGE_METHODS,
    Encoder,
    LanguageModel,
    LanguageNet,
    Sampling,
    TextComparisons,
    TextRequests,
    generate,
    lora_targets,
)
from girsanov.language.base import REFERENCE, view
from girsanov.language.files import read_comparisons
from girsanov.language.named import ONLINE, OTHERWISE
from girsanov.language.online import OnlinePreference
from girsanov.language.policy_gradient import LanguageRL
from girsanov.language.rewards import EndsWith, FunctionTextReward, Long, Vowels, as_text_reward
from girsanov.language.scorer import LanguageScorer, scorer_rows
from girsanov.language.token_rewards import DPOModel
from girsanov.language.tokens import join, pad
from girsanov.methods.base import Turn
from girsanov.noise import Noise
from girsanov.policy import Policy
from girsanov.preferences import LOSSES
from girsanov.reward_models.method import RewardModelling, Scoring, score_items
from girsanov.reward_models.scorers import Members
from girsanov.sequences import SEQUENCE_RL
from girsanov.train import Run, TrainConfig, fit, iterate
from tests.language_models import chat, letters, llama, model, steady

TALK = [{"role": "user", "content": "how are you"}]


def small(**more):
    return model("abc", layers=1, width=8, scale=9.0, **more)


def comparisons(m: LanguageModel, items: int = 2, **more) -> TextComparisons:
    rows = [(p, ["abc", "b", "cca"][:items]) for p in ("a", "ab", "c", "bb")]
    return TextComparisons.encode(m.encoder, rows, [[2.0, 1.0, 0.5][:items]] * 4, batch_size=4, **more)


def requests(size: int = 4) -> TextRequests:
    return TextRequests(texts=["a", "ab", "c"], groups_per_batch=2, group_size=size)


# ---- rows


def test_the_prompt_is_never_scored_and_the_end_is() -> None:
    m = small()
    batch = m.encoder.batch([("ab", "c"), ("b", "abc")])
    assert batch.tokens.tolist() == [[1, 2, 3, 0, 0], [2, 1, 2, 3, 0]]
    assert batch.own.tolist() == [[False, False, True, True, False], [False, True, True, True, True]]
    assert batch.real.sum(1).tolist() == [4, 5] and batch.length.tolist() == [2, 4]
    logp = m.token_logp(batch)
    assert bool((logp[~batch.own] == 0).all()) and bool((logp[batch.own] < 0).all())
    assert m.encoder.texts(batch) == ["c", "abc"]
    both = join([batch, m.encoder.batch([("a", "b")])])
    assert both.tokens.shape == (3, 5) and both.take(torch.tensor([2])).length.tolist() == [2]


def test_a_conversation_goes_through_the_template() -> None:
    encoder = Encoder(chat(), 64)
    ids, start = encoder.row(TALK, "fine, thank you")
    text = encoder.tokenizer.decode(ids)
    assert text.rstrip() == "<|user|> how are you\n<|assistant|> fine, thank you</s>"
    assert encoder.tokenizer.decode(ids[start:]).rstrip() == "fine, thank you</s>"
    assert encoder.row("how are you", "fine, thank you") == (ids, start)  # a text is what the user says
    plain = Encoder(chat(), 64, template=False)
    ids, start = plain.row("take the", " red pill")
    assert plain.tokenizer.decode(ids) == "take the red pill</s>" and ids[-1] == encoder.end
    with pytest.raises(GirsanovError, match="a conversation needs the tokenizer's chat template"):
        plain.row(TALK, "x")
    with pytest.raises(GirsanovError, match="the tokenizer has no chat template"):
        Encoder(letters(), 9).row(TALK, "a")


def test_a_template_that_rewrites_what_came_before_keeps_the_answer() -> None:
    """One that drops the generation prompt: the answer's own tokens and the end follow the prompt's."""
    tokenizer = chat()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    encoder = Encoder(tokenizer, 64)
    ids, start = encoder.row(TALK, "fine")
    assert tokenizer.decode(ids[start:]) == "fine</s>" and tokenizer.decode(ids[:start]) == "1how are you"


def test_what_does_not_fit() -> None:
    encoder = Encoder(letters("abc"), 5)
    assert encoder.row("ab", "ccccc") == ([1, 2, 3, 3, 3], 2)  # cut, without an end
    assert encoder.row("", "a") == ([0, 1, 0], 1)  # nothing to score without a first token
    for make, said in (
        (lambda: encoder.row("abcab", "c", "row 3"), "row 3 has 5 tokens and a row at most 5"),
        (lambda: encoder.row("a", "", "row 3"), "row 3 has an empty completion"),
        (lambda: TextComparisons.encode(encoder, [("a", ["b", "b"])]), "row 0: chosen equals rejected"),
        (lambda: TextComparisons.encode(encoder, [("a", ["b", "c"])], [[1.0, float("nan")]]), "row 0 needs one finite"),
        (lambda: TextComparisons.encode(encoder, [("a", [])]), "row 0 has no completion"),
        (lambda: TextComparisons.encode(encoder, []), "there are no comparisons"),
        (lambda: TextRequests(texts=[], groups_per_batch=1, group_size=1), "texts is a list of prompts"),
        (lambda: Encoder(letters(), 1), "holds no prompt and completion"),
        (
            lambda: LanguageModel(LanguageNet(llama(2)), Encoder(letters("abc"))),
            "tokenizer has 4 tokens and the model 2",
        ),
        (
            lambda: LanguageNet(torch.nn.Linear(1, 1)),
            "Linear has no output embeddings: give a causal language model",
        ),
        (lambda: Sampling(temperature=-1.0), "a temperature of at least 0"),
        (lambda: Sampling(top_p=0.0), "top_p lie in"),
        (lambda: generate(small(), [[1] * 16], Noise(0, 0, torch.arange(1)), Sampling()), "fills the whole row"),
    ):
        with pytest.raises(GirsanovError) as error:
            make()
        assert said in str(error.value)


def test_a_model_whose_logits_are_made_otherwise_is_refused() -> None:
    lm = llama(4)
    plain = lm.forward
    lm.forward = lambda **k: plain(**k).__class__(logits=2 * plain(**k).logits)
    with pytest.raises(GirsanovError, match="LlamaForCausalLM's logits are not made by its head"):
        LanguageNet(lm)


# ---- sampling


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """Four prompts of three lengths together, and each alone with its own stream."""
    m = small()
    prompts, ids = [[1], [1, 2, 3], [2, 2], [3]], torch.tensor([5, 9, 2, 7])
    together = generate(m, prompts, Noise(3, 1, ids), Sampling(max_tokens=6))
    for k, prompt in enumerate(prompts):
        alone = generate(m, [prompt], Noise(3, 1, ids[k : k + 1]), Sampling(max_tokens=6))
        assert together.tokens[k][together.own[k]].tolist() == alone.tokens[0][alone.own[0]].tolist()
    assert together.own.sum() > 4


def test_top_k_and_top_p_and_greedy() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).log_softmax(-1).expand(1000, 4)
    u = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    p = logits[0].double().exp()
    for sampling, allowed in (
        (Sampling(), 4),
        (Sampling(top_k=2), 2),
        (Sampling(top_p=0.7), 2),
        (Sampling(top_p=0.6), 1),
    ):
        seen = sampling.pick(logits, u).bincount(minlength=4).double() / 1000
        kept = torch.where(torch.arange(4) < allowed, p, torch.zeros(4))
        torch.testing.assert_close(seen, kept / kept.sum(), atol=2e-3, rtol=0)
    assert Sampling(temperature=0).pick(logits, u).unique().tolist() == [0]
    assert Sampling(top_k=1).pick(logits, u).unique().tolist() == [0]


# ---- methods


@pytest.mark.parametrize("name", LANGUAGE_METHODS)
def test_every_method_takes_a_step_by_its_name(name: str) -> None:
    """Two updates of a tiny model: finite, the weights move where there is a gradient, the reference does not."""
    m = small()
    items = 3 if name in ("lipo", "rank-dpo", "rrhf", "pro", "plackett-luce", "infonca", "exo-list", "nca") else 2
    factory = LANGUAGE_METHODS[name]
    online = "reward" in parameters(factory)
    options = {"reward": Long()} if online else {}
    if online or name == "spin":
        options["sampling"] = Sampling(max_tokens=4)
    method = factory(**options)
    if name == "rto":
        method = dataclasses.replace(method, dense=DPOModel.of(small(seed=3)))
    policy = Policy(m)
    before = [p.clone() for p in policy.parameters()]
    source = requests() if method.data == "prompts" else comparisons(m, items)
    run = Run(policy, method, TrainConfig(iterations=1, lr=1e-2, epochs=2), source)
    numbers = iterate(run)
    assert torch.isfinite(torch.tensor(numbers["loss"])) and numbers["grad_norm"] >= 0
    moved = any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert moved or numbers["grad_norm"] == 0
    for p, b in zip(view(policy, "reference").net.weights.values(), before, strict=True):
        assert torch.equal(p, b)
    moving = ("tr-dpo", "tr-dpo-hard", "sdpo", "iterative-dpo", "raft", "spin")
    assert (REFERENCE in policy.copies) == (name in moving)
    assert ("value" in method.modules()) == (name in ("ppo", "rto"))


def test_every_loss_is_a_method() -> None:
    assert set(LOSSES) | set(SEQUENCE_RL) == set(LANGUAGE_METHODS) - {"sft", "p3o-on-off"}
    assert {*ONLINE, *OTHERWISE} <= set(LOSSES)


def test_micro_batches_change_nothing() -> None:
    """DPO, KTO and GRPO: the gradient of 4 rows at once and one at a time."""
    for name in ("dpo", "kto", "grpo"):
        found = []
        for micro in (None, 1):
            m = small()
            policy = Policy(m)
            online = name in SEQUENCE_RL
            method = LANGUAGE_METHODS[name](
                **({"reward": Long(), "sampling": Sampling(max_tokens=4)} if online else {})
            )
            source = requests(2) if online else comparisons(m)
            config = TrainConfig(iterations=1, lr=1e-3, micro_batch=micro, max_grad_norm=None)
            run = fit(policy, method, source, config)
            assert run.done == 1
            found.append([p.detach().clone() for p in policy.parameters()])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def test_training_does_what_it_is_for() -> None:
    """DPO raises the chosen completions over the rejected; RLOO raises the share of long words."""
    m = small()
    policy, data = Policy(m), comparisons(m)
    fit(policy, LANGUAGE_METHODS["dpo"](beta=0.5), data, TrainConfig(iterations=20, lr=1e-2))
    items = data.items.flat()
    new, old = (view(policy, n).logp(items).unflatten(0, (-1, 2)) for n in ("current", "reference"))
    gain = (new - old)[:, 0] - (new - old)[:, 1]
    assert bool((gain > 1).all())
    policy = Policy(small())
    method = LANGUAGE_METHODS["rloo"](beta=0.0, reward=EndsWith("c"), sampling=Sampling(max_tokens=3))
    shares = []
    source = TextRequests(texts=["a", "b"], groups_per_batch=2, group_size=16)
    run = Run(policy, method, TrainConfig(iterations=25, lr=2e-2), source)
    for _ in range(25):
        shares.append(iterate(run)["reward"])
        run.done += 1
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.2


def test_the_ratio_is_one_at_the_first_update() -> None:
    method = LANGUAGE_METHODS["grpo"](reward=Long(), sampling=Sampling(max_tokens=4))
    for epochs in (1, 2):
        run = Run(Policy(small()), method, TrainConfig(iterations=1, lr=1e-2, epochs=epochs, micro_batch=3), requests())
        numbers = iterate(run)
        assert numbers["first/ratio_min"] == numbers["first/ratio_max"] == 1.0


def test_adapters_and_views() -> None:
    """LoRA on a GPT-2 (Conv1D) and a Llama: the head stays, the reference is the model without adapters, exactly."""
    for kind in ("llama", "gpt2"):
        m = model("abc", kind, layers=1, width=8, scale=9.0)
        plain = model("abc", kind, layers=1, width=8, scale=9.0)
        targets = lora_targets(m.net)
        assert targets and not any("lm_head" in t for t in targets)
        add_lora(m.net, rank=2, targets=targets)
        policy, data = Policy(m), comparisons(m)
        fit(policy, LANGUAGE_METHODS["dpo"](), data, TrainConfig(iterations=2, lr=1e-2))
        rows = data.items.flat()
        assert torch.equal(view(policy, "reference").logp(rows), plain.logp(rows))
        assert not torch.allclose(view(policy, "current").logp(rows), plain.logp(rows))
        found = generate(view(policy, "reference"), [[1]], Noise(0, 0, torch.arange(1)), Sampling(max_tokens=5))
        same = generate(plain, [[1]], Noise(0, 0, torch.arange(1)), Sampling(max_tokens=5))
        assert torch.equal(found.tokens, same.tokens)


def test_expo_is_used_beyond_the_tuned_weights() -> None:
    m = small()
    policy, method = Policy(m), LANGUAGE_METHODS["expo"](alpha=0.5)
    before = {name: p.clone() for name, p in policy.state().items()}
    run = fit(policy, method, comparisons(m), TrainConfig(iterations=2, lr=1e-2))
    deployed = run.model().net.weights
    for name, p in policy.state().items():
        torch.testing.assert_close(deployed[name], torch.lerp(before[name], p, 1.5))


def passes(m: LanguageModel) -> list[int]:
    """Notes how many rows each pass through the network has."""
    rows: list[int] = []
    m.net.lm.base_model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return rows


def test_pairs_are_one_pass_and_the_references_is_made_once(tmp_path) -> None:
    """DPO on 4 pairs, three epochs: 8 rows a pass, two passes an update (reference and policy) without a cache; with
    one the reference's first alone, in the next run none, and another model has its own. The weights are the same."""

    def trained(cache: str | None, **more: int) -> tuple[list[torch.Tensor], list[int]]:
        m = small(**more)
        policy, rows = Policy(m), passes(m)
        fit(policy, LANGUAGE_METHODS["dpo"](cache=cache), comparisons(m, seed=1), TrainConfig(iterations=3, lr=1e-3))
        return list(policy.state().values()), rows

    plain, rows = trained(None)
    assert rows == [8] * 6
    first, rows = trained(str(tmp_path))
    assert rows == [8] * 4 and all(torch.allclose(a, b) for a, b in zip(plain, first, strict=True))
    again, rows = trained(str(tmp_path))
    assert rows == [8] * 3 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(trained(str(tmp_path), seed=1)[1]) == 4 and len(list(tmp_path.glob("reference-*.f64"))) == 2
    next(tmp_path.glob("reference-*.f64")).write_bytes(b"12")
    with pytest.raises(GirsanovError, match="is damaged"):
        trained(str(tmp_path))
        trained(str(tmp_path), seed=1)


def test_supervised_tuning_imitates_the_chosen_completion_alone() -> None:
    m = small()
    policy, data = Policy(m), comparisons(m)
    method = LANGUAGE_METHODS["sft"]()
    batch = method.collect(policy, data.batch(0), method.setup(policy), Turn(0, 0))
    (chunk,) = method.losses(policy, batch, {})
    chosen = m.encoder.batch([(p, "abc") for p in data.batch(0).meta])
    torch.testing.assert_close(chunk.loss, -view(policy, "current").logp(chosen).mean())


def test_a_policy_over_something_else_is_refused() -> None:
    from girsanov import Model, RectifiedFlow
    from girsanov.nets import MLPConfig

    policy = Policy(Model(MLPConfig(shape=(2,), width=8).build(0), RectifiedFlow(), "velocity", (2,)))
    with pytest.raises(GirsanovError, match="this method tunes a language model"):
        LANGUAGE_METHODS["dpo"]().setup(policy)
    m = small()
    with pytest.raises(GirsanovError, match="give a TextComparisons source"):
        fit(Policy(m), LANGUAGE_METHODS["dpo"](), requests(), TrainConfig(iterations=1))
    rows = TextComparisons.encode(m.encoder, [("a", ["b", "c"])], batch_size=1)
    with pytest.raises(GirsanovError, match="this loss needs the items' scores"):
        fit(Policy(m), LANGUAGE_METHODS["odpo"](), rows, TrainConfig(iterations=1))
    single = TextComparisons.encode(m.encoder, [("a", ["b"])], labels=[[True]], batch_size=1)
    with pytest.raises(GirsanovError, match="labelled one by one: take kto or bco"):
        fit(Policy(m), LANGUAGE_METHODS["dpo"](), single, TrainConfig(iterations=1))
    fit(Policy(m), LANGUAGE_METHODS["kto"](), single, TrainConfig(iterations=1))
    with pytest.raises(GirsanovError, match="a segment ends at 9, and its text has 1 characters"):
        TextComparisons.encode(m.encoder, [("a", ["b", "c"])], segments=[[(Segment(0, 9),), ()]])
    for make, said in (
        (lambda: LANGUAGE_METHODS["dense-dpo"](emphasis=0.0), "the weight of marked segments must be positive"),
        (lambda: LANGUAGE_METHODS["nash-md-pg"](reward=Long(), share=2.0), "share of the mixture lies in"),
        (lambda: LANGUAGE_METHODS["p3o-on-off"](reward=Long(), keep=0), "keep the completions of 1 or more"),
        (lambda: fit(Policy(m), LANGUAGE_METHODS["spin"](), requests(), TrainConfig(iterations=1)), "TextComparisons"),
    ):
        with pytest.raises(GirsanovError, match=said):
            make()


def test_rewards_of_texts() -> None:
    assert Vowels()(["b"], ["aab"]).tolist() == [5.0] and Long()(["b"], ["aab"]).tolist() == [4.0]
    mine = as_text_reward(lambda prompts, texts: [len(t) for t in texts], "mine")
    assert isinstance(mine, FunctionTextReward) and mine(["a", "b"], ["x", ""]).tolist() == [1.0, 0.0]
    with pytest.raises(GirsanovError, match="the reward 'mine' raised ZeroDivisionError"):
        as_text_reward(lambda p, t: 1 / 0, "mine")(["a"], ["b"])
    with pytest.raises(GirsanovError, match="returned 1 scores for 2 samples"):
        as_text_reward(lambda p, t: [1.0], "mine")(["a", "b"], ["b", "c"])
    with pytest.raises(GirsanovError, match="a reward of texts is a function"):
        as_text_reward(3)


def test_groups_must_be_whole() -> None:
    method = OnlinePreference(loss=LOSSES["oaif"](), reward=Long(), sampling=Sampling(max_tokens=2))
    prompts = requests().batch(0).take(torch.arange(5))
    with pytest.raises(GirsanovError, match="groups of one size, side by side"):
        method.collect(Policy(small()), prompts, {}, Turn(0, 0))
    assert isinstance(LANGUAGE_METHODS["rloo"](reward=Long()), LanguageRL)
    assert steady("ab", layers=1) is steady("ab", layers=1) and pad([[1]], [0], 0).length.tolist() == [1]


def test_a_judge_picks_for_oaif() -> None:
    """A judge who likes the letter c, against a reward that likes length: the winner is the judge's."""
    asked = []

    def likes(prompt: str, answer: Answer) -> float:
        asked.append(prompt)
        return float(answer.text.count("c"))

    m = small()
    method = LANGUAGE_METHODS["oaif"](reward=Long(), judge=ScoreJudge(likes), sampling=Sampling(max_tokens=6))
    policy, prompts = Policy(m), TextRequests(texts=["a", "ab"], groups_per_batch=2, group_size=2).batch(0)
    for seed in range(5):
        batch = method.collect(policy, prompts, method.setup(policy), Turn(seed, 0))
        texts = m.encoder.texts(batch.items.flat())
        for winner, loser in zip(texts[::2], texts[1::2], strict=True):
            assert winner.count("c") >= loser.count("c") or not (winner and loser)
    assert set(asked) == {"a", "ab"}
    with pytest.raises(GirsanovError, match="take oaif, which asks one"):
        LANGUAGE_METHODS["rso"](reward=Long(), judge=ScoreJudge(likes))


def test_comparisons_from_a_file_leave_bad_rows_out_by_their_place(tmp_path) -> None:
    rows = [
        {"prompt": "ab", "chosen": "c", "rejected": "b"},
        {"prompt": "abcabcabcabcabca", "chosen": "c", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "items": [{"text": "b", "score": 1}, {"text": "cc", "score": 3}, {"text": "a", "score": 2}]},
        {"prompt": "a", "items": [{"text": "b", "rank": 1}, {"text": "c", "rank": 2}, {"text": "a", "rank": 2}]},
        {"prompt": "a", "items": [{"text": "b"}, {"text": "c"}]},
        {"prompt": "c", "chosen": "", "rejected": "b"},
        {"prompt": "c", "chosen": "a", "rejected": "b", "split": "test"},
    ]
    path = tmp_path / "pairs.jsonl"
    write_rows(path, rows)
    m = small()
    data, left_out = read_comparisons(m.encoder, path, split="train", batch_size=2)
    assert len(data) == 4 and data.valid.sum(1).tolist() == [2, 3, 2, 2]
    assert m.encoder.texts(data.items.take(torch.tensor([1])).flat()) == ["cc", "a", "b"]
    assert [s.split(":")[0].split(" ")[1:3] for s in left_out] == [["row", str(n)] for n in (2, 3, 6, 7)]
    assert "16 tokens and a row at most 16" in left_out[0] and "chosen equals rejected" in left_out[1]
    assert "nothing says which item is better" in left_out[2] and "empty completion" in left_out[3]
    with pytest.raises(GirsanovError, match="has no row to learn from: the split has none"):
        read_comparisons(m.encoder, path, split="dev")
    fit(Policy(m), LANGUAGE_METHODS["dpo"](), data, TrainConfig(iterations=1))


def test_a_language_model_learns_to_score() -> None:
    """Answers with the letter c are better; all weights, and adapters with the head: every pair in order at the end."""
    rows = [(p, [f"{w}c", f"{w}b"]) for p in ("a", "ab") for w in ("", "a", "b", "ab")]
    for adapters in (False, True):
        m = small()
        scorer = LanguageScorer(m.net.lm, m.encoder.filler)
        if adapters:
            add_lora(scorer, rank=2, targets=[n.removeprefix("lm.") for n in lora_targets(m.net)])
            scorer.unfreeze_head()
        net, data = Members([scorer]), scorer_rows(m.encoder, rows, batch_size=8)
        assert torch.equal(score_items(net, data.items, None), torch.zeros(8, 2, 1, dtype=torch.float64))
        fit(Policy(Scoring(net)), RewardModelling(), data, TrainConfig(iterations=30, lr=2e-2))
        scores = score_items(net, data.items, None)[..., 0]
        assert bool((scores[:, 0] > scores[:, 1]).all())
        padded = torch.nn.functional.pad(data.items[:, 0], (0, 3), value=m.encoder.filler)
        torch.testing.assert_close(net(padded)[:, 0], scores[:, 0], rtol=1e-5, atol=1e-6)
    with pytest.raises(GirsanovError, match="the same number of completions"):
        scorer_rows(small().encoder, [("a", ["b", "c"]), ("a", ["b"])])
