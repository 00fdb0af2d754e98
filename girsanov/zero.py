"""DeepSpeed's ZeRO, under ``accelerate launch --use_deepspeed``: AdamW's averages are split, at stage 2 gradients too.

Stages 1 and 2 leave every process the whole weights, so that views, VJPs, chains and double passes run as on one
process; only ``backward`` and the step go through the engine. We own the boundary between steps
(``managed_gradient_accumulation=false``): any number of backward passes, then one step. The engine averages over
processes, clips by the joint norm (``min(1, c / (|g| + 1e-6))``, as ours) and steps its part of a float32 copy of the
weights. The learning rate is ours: the schedule writes it into the groups that the engine reads.

Checkpoints hold the averages whole, in AdamW's own form, gathered parameter by parameter: a run goes on with or without
DeepSpeed, on any number of processes.

Reference: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from girsanov.distributed import Reduce
from girsanov.errors import GirsanovError
from girsanov.steps import Step, Steps

BUCKET = 500_000_000  # DeepSpeed's own: numbers of the gradient in one message, of which it holds a buffer


class ZeroSteps(Steps):
    """The engine of DeepSpeed around the network that is tuned. Of one Accelerate launch with its plugin."""

    repeatable = False  # at stage 2 a backward pass is a meeting, and its gradients are gone to their owners

    def __init__(self, reduce: Reduce, limit: float | None) -> None:
        super().__init__(reduce, limit)
        self.settings: dict[str, Any] = self.accelerator.deepspeed_plugin.deepspeed_config  # type: ignore[union-attr]
        self.settings["gradient_clipping"] = 0.0 if limit is None else limit
        self.engine: Any = None

    def prepare(self, net: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """The engine's optimiser. Raises GirsanovError for what the engine cannot step exactly."""
        if list(optimizers) != ["policy"]:
            others = ", ".join(name for name in optimizers if name != "policy")
            raise GirsanovError(
                f"DeepSpeed steps one network, and this method trains {others} beside it: launch without "
                "--use_deepspeed, or with shard=true"
            )
        optimizer = optimizers["policy"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(p.dtype != torch.float32 for p in parameters):
            raise GirsanovError(
                "DeepSpeed steps a float32 copy of the weights, and not all that are trained are float32: launch "
                "without --use_deepspeed, or with shard=true"
            )
        trained = sum(p.numel() for p in parameters)
        self.settings["zero_optimization"].setdefault("reduce_bucket_size", min(BUCKET, trained))
        self.engine, _ = self.accelerator.prepare(net, optimizer)  # type: ignore[union-attr]
        if not hasattr(self.engine, "managed_gradient_accumulation"):
            raise GirsanovError("DeepSpeed is too old to leave steps to us: pip install 'deepspeed>=0.19.8'")
        return {"policy": SplitAverages(self.engine, parameters)}

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradients; at stage 2 each process keeps those of its part."""
        self.engine.backward(loss)

    def step(self, parameters: Sequence[nn.Parameter], optimizers: Mapping[str, Any]) -> Step:
        """One step of the engine, which leaves the weights alone where the norm is not finite."""
        optimizers["policy"].step()
        return Step(torch.as_tensor(self.engine.get_global_grad_norm()))


class SplitAverages:
    """The optimiser within an engine, with the state of an ordinary AdamW over whole parameters.

    Args:
        engine: of DeepSpeed, at stage 1 or 2.
        parameters: the trained ones, in the order of the optimiser they came from.
    """

    def __init__(self, engine: Any, parameters: Sequence[nn.Parameter]) -> None:
        self.engine, self.parameters = engine, list(parameters)
        self.zero = engine.optimizer  # holds one flat part of all weights, and the AdamW that steps it

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The one group, with the whole parameters."""
        return [{**self.zero.param_groups[0], "params": self.parameters}]

    def step(self) -> None:
        """Steps from the weights that the network has now: they are the truth, whoever wrote them."""
        from deepspeed.utils import safe_set_full_fp32_param

        for p in self.parameters:
            safe_set_full_fp32_param(p, p.detach())
        self.engine.step()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, gathered on every process: all must call."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self.zero.optimizer.state_dict()
        group = {**inner["param_groups"][0], "params": list(range(len(self.parameters)))}

        def whole(key: str, value: Any, p: Tensor) -> Any:
            if not isinstance(value, Tensor):
                return value
            return safe_get_full_optimizer_state(p, key) if value.ndim else value.clone()  # AdamW counts in place

        (kept,) = inner["state"].values() or ({},)  # nothing before the first step
        every = {i: {k: whole(k, v, p) for k, v in kept.items()} for i, p in enumerate(self.parameters) if kept}
        return {"state": every, "param_groups": [group]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes this process's part of an AdamW's state."""
        from deepspeed.utils import safe_set_full_optimizer_state

        flat = self.zero.param_groups[0]["params"][0]
        state = saved["state"]
        whole = {k for kept in state.values() for k, v in kept.items() if isinstance(v, Tensor) and v.ndim}
        other = {k: v for kept in state.values() for k, v in kept.items() if k not in whole}
        empty = {**other, **{k: torch.zeros_like(flat) for k in whole}}
        group = {**saved["param_groups"][0], "params": [0]}
        self.zero.optimizer.load_state_dict({"state": {0: empty} if state else {}, "param_groups": [group]})
        if not state:
            return
        self.zero._hp_optimizer_states_linked = False  # DeepSpeed links them at the first step of a run
        self.zero._lazy_init_hp_params_optimizer_state()
        for i, p in enumerate(self.parameters):
            for k in whole:
                safe_set_full_optimizer_state(p, state[i][k].to(p.device), k)
