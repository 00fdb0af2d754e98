"""How long an agent takes to come within 2 % of the optimum of the linear-quadratic problem: one JSON line an agent.

    OMP_NUM_THREADS=1 python benchmarks/agents.py

The settings are those of ``girsanov run lq``, from the random admissible start of seed 0. ``value``: seconds until the
loss of the averaged policy, in closed form, is 2 % of the best value; ``policy``: until slope, offset and variance are
all within 2 % of the exact ones; both must stay so to the end of the run. Wall seconds of training (the target is 60 on
two cores), processor seconds beside them; looking at the policy is not counted.
"""

import argparse
import json
import time
from typing import Any

import torch

from girsanov.config import make
from girsanov.control import LQ, AffinePolicy
from girsanov.control.agents import Agent
from girsanov.control.environments import Environment
from girsanov.control.policies import PolicyConfig
from girsanov.errors import GirsanovError
from girsanov.launch import configure
from girsanov.policy import Policy
from girsanov.prompts import ClassPrompts
from girsanov.recipes import get_recipe
from girsanov.train import Run, iterate

NEAR = 0.02


def distance(env: LQ, policy: Policy) -> tuple[float, float]:
    """Loss of the averaged policy as a share of the best value, and the largest relative error of its numbers."""
    best = env.solution()
    slope, offset, log_std = list(policy.state("ema").values())[:3]
    found = AffinePolicy(slope, offset, torch.diag(2 * log_std).exp())
    pairs = (
        (found.slope, best.affine.slope),
        (found.offset, best.affine.offset),
        (found.covariance, best.affine.covariance),
    )
    error = max(abs(float((a - b).squeeze() / b.squeeze())) for a, b in pairs)
    try:
        return (best.objective - best.evaluate(found).objective) / abs(best.objective), error
    except GirsanovError:
        return float("inf"), error


def measure(name: str, **train: Any) -> dict[str, Any]:
    """One run."""
    config: Any = configure(get_recipe("lq"), [{"method": name}, {"train": train}])
    env: Any = make(Environment, config.environment)
    policy = Policy(make(PolicyConfig, config.actor).build(env, config.train.seed))
    prompts = ClassPrompts(num_classes=1, groups_per_batch=config.batch, group_size=1)
    run = Run(policy, make(Agent, config.method, env), config.train, prompts)
    wall = processor = 0.0
    found: dict[str, Any] = {"value": None, "policy": None}
    while not run.finished:
        began, worked = time.perf_counter(), time.process_time()
        iterate(run)
        wall, processor = wall + time.perf_counter() - began, processor + time.process_time() - worked
        run.done += 1
        for key, off in zip(("value", "policy"), distance(env, policy), strict=True):
            there = {"iteration": run.done, "seconds": round(wall, 2), "processor": round(processor, 2)}
            found[key] = (found[key] or there) if off < NEAR else None
    loss, error = distance(env, policy)
    return {
        "agent": name,
        **found,
        "iterations": run.done,
        "seconds": round(wall, 2),
        "processor": round(processor, 2),
        "loss_percent": round(100 * loss, 4),
        "error_percent": round(100 * error, 3),
    }


def main() -> None:
    """Both agents."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--agents", nargs="+", default=["cppo", "cpg"])
    arguments.add_argument("--threads", type=int, default=1)
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.agents:
        print(json.dumps(measure(name)), flush=True)


if __name__ == "__main__":
    main()
