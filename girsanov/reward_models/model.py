"""A trained reward model: a reward of samples or of texts, with its place on disk.

The score of an ensemble is ``mean - k std`` over its members: ``k = pessimism`` makes the reward low where the members
disagree, which is where it has seen little (0 is the mean; large k tends to the worst member). ``shift`` puts the mean
score of the training data at 0.

=================  ========================================================================================
model.safetensors  the weights
reward.json        format, schema, front, network, shift, numbers on held-out comparisons, SHA-256 of the weights
=================  ========================================================================================

Reference: Coste et al. 2023, arXiv:2310.02743 (uncertainty-weighted ensembles).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import girsanov
from girsanov.config.parts import construct, describe
from girsanov.errors import GirsanovError
from girsanov.reward_models.data import Comparisons
from girsanov.reward_models.fronts import Front, picture, requests
from girsanov.reward_models.kinds import FRONTS, SCORERS, front_for
from girsanov.reward_models.method import score_items
from girsanov.reward_models.scorers import ScorerConfig
from girsanov.rewards.base import Reward
from girsanov.store import damaged, read_settings, read_tensors, write_folder
from girsanov.types import Cond, Prompts

FORMAT, SCHEMA, MARKER = "girsanov-reward-model", 2, "reward.json"
BATCH = 256


class RewardModel(Reward):
    """A network of ``SCORERS`` (or a gated one) as a reward.

    Args:
        config: the network's configuration.
        net: the network.
        shift: subtracted from every score.
        pessimism: k, how many standard deviations of the members are subtracted.
        name: what messages call it.
        notes: numbers that go with it, kept on disk.
        front: what stands between pictures or texts and the network; the network's own by default.
    """

    def __init__(
        self,
        config: ScorerConfig,
        net: nn.Module,
        shift: float = 0.0,
        pessimism: float = 0.0,
        name: str = "trained",
        notes: Mapping[str, Any] | None = None,
        front: Front | None = None,
    ) -> None:
        if pessimism < 0:
            raise GirsanovError(f"pessimism must be at least 0, not {pessimism}")
        self.config, self.net = config, net.eval().requires_grad_(False)
        self.shift, self.pessimism, self.name, self.notes = shift, pessimism, name, dict(notes or {})
        self.front = front_for(config) if front is None else front
        self.differentiable = Parts(config, self.front).differentiable

    def prepare(self, device: torch.device | str = "cpu") -> None:
        """Moves the network."""
        self.net.to(device)

    def __call__(self, x: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of samples [B, *D] in the dtype of x (float32 for token ids, which need no front)."""
        if not x.is_floating_point():
            return self.score(x, prompts.cond)
        cond = self.front.asked(prompts) if self.config.reads_prompt else prompts.cond
        return self.score(self.front.images(x, prompts), cond).to(x.dtype)

    def members(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """The scores of every member, [N, M]."""
        first = next(self.net.parameters())
        if first.device != x.device:
            self.net.to(x.device)
        scores = self.net(x.to(first.dtype) if x.is_floating_point() else x, cond)
        return scores.to(x.dtype) if x.is_floating_point() else scores

    def score(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """``mean - k std - shift``, [N]."""
        return self.joined(self.members(x, cond))

    def joined(self, scores: Tensor) -> Tensor:
        """One score from those of the members, over the last dimension."""
        mean = scores.mean(-1) - self.shift
        if self.pessimism == 0 or scores.shape[-1] == 1:
            return mean
        return mean - self.pessimism * scores.std(-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Scores [N] of answers, on the host. Raises GirsanovError if the model reads no texts."""
        found = []
        for i in range(0, len(answers), BATCH):
            asked, part = prompts[i : i + BATCH], answers[i : i + BATCH]
            x = self.front.texts(asked, part)
            cond = self.front.asked(requests(asked)) if self.config.reads_prompt else None
            found.append(self.score(x, cond).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def pictures(self, prompts: Sequence[str], files: Sequence[bytes]) -> Tensor:
        """Scores [N] of picture files of any size, on the host. Raises GirsanovError if the model reads none."""
        if not self.front.reads_pictures:
            raise GirsanovError("this reward model does not read pictures: train one on pictures")
        if self.front.own_samples:
            raise GirsanovError("this reward model reads the samples it was trained on: train one on picture files")
        return torch.cat([self(picture(f), requests([p])).cpu() for p, f in zip(prompts, files, strict=True)])

    @torch.no_grad()
    def compared(self, data: Comparisons) -> Tensor:
        """Scores [N, K] of compared items."""
        device = next(self.net.parameters()).device
        found = []
        for rows in torch.arange(len(data)).split(BATCH):
            part = data.take(rows)
            cond = None if part.cond is None else part.cond.to(device)
            found.append(self.joined(score_items(self.members, part.items.to(device), cond)).cpu())
        return torch.cat(found)

    def save(self, folder: str | Path) -> Path:
        """Writes it to a folder, all at once. Raises GirsanovError if the folder holds something else."""
        settings = {
            "format": FORMAT,
            "schema": SCHEMA,
            "girsanov": girsanov.__version__,
            "front": describe(self.front),
            "scorer": described(self.config),
            "shift": self.shift,
            "notes": self.notes,
        }
        return write_folder(folder, settings, self.config.tensors(self.net), MARKER)


def described(config: ScorerConfig) -> dict[str, Any]:
    """A configuration as plain data. Raises GirsanovError for one of the user's own."""
    if type(config) not in SCORERS.values():
        raise GirsanovError(f"a saved reward model holds one of the networks {', '.join(SCORERS)}")
    found: dict[str, Any] = describe(config)
    return found


def is_reward_model(folder: str | Path) -> bool:
    """Whether a folder holds one."""
    return (Path(folder) / MARKER).is_file()


@dataclass(frozen=True)
class Parts:
    """What a reward model is made of, without its weights."""

    config: ScorerConfig
    front: Front

    @property
    def differentiable(self) -> bool:
        """Whether scores have a gradient in the samples."""
        return self.config.differentiable and self.front.differentiable


def read_scorer(folder: str | Path) -> Parts:
    """What the reward model of a folder is made of. Raises GirsanovError in one sentence if there is none."""
    settings = read_settings(folder, MARKER, FORMAT, SCHEMA)
    with damaged(folder):
        if settings["scorer"]["kind"] not in SCORERS:
            raise GirsanovError(f"unknown network {settings['scorer']['kind']!r}")
        config: ScorerConfig = construct(ScorerConfig, settings["scorer"])
        if "front" not in settings:  # schema 1
            return Parts(config, front_for(config))
        known_fronts(settings["front"])
        return Parts(config, construct(Front, settings["front"]))


def known_fronts(data: Mapping[str, Any]) -> None:
    """Raises GirsanovError unless a front and what is inside it are of this package: no code is named in files."""
    if data["kind"] not in FRONTS:
        raise GirsanovError(f"unknown front {data['kind']!r}")
    if "inner" in data:
        known_fronts(data["inner"])


def load_reward_model(folder: str | Path, pessimism: float = 0.0) -> RewardModel:
    """The reward model of a folder. Raises GirsanovError in one sentence if there is none, or it is damaged."""
    settings, parts = read_settings(folder, MARKER, FORMAT, SCHEMA), read_scorer(folder)
    with damaged(folder):
        net = parts.config.build()
        parts.config.fill(net, read_tensors(folder, settings))
    name, notes = Path(folder).name, settings["notes"]
    return RewardModel(parts.config, net, float(settings["shift"]), pessimism, name, notes, parts.front)
