"""From rewards to advantages, for every method that learns from samples of its own."""

from girsanov.methods.advantages.base import Advantage as Advantage
from girsanov.methods.advantages.base import BatchNormalised as BatchNormalised
from girsanov.methods.advantages.base import GlobalStd as GlobalStd
from girsanov.methods.advantages.base import GroupCentred as GroupCentred
from girsanov.methods.advantages.base import GroupNormalised as GroupNormalised
from girsanov.methods.advantages.base import LeaveOneOut as LeaveOneOut
from girsanov.methods.advantages.base import Normaliser as Normaliser
from girsanov.methods.advantages.buffers import RunningBuffer as RunningBuffer
from girsanov.methods.advantages.groups import Groups as Groups
from girsanov.methods.advantages.robust import Clipped as Clipped
from girsanov.methods.advantages.robust import PerReward as PerReward
from girsanov.methods.advantages.robust import Trimmed as Trimmed

NORMALISERS: dict[str, type[Normaliser]] = {
    "leave-one-out": LeaveOneOut,
    "group-centred": GroupCentred,
    "group-normalised": GroupNormalised,
    "global-std": GlobalStd,
    "batch-normalised": BatchNormalised,
    "trimmed": Trimmed,
    "running-buffer": RunningBuffer,
}
"""Every advantage of one reward, by name."""

ADVANTAGES: dict[str, type[Advantage]] = {**NORMALISERS, "clipped": Clipped, "per-reward": PerReward}
"""Every advantage by name."""
