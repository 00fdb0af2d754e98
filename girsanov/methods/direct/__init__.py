"""Direct reward gradients, and the parts they are composed of, by name."""

from girsanov.methods.direct.gradient import AlignProp as AlignProp
from girsanov.methods.direct.gradient import DirectGradient as DirectGradient
from girsanov.methods.direct.lv import DRaFTLV as DRaFTLV
from girsanov.methods.direct.objectives import OBJECTIVES as OBJECTIVES
from girsanov.methods.direct.refl import ReFL as ReFL
from girsanov.methods.direct.truncation import TRUNCATIONS as TRUNCATIONS
