"""Words: a small model of letters, pretrained on the words of a package's documentation, tuned to a taste one can read.

The prompt is a first letter, the completion the rest of a word. The reward looks at letters alone (vowels, length, an
ending); the judge says which of the words are real ones, and knows nothing of the reward. The KL from the pretrained
model is the mean log-ratio of the tuned model's own words.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch

from girsanov.config import Part, make
from girsanov.config.parts import parameters
from girsanov.distributed import Reduce
from girsanov.language.base import LanguageMethod
from girsanov.language.data import TextComparisons, TextRequests, annotate
from girsanov.language.load import add_adapters
from girsanov.language.model import LanguageModel, LanguageNet
from girsanov.language.named import LANGUAGE_METHODS
from girsanov.language.rewards import TextReward
from girsanov.policy import Policy
from girsanov.recipes.base import Assembled, Recipe, RunConfig
from girsanov.recipes.language import export
from girsanov.recipes.words_data import LETTERS, ROW, Words, load_words, word_encoder
from girsanov.recipes.words_evaluation import METRICS, Evaluator, draw, write
from girsanov.settings import Count, Natural, Positive, settings
from girsanov.spread import Spread
from girsanov.store import cache_folder, fingerprint, read_settings, read_tensors, write_folder
from girsanov.train import PromptSource, Run, TrainConfig, fit

EVALUATION_SEED, PAIR_SEED = 1_000_003, 7_000_003
FORMAT, MARKER = "girsanov-words", "words.json"
LISTS = ("plackett-luce", "infonca", "exo-list", "nca", "pro", "rrhf", "lipo", "rank-dpo")
IMITATION = ("best-of-n", "raft", "rest", "superhf")
OWN: dict[str, dict[str, Any]] = {
    "ipo": {"beta": 0.3},
    "simpo": {},
    "rainbow-po": {},
    "iterative-dpo": {"beta": 3.0, "every": 10},
    "grpo": {"kl": 1.0},
    "sppo": {"eta": 2.0},
    "spin": {"beta": 1.0, "every": 10},
    "nash-md-pg": {"beta": 0.1},
    "dense-dpo": {"beta": 5.0},
    "rto": {"beta1": 1.0, "beta2": 1.0},
}
"""Settings of single methods, seen to work with words of a few letters."""


def settings_for(name: str) -> dict[str, Any]:
    """Settings that suit a method, under the user's: a KL weight near the reward's scale, and few iterations.

    Published ones (beta of 0.1 and less) belong to answers of hundreds of tokens and rewards of unit scale.
    """
    known = parameters(LANGUAGE_METHODS[name])
    beta = {"beta": 1.0} if "beta" in known else {}
    found: dict[str, Any] = {"method": OWN.get(name, beta)}
    if name in LISTS:
        found["items"] = 4
    if name == "povid":
        found["items"] = 3
    if name in IMITATION:
        found["train"] = {"iterations": 10}
    return found


@settings
class WordsConfig(RunConfig):
    """The words recipe's configuration.

    Attributes:
        reward: what is aimed at; ``my_file.py:fn`` is your own, ``fn(prompts, completions) -> scores``.
        width, layers: of the network, a small Llama.
        pretrain: iterations, rate and seed of the pretraining; the cache is keyed by all of them.
        pairs, items, annotator: for methods that learn from comparisons: how many are simulated, of how many words
            each, and the temperature of the annotator who ranks them by the reward.
        batch: comparisons an iteration.
        groups, group_size: for online methods: first letters an iteration, and words of each.
        samples: words that evaluations draw.
        evaluation_seed: of their noise.
    """

    method: Part[LanguageMethod] = Part("dpo")  # type: ignore[assignment]
    train: TrainConfig = TrainConfig(iterations=40, lr=3e-4, warmup=5)
    reward: Part[TextReward] = Part("vowels")
    width: Count = 64
    layers: Count = 2
    pretrain: TrainConfig = TrainConfig(iterations=700, lr=4e-3, schedule="linear")
    pairs: Count = 1000
    items: Count = 2
    annotator: Positive = 1.0
    batch: Count = 64
    groups: Count = 13
    group_size: Count = 8
    samples: Count = 520
    evaluation_seed: Natural = EVALUATION_SEED


class WordsRecipe(Recipe):
    """Tune a model of letters to a taste in words, with real words as the judge."""

    name: ClassVar[str] = "words"
    summary: ClassVar[str] = "a language model of letters, tuned to words one can read; a minute (extra llm)"
    config: ClassVar[type[RunConfig]] = WordsConfig
    methods: ClassVar[Sequence[str]] = tuple(LANGUAGE_METHODS)
    splits: ClassVar[bool] = True
    threads: ClassVar[int | None] = 1  # small matrices: a second thread waits more than it works, where others run

    def defaults(self, method: str) -> dict[str, Any]:
        """Settings that suit each method."""
        return settings_for(method) if method in LANGUAGE_METHODS else {}

    def build(self, config: WordsConfig, device: torch.device, accelerator: Any = None) -> Assembled:
        """Words, pretrained model, comparisons or requests, method and evaluation."""
        words, spread = load_words(), Spread(Reduce(accelerator))
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            model = pretrained(config, words)  # one process fills the cache
        if config.lora is not None:
            add_adapters(model.net, config.lora, seed=config.train.seed)
        model.net.to(device)
        sharding = config.split(model.net, device)
        policy = Policy(dataclasses.replace(model, autocast=config.autocast), sharding=sharding)
        reward = make(TextReward, config.reward)
        method = make(LanguageMethod, config.method, reward)
        source = source_of(config, method, policy, reward, spread)
        evaluator = Evaluator(words, reward, config.samples, config.evaluation_seed, spread)
        share = evaluator.measure(policy, cast(LanguageModel, policy.view("reference")))["judge"]
        return Assembled(
            Run(policy, method, config.train, source, accelerator),
            evaluator,
            evaluator.sample,
            evaluator.draw,
            METRICS,
            f"Words of the letters a to z, tuned to the reward {reward.name!r}. The model was pretrained on the "
            f"{len(words.words)} distinct words of scikit-learn's descriptions of data sets; the judge counts how many "
            "of its words are among them, and knows nothing of the reward.",
            {"Real words before": f"{share:.1%} of {config.samples}"},
            write,
            pictured=len(LETTERS) * 3,
            export=lambda run, folder: export(model, run, folder),
            beside={"reward": reward},
        )


def fresh(config: WordsConfig) -> LanguageModel:
    """A small Llama over letters with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    encoder = word_encoder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.pretrain.seed)
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(encoder.tokenizer),
                hidden_size=config.width,
                intermediate_size=2 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=4,
                max_position_embeddings=ROW,
                bos_token_id=None,
                eos_token_id=encoder.end,
                pad_token_id=encoder.filler,
            )
        )
    return LanguageModel(LanguageNet(lm), encoder)


def pretrained(config: WordsConfig, words: Words) -> LanguageModel:
    """The model of the words: from the cache, or pretrained now."""
    from girsanov.config import describe

    model = fresh(config)
    data = TextComparisons.encode(model.encoder, words.pairs(), batch_size=128, seed=config.pretrain.seed)
    key = {"width": config.width, "layers": config.layers, "pretrain": describe(config.pretrain), "data": data.digest}
    start = fingerprint(
        torch.cat([p.detach().flatten() for p in model.net.parameters()])
    )  # another torch, other weights
    place = cache_folder() / f"words-{start[:8]}-{data.digest[:8]}-{config.pretrain.iterations}-{config.pretrain.lr:g}"
    if (place / MARKER).is_file():
        kept = read_settings(place, MARKER, FORMAT)
        if kept.get("key") == key:
            model.net.load_state_dict(read_tensors(place, kept))
            return model
    fit(Policy(model), LANGUAGE_METHODS["sft"](), data, config.pretrain)
    weights = {k: v.clone() for k, v in model.net.state_dict().items()}
    write_folder(place, {"format": FORMAT, "schema": 1, "key": key}, weights, MARKER)
    return model


def source_of(
    config: WordsConfig, method: LanguageMethod, policy: Policy, reward: TextReward, spread: Spread | None = None
) -> PromptSource:
    """First letters to complete; or the pretrained model's words, ranked by an annotator with the reward as taste."""
    if method.data == "prompts":
        return TextRequests(
            texts=list(LETTERS), groups_per_batch=config.groups, group_size=config.group_size, seed=config.train.seed
        )
    model = cast(LanguageModel, policy.view("reference"))
    letters = [LETTERS[i % len(LETTERS)] for i in range(config.pairs)]
    asked = [letter for letter in letters for _ in range(config.items)]
    rests = draw(model, asked, PAIR_SEED + config.train.seed, spread or Spread())
    groups = [rests[i * config.items : (i + 1) * config.items] for i in range(config.pairs)]
    kept = [(a, sorted(set(g), key=g.index)) for a, g in zip(letters, groups, strict=True)]
    kept = [(a, [w for w in g if w]) for a, g in kept]
    kept = [(a, g) for a, g in kept if len(g) == config.items]
    texts = [[a + w for w in g] for a, g in kept]
    ordered, scores = annotate(texts, lambda t: reward(t, [""] * len(t)), config.annotator, PAIR_SEED)
    rows = [(a, [w[1:] for w in row]) for (a, _), row in zip(kept, ordered, strict=True)]
    return TextComparisons.encode(
        model.encoder, rows, scores, batch_size=min(config.batch, len(rows)), seed=config.train.seed
    )
