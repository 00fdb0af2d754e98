"""Forward-process methods: sample with any solver, re-noise the samples, regress. No density is needed."""

from girsanov.methods.forward.errors import ErrorNorm, SelfNormalisedX0, VelocityError
from girsanov.methods.forward.nft import DiffusionNFT as DiffusionNFT
from girsanov.methods.forward.old import ConstantDecay, DecaySchedule, RampDecay
from girsanov.methods.forward.times import GridTimes, LogitNormalTimes, Times, UniformTimes

ERRORS: dict[str, type[ErrorNorm]] = {"velocity": VelocityError, "self-normalised-x0": SelfNormalisedX0}
DECAYS: dict[str, type[DecaySchedule]] = {"ramp": RampDecay, "constant": ConstantDecay}
TIMES: dict[str, type[Times]] = {"uniform": UniformTimes, "grid": GridTimes, "logit-normal": LogitNormalTimes}
