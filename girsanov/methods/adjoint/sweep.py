r"""A solver's step along a given path, linearised in its state and its velocities: backwards (VJP) and forwards (JVP).

A step of a solver with velocity stages is ``x_s = F(x_t, v_1, ..., v_m)`` with ``v_i = v_ref(x_i, t_i) + u_i``. Around
a path that some rollout visited,

.. math:: \delta x_s = A\, \delta x_t + \sum_i B_i u_i, \qquad A = \frac{\partial x_s}{\partial x_t}, \quad
          B_i = \frac{\partial x_s}{\partial u_i}

where the derivatives include those of the reference. ``pull`` gives ``A^T a`` and every ``B_i^T a`` from one VJP of the
reference a stage, ``push`` gives ``delta x_s`` from one JVP a stage. Euler has ``A = I + h J, B = h I``, and Heun
``B_1 = (h / 2)(I + h J~), B_2 = (h / 2) I``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from girsanov.models import ModelLike, velocity
from girsanov.samplers.base import Sampler
from girsanov.types import Cond, Transition


def along(
    sampler: Sampler, model: ModelLike, tr: Transition, cond: Cond | None
) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    """The step as a function of x_t and one velocity shift a stage: the new state and the model's velocities.

    Its value is taken at the points of the path, its derivatives are those of the solver.
    """

    def step(x: Tensor, *shifts: Tensor) -> tuple[Tensor, list[Tensor]]:
        dialogue, velocities = sampler.stages(model, x, tr.step), list[Tensor]()
        asked = next(dialogue)
        for visited, shift in zip(tr.stages, shifts, strict=True):
            point = asked.x if visited.x is tr.x_t else asked.x + (visited.x - asked.x).detach()
            v = velocity(model, point, visited.t, cond)
            velocities.append(v)
            try:
                asked = dialogue.send(v + shift)
            except StopIteration as end:
                return end.value, velocities
        raise RuntimeError("the solver asked for more stages than the path has")

    return step


def pull(
    sampler: Sampler, model: ModelLike, tr: Transition, costate: Tensor, cond: Cond | None, carry: bool = True
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """``A^T a``, every ``B_i^T a`` and the model's velocity at every stage, [B, *D] each; one VJP a stage.

    Without ``carry`` the first is None, and the network is not differentiated further than the others need.
    """
    with torch.enable_grad():
        x = tr.asked.detach().requires_grad_(carry)
        shifts = [torch.zeros_like(x, requires_grad=True) for _ in tr.stages]
        end, velocities = along(sampler, model, tr, cond)(x, *shifts)
        found = list(torch.autograd.grad(end, [x, *shifts] if carry else shifts, costate))
    before = found.pop(0) if carry else None
    return before, found, [v.detach() for v in velocities]


def push(
    sampler: Sampler, model: ModelLike, tr: Transition, shift: Tensor, controls: Sequence[Tensor], cond: Cond | None
) -> Tensor:
    """``A delta x_t + sum_i B_i u_i``, [B, *D]; one JVP a stage.

    Attention runs as plain matrix products meanwhile: its fused kernels have no forward derivative.
    """
    with forward_ad.dual_level(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        x = forward_ad.make_dual(tr.asked, shift)
        moved = [forward_ad.make_dual(torch.zeros_like(u), u) for u in controls]
        end, _ = along(sampler, model, tr, cond)(x, *moved)
        return forward_ad.unpack_dual(end).tangent
