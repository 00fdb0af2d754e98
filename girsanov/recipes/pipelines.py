"""Tuning pretrained pipelines: what the recipes for texts and for classes share.

Low-rank adapters by default; text encoders and autoencoder are frozen and off the accelerator while the network trains.
"""

import dataclasses
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch

from girsanov.adapters.base import Adapter, PipelineConfig
from girsanov.adapters.load import load_pipeline
from girsanov.adapters.weights import resume_adapters, save_weights, train_adapters, train_everything
from girsanov.config import Part, make
from girsanov.config.parts import load
from girsanov.distributed import Reduce, whole
from girsanov.errors import GirsanovError
from girsanov.items import simulate
from girsanov.methods import METHODS
from girsanov.methods.base import Method
from girsanov.models import ModelLike
from girsanov.policy import USES, Policy, Use
from girsanov.recipes.base import Assembled, Recipe, RunConfig, reward_of
from girsanov.recipes.media import draw, write
from girsanov.recipes.pipeline_evaluation import PipelineEvaluator, told
from girsanov.recipes.pipeline_preferences import Conditions, LearnedEvaluator, learn
from girsanov.rewards.base import Reward
from girsanov.samplers import Sampler
from girsanov.settings import Count, Decay, Natural, NonNegative, settings
from girsanov.spread import Spread
from girsanov.train import PromptSource, Run, TrainConfig
from girsanov.types import Cond, Prompts
from girsanov.weights import is_lora

EVALUATION_SEED, PAIR_SEED = 1_000_003, 7_000_003
STEPS = 10


@settings
class PipelineRunConfig(RunConfig):
    """What the recipes for pipelines share.

    Attributes:
        model: folder or hub name of the pipeline, as ``DiffusionPipeline.from_pretrained`` takes it.
        family: your own adapter for a pipeline that is not known here, ``my_file.py:Class``.
        pipeline: size of what is drawn, and the like.
        lora: rank of the adapters; None trains every weight of the network.
        lora_alpha: scale of the adapters times the rank; the rank by default.
        lora_targets: ends of the names of the layers that get adapters; the family's own by default.
        lora_from: folder or name of published adapters to go on from.
        reward: what is aimed at; ``my_file.py:fn`` is your own.
        judge: another reward, which training never sees.
        guidance: scale of classifier-free guidance; the pipeline's own by default, 1 is none.
        guided: where it is used; by default where the method was published with it (``Method.guided``). A policy
            gradient needs it in rollout and training alike.
        groups, group_size: prompts an iteration, over all processes, and samples of each.
        data: pictures that people judged, in any layout of ``girsanov data``, for methods that learn from pairs,
            labels or rankings; the reward is then measured alone.
        data_limit: the first so many of them.
        data_items: pictures of a ranking; the most frequent number by default.
        held_out: share of the data's prompts to test on, where the rows name no split.
        eval_pairs: how many pairs of held-out prompts are put in order.
        pairs: without data, how many are drawn before training.
        annotator: temperature of the annotator who judges them by the reward.
        sampler: of evaluations; the pipeline's own, or the nearest one, by default.
        steps: of evaluations.
        samples, batch: how many samples an evaluation draws, and how many at a time.
        kl_samples: on how many of them the path KL is measured; 0 leaves it out.
        pictured: how many samples the report shows.
        evaluation_seed: of the noise they are drawn from.
    """

    method: Part[Method] = Part("clipped-pg")
    train: TrainConfig = TrainConfig(iterations=100, lr=1e-4)
    model: str | None = None
    family: str | None = None
    pipeline: PipelineConfig = PipelineConfig()
    lora: Count | None = 16
    lora_alpha: Count | None = None
    lora_targets: tuple[str, ...] | None = None
    lora_from: str | None = None
    reward: Part[Reward] = Part("compressible")
    judge: Part[Reward] | None = None
    guidance: NonNegative | None = None
    guided: tuple[Use, ...] = USES
    groups: Count = 4
    group_size: Count = 4
    data: str | None = None
    data_limit: Count | None = None
    data_items: Count | None = None
    held_out: Decay = 0.1
    eval_pairs: Count = 64
    pairs: Count = 64
    annotator: NonNegative = 1.0
    sampler: Part[Sampler] | None = None
    steps: Count = 20
    samples: Count = 16
    batch: Count = 8
    kl_samples: Natural = 8
    pictured: Count = 8
    evaluation_seed: Natural = EVALUATION_SEED


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is drawn: where training's requests come from, and the prompts of evaluations.

    Attributes:
        source: of training.
        cond: conditions of the evaluation's prompts, one row each.
        meta: what the reward may read of each.
        description: what they are, for reports.
        conditions: prompts of judged pictures to conditions.
    """

    source: PromptSource
    cond: Cond
    meta: Sequence[Any]
    description: str
    conditions: Conditions


class PipelineRecipe(Recipe):
    """Tune a pretrained pipeline to a reward."""

    config: ClassVar[type[RunConfig]] = PipelineRunConfig
    methods: ClassVar[Sequence[str]] = tuple(METHODS)
    splits: ClassVar[bool] = True

    def defaults(self, method: str) -> dict[str, Any]:
        """The pipeline's own times where a method samples, a solver for any process, guidance as the method has it."""
        fields = inspect.signature(METHODS[method]).parameters if method in METHODS else {}
        parts: dict[str, Any] = {}
        if "grid" in fields:
            parts["grid"] = {"kind": "pipeline", "n": STEPS}
        if method == "ode-am":
            parts["sampler"] = {"kind": "gddim", "eta": 0.0}
        found: dict[str, Any] = {"method": parts} if parts else {}
        return found | ({"guided": list(METHODS[method].guided)} if method in METHODS else {})

    @abstractmethod
    def asked(self, config: Any, adapter: Adapter, device: torch.device) -> Asked:
        """What is drawn. Raises GirsanovError where the settings do not say."""

    def build(self, config: Any, device: torch.device, accelerator: Any = None) -> Assembled:
        """Pipeline, prompts, reward, method and evaluation."""
        if config.model is None:
            raise GirsanovError("model is missing: give the folder or the name of a pipeline with model=...")
        reward = reward_of(config.reward, device)
        judge = None if config.judge is None else reward_of(config.judge, device)
        adapter = opened(config)
        model = dataclasses.replace(adapter.model(), autocast=config.autocast)
        method = make(Method, config.method, reward, model.process, adapter.times)
        learned = None
        with nullcontext() if accelerator is None else accelerator.main_process_first():
            asked = self.asked(config, adapter, device)  # fills the caches of embeddings and latents
            if config.data is not None:
                learned = learn(method.data, config, adapter, asked.conditions, device)
        sharding = config.split(adapter.net, device)  # before it is moved: the device need not hold all of it
        adapter.to(device)
        scale = adapter.guidance() if config.guidance is None else config.guidance
        policy = Policy(model, dict.fromkeys(config.guided, scale), sharding)
        sampler = adapter.sampler() if config.sampler is None else make(Sampler, config.sampler, model.process)
        evaluator = PipelineEvaluator(
            sampler,
            adapter.grid(config.steps),
            asked.cond,
            asked.meta,
            [told(m) for m in asked.meta],
            reward,
            judge,
            config.samples,
            config.batch,
            config.kl_samples,
            config.evaluation_seed,
            device,
            Spread(Reduce(accelerator)),
        )
        source: PromptSource = asked.source if learned is None else learned.source
        if method.data != "prompts" and learned is None:
            source = judged(method.data, config, policy.view("reference", "rollout"), evaluator, device)
        run = Run(policy, method, config.train, source, accelerator)
        measured = LearnedEvaluator(evaluator, learned) if learned is not None and learned.test else evaluator
        aim = f"tuned to the reward {reward.name!r}"
        if learned is not None:
            aim = f"tuned by {config.method.kind} on {learned.about}; the reward {reward.name!r} is measured alone"
        return Assembled(
            run,
            measured,
            evaluator.sample,
            draw,
            measured.metrics(),
            f"{type(adapter.pipe).__name__} from `{config.model}`, {aim}. {asked.description}",
            facts(adapter, config, scale) | ({} if learned is None else learned.facts),
            lambda samples, folder: write(samples, folder, adapter.rate),
            pictured=config.pictured,
            export=lambda run, folder: export(adapter, run, folder),
            beside=beside(adapter, reward, judge),
        )


def own_family(address: str) -> type[Adapter]:
    """The user's adapter. Raises GirsanovError if it is none."""
    found = load(address)
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise GirsanovError(f"{address} is no adapter: derive it from girsanov.adapters.Adapter")
    return found


def opened(config: PipelineRunConfig) -> Adapter:
    """The pipeline with what is to be trained in it."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
    dtype = torch.float32 if config.lora is None and config.lora_from is None else half
    family = None if config.family is None else own_family(config.family)
    adapter = load_pipeline(str(config.model), config.pipeline, dtype=dtype, family=family)
    if config.lora_from is not None:
        resume_adapters(adapter, config.lora_from)
    elif config.lora is not None:
        train_adapters(adapter, config.lora, config.lora_alpha, config.lora_targets, config.train.seed)
    else:
        train_everything(adapter)
    return adapter


def judged(
    data: str, config: PipelineRunConfig, base: ModelLike, evaluator: PipelineEvaluator, device: torch.device
) -> PromptSource:
    """Samples of the pretrained pipeline that an annotator has judged by the reward."""
    many = evaluator.requests(torch.arange(config.pairs))
    asked = Prompts(many.cond.to(device), many.ids, many.group, many.meta)
    return simulate(
        data,
        base,
        evaluator.sampler,
        evaluator.grid,
        evaluator.reward,
        asked,
        bt_temperature=config.annotator,
        batch_size=config.groups * config.group_size,
        seed=PAIR_SEED + config.train.seed,
    )


def beside(adapter: Adapter, reward: Reward, judge: Reward | None) -> dict[str, Any]:
    """What is held beside the network."""
    found = {"text encoders": adapter.encoders(), "autoencoder": getattr(adapter.pipe, "vae", None)}
    helpers = {name: getattr(adapter.pipe, name) for name in adapter.helpers}
    return found | helpers | {"reward": reward, "judge": judge}


def facts(adapter: Adapter, config: PipelineRunConfig, scale: float) -> dict[str, str]:
    """What the report says of the pipeline."""
    trained = sum(p.numel() for p in adapter.network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in adapter.network.parameters())
    return {
        "Trained": f"{trained:,} of {every:,} weights of the {adapter.component}",
        "Drawn": f"latents of {' x '.join(map(str, adapter.shape))}, {guidance_told(scale, config.guided)}",
    }


def guidance_told(scale: float, uses: Sequence[Use]) -> str:
    """What reports say of guidance: its scale, and where it is used unless that is everywhere."""
    if scale == 1.0 or not uses:
        return "without guidance"
    return f"guidance {scale:g}" + ("" if set(uses) == set(USES) else f" in {' and '.join(uses)} alone")


def export(adapter: Adapter, run: Run, folder: Path) -> str:
    """Writes the tuned weights for diffusers; the line that loads them."""
    first = run.reduce.rank == 0
    weights = run.policy.state("current" if run.config.ema is None else "ema", keep=first)
    if not all(is_lora(name) for name in run.policy.names):  # the whole component is written, frozen parts as well
        rest = {n: whole(p, first) for n, p in run.policy.net.named_parameters() if n not in run.policy.names}
        weights |= {n: p for n, p in rest.items() if p is not None}
    return save_weights(adapter, weights, folder) if first else ""
