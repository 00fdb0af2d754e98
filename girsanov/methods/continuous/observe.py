"""One iteration's data for score as action: rollout, critic, returns, diagnosis, trust region."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from girsanov.errors import GirsanovError
from girsanov.methods.base import State, Turn
from girsanov.methods.continuous.batch import Diagnosis, Part, Point, Seen, ValuedPaths
from girsanov.methods.continuous.critic import Critic
from girsanov.methods.continuous.martingale import martingale_test
from girsanov.methods.online import sample_and_score
from girsanov.nets.value import Value
from girsanov.policy import Policy
from girsanov.precision import as_wide, onto
from girsanov.rewards.scores import total
from girsanov.types import Kernel, Prompts, Trajectory

if TYPE_CHECKING:
    from girsanov.methods.continuous.ctrl import CTRL


def observe(method: "CTRL", value: Value, policy: Policy, prompts: Prompts, state: State, turn: Turn) -> ValuedPaths:
    """A rollout of the policy with everything that its losses need.

    Raises GirsanovError if no step of the grid can be trained.
    """
    with torch.no_grad():
        model, noise = policy.view("current", "rollout"), turn.noise(prompts.ids)
        x_T = method.begin(policy, model, method.grid, noise, prompts.cond)
        asked = (prompts, method.reward, turn)
        path, pending = sample_and_score(
            model, method.sampler, method.grid, x_T, *asked, micro_batch=method.rollout_micro_batch
        )
        if method.trust is not None:
            adapt(method, policy, path, state, turn)
    reward = total(method.reward, onto(pending.result().detach(), x_T.device))
    if turn.index == 0:
        value.calibrate(turn.reduce.gather(reward))
    able = [k for k, tr in enumerate(path) if method.update.trains(tr.stochastic, method.price)]
    if not able:
        raise GirsanovError("no step of the grid can be trained: take more steps (the last step may be noiseless)")
    chosen = [able[k] for k in method.steps(len(able), turn)] if turn.index >= method.pretrain else []
    seen, kernels = look(method, value, policy, prompts, path, reward, method.update.wants(chosen))
    values = torch.stack([as_wide(s.value) for s in seen], 1)
    running = method.target.running(torch.stack([s.running for s in seen[:-1]], 1))
    targets = method.target(values, running)
    parts = tuple(part_of(method, policy, seen, kernels, k, turn) for k in chosen)
    points = points_of(seen, targets, value, path.x0)
    diagnosis = Diagnosis(diagnose(values, running, turn) | told(state))
    return ValuedPaths(reward, reward.isfinite(), prompts.cond, parts, points, diagnosis)


def look(
    method: "CTRL", value: Value, policy: Policy, prompts: Prompts, path: Trajectory, reward: Tensor, wanted: set[int]
) -> tuple[list[Seen], list[Kernel]]:
    """Every state of the path as the critic sees it, n + 1 of them, and the n kernels."""
    reference = policy.view("reference", "rollout")
    critic = Critic(value, method.reward, method.price, method.sampler, reference, prompts, bool(wanted))
    pairs = [critic.step(tr, k in wanted) for k, tr in enumerate(path)]
    end = critic.end(path.x0, reward, len(path.transitions) in wanted)
    return [*(seen for seen, _ in pairs), end], [kernel for _, kernel in pairs]


def part_of(
    method: "CTRL", policy: Policy, seen: Sequence[Seen], kernels: Sequence[Kernel], k: int, turn: Turn
) -> Part:
    """The trained step k. The reference's mean is taken again where training is guided in another way."""
    here, tr = seen[k], seen[k].tr
    assert tr is not None
    reference = here.reference if method.price is not None else None
    if reference is not None and policy.guidance.get("rollout", 1.0) != policy.guidance.get("train", 1.0):
        with torch.no_grad():
            model = policy.view("reference", "train")
            reference = method.sampler.kernel(model, tr.asked, tr.step, tr.cond)[0].mean
    return Part(tr, method.update.signal(here, seen[k + 1], kernels[k], method.price, turn), reference)


def points_of(seen: Sequence[Seen], targets: Tensor, value: Value, x0: Tensor) -> tuple[Point, ...]:
    """The states of the regression: where steps begin, and the end where the network has to learn the reward too."""
    points = [
        Point(s.tr.x_t, s.tr.step.t, s.reward, y) for s, y in zip(seen[:-1], targets.unbind(1), strict=True) if s.tr
    ]
    if not value.skip.uses_reward:
        points.append(Point(x0, torch.zeros((), dtype=torch.float64), None, as_wide(seen[-1].value)))
    return tuple(points)


def diagnose(values: Tensor, running: Tensor, turn: Turn) -> dict[str, float]:
    """The martingale test over all processes, and the share of the return's variance that V explains at each state."""
    every, paid = turn.reduce.gather(values.contiguous()), turn.reduce.gather(running.contiguous())
    kept = every.isfinite().all(1)
    every, paid = every[kept], paid[kept]
    if len(every) < 2:
        return {"martingale_z": 0.0, "martingale_drift": 0.0, "value_explained": 0.0, "price_paid": 0.0}
    returns = every[:, -1:] + paid.flip(1).cumsum(1).flip(1)
    left = (returns - every[:, :-1]).var(0, correction=0).mean() / returns.var(0, correction=0).mean().clamp_min(1e-30)
    shares = {"value_explained": 1 - float(left), "price_paid": -float(paid.sum(1).mean())}
    return martingale_test(every, paid) | shares


def adapt(method: "CTRL", policy: Policy, path: Trajectory, state: State, turn: Turn) -> None:
    """Moves the weight of the trust region by the path KL from the policy of the rollout before, under this one."""
    assert method.trust is not None
    model = policy.view("old", "rollout")
    moved = as_wide(path.x0.new_zeros(len(path)))
    for tr in path.trainable:
        mean = method.sampler.kernel(model, tr.asked, tr.step, tr.cond)[0].mean
        moved = moved + Kernel(tr.mean, tr.std, True).kl(mean)
    mean_kl = float(turn.reduce.gather(moved).mean())
    if turn.index > method.pretrain:
        state["trust_weight"] = method.trust.adapt(float(state["trust_weight"]), mean_kl)
    state["trust_distance"] = math.sqrt(max(mean_kl, 0.0))
    policy.keep_copy("old")


def told(state: State) -> dict[str, float]:
    """The trust region's numbers, if there is one."""
    return {k: float(v) for k, v in state.items() if k.startswith("trust_")}
