"""Forward-process methods: sample with any solver, re-noise the samples, regress. No density is needed."""

from girsanov.methods.forward.errors import ErrorNorm, SelfNormalisedX0, VelocityError
from girsanov.methods.forward.grouped import CRD as CRD
from girsanov.methods.forward.grouped import DGPO as DGPO
from girsanov.methods.forward.nft import DiffusionNFT as DiffusionNFT
from girsanov.methods.forward.old import ConstantDecay, DecaySchedule, RampDecay
from girsanov.methods.forward.orw import ORW as ORW
from girsanov.methods.forward.ram import RAM as RAM
from girsanov.methods.forward.ratio import AWM as AWM
from girsanov.methods.forward.ratio import FPO as FPO
from girsanov.methods.forward.rvm import RVM as RVM
from girsanov.methods.forward.times import GridTimes, LogitNormalTimes, Times, UniformTimes
from girsanov.methods.forward.weighting import ErrorWeight, Huber, Plain

ERRORS: dict[str, type[ErrorNorm]] = {"velocity": VelocityError, "self-normalised-x0": SelfNormalisedX0}
DECAYS: dict[str, type[DecaySchedule]] = {"ramp": RampDecay, "constant": ConstantDecay}
SHAPES: dict[str, type[ErrorWeight]] = {"plain": Plain, "huber": Huber}
TIMES: dict[str, type[Times]] = {"uniform": UniformTimes, "grid": GridTimes, "logit-normal": LogitNormalTimes}
