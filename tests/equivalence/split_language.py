"""Language models of a few letters, trained on one process, and on several that split the network over them.

Rows have prompts of one to four letters, so that rooms and ends differ between the processes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from girsanov.config.parts import parameters
from girsanov.distributed import Reduce
from girsanov.language import LANGUAGE_METHODS, LanguageModel, LanguageNet, TextComparisons, TextRequests
from girsanov.language.generation import Sampling
from girsanov.language.load import add_adapters
from girsanov.language.rewards import FunctionTextReward
from girsanov.language.tokens import Encoder
from girsanov.policy import Policy
from girsanov.recipes.language_evaluation import LanguageEvaluator
from girsanov.sharding import Sharding
from girsanov.spread import Spread
from girsanov.train import PromptSource, Run, TrainConfig
from tests.language_models import gpt2, letters, llama

CPU = torch.device("cpu")
ALPHABET = "abcdef"
PROMPTS = ("a", "bc", "def", "abcd", "b", "cd", "efa", "fedc")
METHODS_HERE = ("dpo", "kto", "tdpo1", "tr-dpo", "grpo", "ppo", "remax", "spin", "nash-md-pg", "p3o-on-off")
FEW = ("lora/words-dpo", "full/words-grpo", "full/words-ppo")
ALL = tuple(f"{kind}/words-{name}" for kind in ("lora", "full", "tied") for name in METHODS_HERE)
"""Adapters of a Llama, all of its weights, all of a GPT-2's (its head is its embedding, its places are learned)."""
DRAW = Sampling(max_tokens=5)


def model_of(kind: str) -> LanguageModel:
    """A model in float64 whose adapters are away from zero."""
    lm = (gpt2 if kind == "tied" else llama)(len(ALPHABET) + 1, width=8, places=8, scale=3.0)
    net = LanguageNet(lm, chunk=7)
    if kind == "lora":
        add_adapters(net, 2)
        net.double()
        with torch.no_grad():
            for i, p in enumerate(p for p in net.parameters() if p.requires_grad):
                p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype) + i).view_as(p))
    return LanguageModel(net, Encoder(letters(ALPHABET), max_length=8))


def taste(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Early letters and short words."""
    return [sum(ALPHABET.index(c) for c in text) / 3 - len(text) for text in completions]


def source_of(method: Any, model: LanguageModel) -> PromptSource:
    """Prompts to complete, or pairs."""
    if method.data == "prompts":
        return TextRequests(texts=PROMPTS, groups_per_batch=4, group_size=2)
    rows = [(p, [p[::-1] + "ab"[i % 2], "fe"[: 1 + i % 2]]) for i, p in enumerate(PROMPTS)]
    return TextComparisons.encode(model.encoder, rows, batch_size=8)


def new_run(name: str, kind: str, accelerator: Accelerator | None, split: bool = True) -> Run:
    """A run of a method; the network is split where there are several processes, unless ``split`` is False."""
    model, reward = model_of(kind), FunctionTextReward(taste)
    sharding = Sharding(model.net, CPU) if split and accelerator is not None else None
    online = "reward" in parameters(LANGUAGE_METHODS[name])
    given: dict[str, Any] = {"reward": reward} if online else {}
    if "sampling" in parameters(LANGUAGE_METHODS[name]):
        given["sampling"] = DRAW
    method = LANGUAGE_METHODS[name](**given)
    config = TrainConfig(iterations=4, lr=1e-2, ema=0.5, max_grad_norm=0.1)
    return Run(Policy(model, sharding=sharding), method, config, source_of(method, model), accelerator)


def evaluator_of(run: Run, accelerator: Accelerator | None) -> LanguageEvaluator:
    """Seven samples in lots of two: of four lots, and of two processes the second has a short one."""
    pairs = TextComparisons.encode(run.policy.model.encoder, [(p, [p + "a", "f"]) for p in PROMPTS[:5]])
    reward = FunctionTextReward(taste)
    return LanguageEvaluator(pairs, None, PROMPTS, reward, DRAW, 7, 2, 11, Spread(Reduce(accelerator)))


def measured(run: Run, accelerator: Accelerator | None) -> dict[str, Any]:
    """An evaluation, the completions of a report, and how often each process has run the network for them."""
    counts, evaluator = [0], evaluator_of(run, accelerator)

    def count(*_: Any) -> None:
        counts[0] += 1

    handles = [net.lm.base_model.register_forward_hook(count) for net in networks(run)]
    found = {"numbers": evaluator(run), "texts": evaluator.sample(run.model(), 5, 12).texts}
    for handle in handles:
        handle.remove()
    return found | {
        "calls": Spread(Reduce(accelerator)).apart(Reduce(accelerator).world_size, 1, lambda ids: counts[0])
    }


def networks(run: Run) -> list[Any]:
    """The network that is tuned, and those of the views that have their own."""
    other = getattr(run.policy.weights, "reference", None)
    twins = getattr(run.policy.weights, "twins", {})
    return [run.policy.net, *([other] if isinstance(other, torch.nn.Module) else []), *twins.values()]
