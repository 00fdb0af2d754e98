"""Small networks with one contract: ``net(x [B, *D], t [B], cond: Cond | None) -> [B, *D]``, in the dtype of x.

``NETS`` lists their configurations by name; ``NETS["mlp"](shape=(1, 8, 8), classes=10).build(seed=0)`` is a network.
"""

from girsanov.nets.dit import DiT as DiT
from girsanov.nets.dit import DiTConfig as DiTConfig
from girsanov.nets.embed import NetConfig as NetConfig
from girsanov.nets.mlp import MLP as MLP
from girsanov.nets.mlp import MLPConfig as MLPConfig
from girsanov.nets.precondition import Preconditioned as Preconditioned
from girsanov.nets.unet import UNet as UNet
from girsanov.nets.unet import UNetConfig as UNetConfig

NETS: dict[str, type[NetConfig]] = {
    "mlp": MLPConfig,
    "dit": DiTConfig,
    "unet": UNetConfig,
}
"""Every network's configuration by name."""
