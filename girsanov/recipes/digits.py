"""Real handwritten digits: a class-conditional flow model, tuned to a reward that a person can see.

The model is pretrained on half of scikit-learn's digits on first use, and cached. The reward never looks at the class;
the judge, a classifier trained on the other half of the data, says whether the digits can still be read
(``digits_evaluation.py`` lists what is followed).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from girsanov.config import Part, make
from girsanov.distributed import Reduce
from girsanov.evaluation.judge import Judge
from girsanov.grids import Grid
from girsanov.items import simulate
from girsanov.methods.base import Method
from girsanov.models import Model, ModelLike
from girsanov.nets import NetConfig
from girsanov.predictions import Prediction
from girsanov.pretrain import PretrainConfig, make_model, pretrain
from girsanov.processes import Process
from girsanov.prompts import ClassPrompts
from girsanov.recipes.base import Assembled, Recipe, RunConfig, reward_of
from girsanov.recipes.digits_data import CLASSES, SHAPE, Digits, balanced_labels, digit_prompts, load_digits
from girsanov.recipes.digits_evaluation import METRICS, Evaluator
from girsanov.recipes.digits_pictures import draw, read, write
from girsanov.recipes.digits_preferences import METRICS as LEARNED
from girsanov.recipes.digits_preferences import PreferenceEvaluator, learns_preferences
from girsanov.rewards.base import Reward
from girsanov.samplers.base import Sampler
from girsanov.settings import Count, Natural, NonNegative, settings
from girsanov.spread import Spread
from girsanov.store import cached, fingerprint
from girsanov.train import PromptSource, Run, TrainConfig

EVALUATION_SEED = 1_000_003  # apart from the training seeds that people choose
PAIR_SEED = 7_000_003

UNIFORM = {"kind": "uniform", "n": 20}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ode-am": {
        "method": {"grid": UNIFORM, "last": 3, "cost": {"kind": "quadratic", "lam": 1.0}},
        "train": {"iterations": 40, "lr": 5e-4},
    },
    "am": {"method": {"grid": UNIFORM, "beta": 0.6}, "train": {"iterations": 40, "lr": 5e-4}},
    "clipped-pg": {
        "method": {"grid": UNIFORM, "kl": {"kind": "per-step", "beta": 0.05}},
        "train": {"iterations": 60, "lr": 2e-4},
    },
    **{
        name: {
            "method": {"grid": UNIFORM, "value": {"net": {"classes": CLASSES}}, **parts},
            "train": {"iterations": 40, "lr": lr},
        }
        for name, lr, parts in (
            ("ctrl", 5e-4, {"price": {"kind": "kl", "beta": 0.6}}),
            ("ctrl-ratio", 2e-4, {}),
            ("ctrl-few-step", 5e-5, {}),
        )
    },
    "nft": {"method": {"grid": UNIFORM, "kappa": 0.3}, "train": {"iterations": 40, "lr": 2e-4}},
    "diffusion-dpo": {
        "method": {"weight": {"kind": "constant", "beta": 200.0}},
        "train": {"iterations": 100, "lr": 2e-4},
    },
    **{
        name: {"method": {"weight": {"kind": "constant", "beta": 200.0}}, "train": {"iterations": 60, "lr": 2e-4}}
        for name in ("diffusion-sdpo", "dspo", "rank-dpo", "diffusion-kto", "online-dpo")
    },
    **{
        name: {"method": {"grid": UNIFORM}, "train": {"iterations": 40, "lr": 5e-5}}
        for name in ("draft", "draft-lv", "refl")
    },
    "alignprop": {
        "method": {"grid": UNIFORM, "objective": {"kind": "maximise"}},
        "train": {"iterations": 40, "lr": 5e-5},
    },
    **{
        name: {"group_size": 8, "method": {"grid": UNIFORM, **parts}, "train": {"iterations": 25, "lr": lr}}
        for lr, parts, names in (
            (2e-4, {}, ("ddpo", "ddpo-sf", "dpok", "flow-grpo", "flow-grpo-fast", "dance-grpo", "mix-grpo")),
            (2e-4, {}, ("mix-grpo-flash", "branch-grpo", "grpo-guard", "pcpo", "flow-dppo", "rsm-hinge", "dgpo")),
            (1e-4, {}, ("tempflow-grpo", "awm", "fpo", "rvm", "crd")),
            (2e-4, {"beta": 0.7}, ("ram",)),
            (2e-4, {"tau": 1.0, "kappa": 0.1}, ("orw-cfm-w2",)),
        )
        for name in names
    },
}
"""Settings seen to work, by method; what was measured is in LOG.md."""
GENTLE: dict[str, Any] = {"train": {"iterations": 30, "lr": 2e-4}}
"""Settings of the other methods: online ones without a KL go too far with more."""


@settings
class DigitsConfig(RunConfig):
    """The digits recipe's configuration.

    Attributes:
        reward: what is aimed at; ``my_file.py:fn`` is your own.
        net, process, prediction, pretrain: the model and its pretraining; the cache is keyed by all of them.
        groups, group_size: prompts (digits) an iteration, over all processes, and samples of each.
        guidance: scale of classifier-free guidance in the rollout; 1 is none.
        pairs, annotator: for methods that learn from judged pictures: how many pairs, labels or lists are simulated,
            and the temperature of the annotator who judges them by the reward.
        sampler, grid: what evaluations sample with.
        samples: how many they draw.
        evaluation_seed: of the noise they draw them from.
    """

    train: TrainConfig = TrainConfig(iterations=60)
    reward: Part[Reward] = Part("bold")
    net: Part[NetConfig] = Part("mlp", {"shape": SHAPE, "classes": CLASSES})
    process: Part[Process] = Part("rectified-flow")
    prediction: Prediction = "velocity"
    pretrain: PretrainConfig = PretrainConfig()
    groups: Count = 10
    group_size: Count = 6
    guidance: NonNegative = 1.0
    pairs: Count = 2000
    annotator: NonNegative = 1.0
    sampler: Part[Sampler] = Part("euler")
    grid: Part[Grid] = Part("uniform", {"n": 20})
    samples: Count = 500
    evaluation_seed: Natural = EVALUATION_SEED


class DigitsRecipe(Recipe):
    """Tune a model of handwritten digits to a reward, with an independent judge of legibility."""

    name: ClassVar[str] = "digits"
    summary: ClassVar[str] = "real handwritten digits, made bold while a judge watches; minutes"
    config: ClassVar[type[RunConfig]] = DigitsConfig
    methods: ClassVar[Sequence[str]] = tuple(DEFAULTS)
    splits: ClassVar[bool] = True
    threads: ClassVar[int | None] = 1  # small matrices: a second thread waits more than it works, where others run

    def defaults(self, method: str) -> dict[str, Any]:
        """Settings seen to work for each method."""
        return DEFAULTS.get(method, GENTLE)

    def complete(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The shape and the classes of the data, for whichever network is chosen."""
        net = wanted.get("net", {})
        kind = net if isinstance(net, str) else net.get("kind") if isinstance(net, Mapping) else None
        return {} if kind is None else {"net": {"kind": kind, "shape": list(SHAPE), "classes": CLASSES}}

    def build(self, config: DigitsConfig, device: torch.device, accelerator: Any = None) -> Assembled:
        """Data, judge, pretrained model, reward, method and evaluation."""
        digits = load_digits()
        with first_process(accelerator):
            model = pretrained(config, digits)
        assert isinstance(model.net, torch.nn.Module)
        model.net.to(device)
        policy = config.policy(model, {"rollout": config.guidance})
        evaluator = evaluator_of(config, digits, device, model.process, accelerator)
        method = make(Method, config.method, evaluator.reward, model.process)
        base = policy.view("reference", "rollout")
        prompts = prompts_for(method, config, evaluator, base)
        known = PreferenceEvaluator.of(evaluator, base) if learns_preferences(method) else None
        judged = f"{evaluator.judge.real_accuracy:.1%} of {len(digits.generator)} real digits that it has not seen"
        return Assembled(
            Run(policy, method, config.train, prompts, accelerator),
            evaluator if known is None else known,
            evaluator.sample,
            draw,
            METRICS if known is None else METRICS + LEARNED,
            f"Handwritten digits of 8 x 8 pixels, tuned to the reward {evaluator.reward.name!r}. The judge of "
            "legibility was trained on other pictures than the model, and knows nothing of the reward.",
            {
                "The judge reads": judged,
                **({} if known is None or method.data == "prompts" else known.facts(config.annotator)),
            },
            write,
            beside={"reward": evaluator.reward},
        )

    def evaluate_folder(self, path: Path, device: torch.device) -> dict[str, float]:
        """Numbers of a folder of pictures, whose file names end in their digit."""
        config, digits = DigitsConfig(), load_digits()
        return evaluator_of(config, digits, torch.device("cpu"), make(Process, config.process)).measure(*read(path))


def pretrained(config: DigitsConfig, digits: Digits) -> Model:
    """The class-conditional model of the digits: from the cache, or pretrained now."""
    net, process, data = make(NetConfig, config.net), make(Process, config.process), digits.dataset()

    def train() -> Model:
        fresh = make_model(net.build(config.pretrain.seed), process, config.prediction, data)
        return pretrain(fresh, data, config.pretrain)

    key = {"net": net, "process": process, "prediction": config.prediction, "pretrain": config.pretrain}
    return cached("digits", key | {"data": fingerprint(data.x0)}, train)


@lru_cache(maxsize=1)
def judge_of_digits() -> Judge:
    """The judge, trained on the half of the digits that the model never sees (seconds, once a process)."""
    digits = load_digits()
    return Judge(digits.judge.x, digits.judge.labels, digits.generator.x, digits.generator.labels)


def evaluator_of(
    config: DigitsConfig, digits: Digits, device: torch.device, process: Process, accelerator: Any = None
) -> Evaluator:
    """The judge with what it needs to see pictures."""
    judge = judge_of_digits()
    sampler, grid = make(Sampler, config.sampler), make(Grid, config.grid, process)
    reward = reward_of(config.reward, device)
    spread, data = Spread(Reduce(accelerator)), digits.generator.x
    return Evaluator(sampler, grid, judge, reward, data, config.samples, config.evaluation_seed, device, spread)


def prompts_for(method: Method, config: DigitsConfig, evaluator: Evaluator, base: ModelLike) -> PromptSource:
    """Digits to draw; or pictures of the pretrained model that an annotator has judged by the reward."""
    if method.data == "prompts":
        sizes = {"groups_per_batch": config.groups, "group_size": config.group_size}
        return ClassPrompts(num_classes=CLASSES, null_class=CLASSES, seed=config.train.seed, **sizes)
    return simulate(
        method.data,
        base,
        evaluator.sampler,
        evaluator.grid,
        evaluator.reward,
        digit_prompts(balanced_labels(config.pairs)).to(evaluator.device),
        bt_temperature=config.annotator,
        batch_size=config.groups * config.group_size,
        seed=PAIR_SEED + config.train.seed,
    )


@contextmanager
def first_process(accelerator: Any) -> Iterator[None]:
    """Lets one process fill the cache before the others read it."""
    if accelerator is None:
        yield
        return
    with accelerator.main_process_first():
        yield
