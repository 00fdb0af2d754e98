"""Preference methods: from pairs of samples of which one was preferred."""

from girsanov.methods.preference.diffusion_dpo import DiffusionDPO as DiffusionDPO
from girsanov.methods.preference.weights import ConstantWeight, PairWeight, TiltWeight

PAIR_WEIGHTS: dict[str, type[PairWeight]] = {"constant": ConstantWeight, "tilt": TiltWeight}
