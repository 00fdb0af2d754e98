"""Any causal language model of ``transformers``, tuned to the preferences of a file, or to a reward.

Methods that learn from comparisons read a file of preferences in any layout of ``girsanov data``; those that complete
prompts take the file's prompts, or those of ``prompts=FILE``, and a reward. A part of the prompts is held out, and all
that is measured is measured on it. Rows that cannot be used are left out, each told with its place.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from girsanov.config import Part, make
from girsanov.config.parts import parameters
from girsanov.data.rankings import in_share, told
from girsanov.distributed import Reduce, whole
from girsanov.errors import GirsanovError
from girsanov.language.base import LanguageMethod
from girsanov.language.data import TextComparisons, TextRequests, text_of
from girsanov.language.files import Row, Take, encoded, judged, read_rows, reading
from girsanov.language.generation import Sampling
from girsanov.language.load import add_adapters, load_beside, load_language_model, save_tuned
from girsanov.language.model import LanguageModel
from girsanov.language.named import LANGUAGE_METHODS
from girsanov.language.rewards import TextReward
from girsanov.language.tokens import Encoder, Prompt
from girsanov.policy import Policy
from girsanov.prompt_sets import read_prompts
from girsanov.recipes.base import Assembled, Recipe, RunConfig
from girsanov.recipes.language_evaluation import LanguageEvaluator, draw, write
from girsanov.settings import Count, Decay, Natural, NonNegative, settings
from girsanov.spread import Spread
from girsanov.train import PromptSource, Run, TrainConfig
from girsanov.weights import is_lora

EVALUATION_SEED = 1_000_003


@settings
class LanguageConfig(RunConfig):
    """The language recipe's configuration.

    Attributes:
        model: folder or hub name of the model, as ``AutoModelForCausalLM.from_pretrained`` takes it.
        tokenizer: another tokenizer than the model's own.
        reference: another model as the reference, with the same tokens; the model before tuning by default.
        data: preferences, in any layout of ``girsanov data``.
        eval_data: held-out preferences; by default a share of the prompts of ``data``.
        held_out: that share, for rows whose split is "train"; rows of the splits test and validation are always held
            out.
        limit: the first so many comparisons alone.
        prompts: file of prompts for methods that complete them; the prompts of ``data`` by default.
        prompts_column: which column.
        reward: what scores completions; ``my_file.py:fn`` is your own, ``fn(prompts, completions) -> scores``.
        lora: rank of the adapters; None trains every weight (take a rate of 1e-6 or so then).
        lora_alpha: scale of the adapters times the rank; the rank by default.
        lora_targets: ends of the names of the layers that get adapters; all linear ones but the head by default.
        max_length: tokens of a row; the model's own limit goes before it.
        chunk: positions whose logits exist at once.
        packed: tokens of a bin, to pack rows side by side; None pads them.
        batch: comparisons an iteration, over all processes.
        groups, group_size: for methods that complete prompts: prompts an iteration, and completions of each.
        max_tokens, temperature: of the completions that evaluations draw.
        samples, eval_batch: how many they draw, and rows a pass.
        pictured: how many the report shows.
        evaluation_seed: of their noise.
    """

    method: Part[LanguageMethod] = Part("dpo")  # type: ignore[assignment]
    train: TrainConfig = TrainConfig(iterations=200, lr=5e-5, warmup=10)
    model: str | None = None
    tokenizer: str | None = None
    reference: str | None = None
    data: str | None = None
    eval_data: str | None = None
    held_out: Decay = 0.1
    limit: Count | None = None
    prompts: str | None = None
    prompts_column: str | None = None
    reward: Part[TextReward] | None = None
    lora: Count | None = 16
    lora_alpha: Count | None = None
    lora_targets: tuple[str, ...] | None = None
    max_length: Count = 1024
    chunk: Count = 1024
    packed: Count | None = None
    batch: Count = 16
    groups: Count = 8
    group_size: Count = 4
    max_tokens: Count = 64
    temperature: NonNegative = 1.0
    samples: Count = 64
    eval_batch: Count = 16
    pictured: Count = 8
    evaluation_seed: Natural = EVALUATION_SEED


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to learn from.

    Attributes:
        train, test: comparisons, labelled completions, demonstrations.
        asked, shown: prompts to complete, in training and in evaluations.
        left_out: a sentence for each row that cannot be used.
    """

    train: Sequence[Row]
    test: Sequence[Row]
    asked: Sequence[Prompt]
    shown: Sequence[Prompt]
    left_out: Sequence[str]

    @property
    def about(self) -> str:
        """How much of what."""
        if not self.train:
            return f"{len(self.asked)} prompts to train on, {len(self.shown)} held out"
        labelled = all(row.labels is not None for row in self.train)
        kind = "labelled completions" if labelled else "comparisons"
        return f"{len(self.train)} {kind} to train on, {len(self.test)} of other prompts held out"


class LanguageRecipe(Recipe):
    """Tune a causal language model to preferences or to a reward."""

    name: ClassVar[str] = "language"
    summary: ClassVar[str] = "a causal language model and your preferences; model=FOLDER data=FILE (extras llm, lora)"
    config: ClassVar[type[RunConfig]] = LanguageConfig
    methods: ClassVar[Sequence[str]] = tuple(LANGUAGE_METHODS)
    splits: ClassVar[bool] = True

    def build(self, config: LanguageConfig, device: torch.device, accelerator: Any = None) -> Assembled:
        """Model, comparisons or prompts, method and evaluation."""
        complain(config)
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            model = opened(config)
        reward = None if config.reward is None else make(TextReward, config.reward)
        method = make(LanguageMethod, config.method, *([] if reward is None else [reward]))
        found = material(config, model.encoder, reading(method))
        for line in told(found.left_out):
            tqdm.write(line)
        sharding = config.split(model.net, device)  # before it is moved: the device need not hold all of it
        model.net.to(device)
        if model.reference is not None:
            config.split(model.reference.net, device)
            model.reference.net.to(device)
        policy = Policy(dataclasses.replace(model, autocast=config.autocast), sharding=sharding)
        evaluator = LanguageEvaluator(
            *tested(model.encoder, found.test),
            found.shown,
            reward,
            Sampling(temperature=config.temperature, max_tokens=config.max_tokens),
            config.samples,
            config.eval_batch,
            config.evaluation_seed,
            Spread(Reduce(accelerator)),
        )
        aim = "" if reward is None else f", scored by the reward {reward.name!r}"
        return Assembled(
            Run(policy, method, config.train, source_of(config, method, model.encoder, found), accelerator),
            evaluator,
            evaluator.sample,
            draw,
            evaluator.metrics(),
            f"{type(model.net.lm).__name__} from `{config.model}`, tuned by {config.method.kind} on "
            f"`{config.data or config.prompts}`{aim}: {found.about}.",
            facts(model, found),
            write,
            pictured=config.pictured,
            export=lambda run, folder: export(model, run, folder),
            beside={"reward": reward, "the other model": None if model.reference is None else model.reference.net},
        )


def complain(config: LanguageConfig) -> None:
    """Raises GirsanovError where the settings do not say what to tune, or on what."""
    kind = config.method.kind
    online = "reward" in parameters(LANGUAGE_METHODS[kind]) if kind in LANGUAGE_METHODS else False
    if config.model is None:
        raise GirsanovError("model is missing: give the folder or the name of a causal language model with model=...")
    if online and config.reward is None:
        raise GirsanovError(f"{kind} scores the model's own completions: give a reward with reward=...")
    if config.data is None and (not online or config.prompts is None):
        or_prompts = ", or prompts with prompts=FILE" if online else ""
        raise GirsanovError(f"data is missing: give a file of preferences with data=FILE{or_prompts}")


def opened(config: LanguageConfig) -> LanguageModel:
    """The model with what is to be trained in it."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
    model = load_language_model(
        str(config.model),
        config.tokenizer,
        dtype=torch.float32 if config.lora is None else half,
        max_length=config.max_length,
        chunk=config.chunk,
        packed=config.packed,
    )
    if config.lora is not None:
        add_adapters(model.net, config.lora, config.lora_alpha, config.lora_targets, config.train.seed)
    if config.reference is None:
        return model
    fixed = load_beside(config.reference, model.encoder, half, chunk=config.chunk, packed=config.packed)
    return dataclasses.replace(model, reference=dataclasses.replace(fixed, autocast=config.autocast))


def material(config: LanguageConfig, encoder: Encoder, take: Take) -> Found:
    """Reads data and prompts, and holds a part out. Raises GirsanovError if either part is empty."""
    train, test, left_out = list[Row](), list[Row](), list[str]()
    if config.data is not None:
        share = 0.0 if config.eval_data is not None else config.held_out
        rows, left_out = read_rows(encoder, config.data, config.limit, take, share)
        train, test = [r for r in rows if not r.test], [r for r in rows if r.test]
    if config.eval_data is not None:
        test, more = read_rows(encoder, config.eval_data, None, judged)
        left_out = [*left_out, *more]
    if config.prompts is None:
        asked, shown = distinct(train), distinct(test)
    else:
        every, more = usable(encoder, read_prompts(config.prompts, config.prompts_column).texts)
        left_out = [*left_out, *more]
        asked, shown = ([p for p in every if in_share(text_of(p), config.held_out) == side] for side in (False, True))
    if not asked or not shown:
        where = config.prompts or config.data
        raise GirsanovError(
            f"{len(asked)} prompts of {where} are to train on and {len(shown)} to test on: change held_out, give "
            "more of them, or held-out ones with eval_data=FILE"
        )
    return Found(train, test, asked, shown, left_out)


def tested(encoder: Encoder, rows: Sequence[Row]) -> tuple[TextComparisons | None, TextComparisons | None]:
    """The held-out comparisons, and the held-out labelled completions; None where there are none."""
    sides = [[r for r in rows if (r.labels is None) == ranked] for ranked in (True, False)]
    pairs, labelled = (encoded(encoder, side) if side else None for side in sides)
    return pairs, labelled


def distinct(rows: Sequence[Row]) -> list[Prompt]:
    """The prompts of rows, each once."""
    return list({text_of(row.prompt): row.prompt for row in rows}.values())


def usable(encoder: Encoder, texts: Sequence[str]) -> tuple[list[Prompt], list[str]]:
    """The prompts that leave room for a completion, each once, and a sentence for each other."""
    kept, left_out = list[Prompt](), list[str]()
    for i, text in enumerate(dict.fromkeys(texts), 1):
        try:
            encoder.prompt(text, f"prompt {i}")
            kept.append(text)
        except GirsanovError as error:
            left_out.append(str(error))
    return kept, left_out


def source_of(config: LanguageConfig, method: LanguageMethod, encoder: Encoder, found: Found) -> PromptSource:
    """Comparisons, or prompts to complete."""
    seed = config.train.seed
    if method.data == "prompts":
        groups = min(config.groups, len(found.asked))
        return TextRequests(texts=found.asked, groups_per_batch=groups, group_size=config.group_size, seed=seed)
    if not found.train:
        raise GirsanovError(f"{config.method.kind} learns from comparisons: give a file of them with data=FILE")
    return encoded(encoder, found.train, batch_size=min(config.batch, len(found.train)), seed=seed)


def facts(model: LanguageModel, found: Found) -> dict[str, str]:
    """What the report says of model and data."""
    every = list(model.net.parameters())
    trained = sum(p.numel() for p in every if p.requires_grad)
    said = {"Trained": f"{trained:,} of {sum(p.numel() for p in every):,} weights"}
    if found.left_out:
        more = "" if len(found.left_out) == 1 else f"; {len(found.left_out)} in all"
        said["Left out"] = f"{found.left_out[0]}{more}"
    return said


def export(model: LanguageModel, run: Run, folder: Any) -> str:
    """Writes the tuned weights for transformers and peft; the line that loads them."""
    first = run.reduce.rank == 0
    weights = run.policy.state("current" if run.config.ema is None else "ema", keep=first)
    if not any(map(is_lora, run.policy.names)):  # the whole model is written, frozen parts as well
        names = {id(p): n for n, p in model.net.named_parameters()}
        tied = {n: names[id(p)] for n, p in model.net.named_parameters(remove_duplicate=False)}
        rest = {n: p for n, p in model.net.state_dict().items() if tied.get(n, n) not in run.policy.names}
        weights |= {n: cast(Tensor, whole(p.detach(), first)) for n, p in rest.items()}
        weights |= {n: weights[own] for n, own in tied.items() if own in weights}
    return save_tuned(model.net, model.encoder, weights, folder) if first else ""
