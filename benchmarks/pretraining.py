"""Pretraining of the digits: seconds, and what the judge, diversity and distance to the training images say of samples.

    python benchmarks/pretraining.py --net mlp --iterations 400 1000 2000 --seed 0

One JSON line a run. ``nearest`` is the mean distance of a sample to its nearest training image, ``real_nearest`` that
of the real images of the judge's half: samples below it are memorised.
"""

import argparse
import json
import time

import torch

from girsanov.evaluation import Judge, nearest, within_class
from girsanov.grids import Grid
from girsanov.nets import NETS
from girsanov.noise import Noise
from girsanov.pretrain import PretrainConfig, make_model, pretrain
from girsanov.processes import RectifiedFlow
from girsanov.recipes.digits_data import CLASSES, SHAPE, balanced_labels, digit_prompts, load_digits
from girsanov.rollout import rollout
from girsanov.samplers import Euler

SAMPLES, STEPS = 1000, 20


def run(name: str, iterations: int, seed: int, judge: Judge) -> dict[str, object]:
    digits = load_digits()
    data = digits.dataset()
    net = NETS[name](shape=SHAPE, classes=CLASSES).build(seed)
    model = make_model(net, RectifiedFlow(), "velocity", data)
    began, cpu = time.perf_counter(), time.process_time()
    model = pretrain(model, data, PretrainConfig(iterations=iterations, seed=seed), progress=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    prompts = digit_prompts(balanced_labels(SAMPLES))
    labels = prompts.cond["label"]
    with torch.no_grad():
        z = Noise(seed, 0, prompts.ids)(torch.empty(SAMPLES, *SHAPE))
        x = rollout(model, Euler(), Grid.uniform(STEPS), z, prompts.cond, keep=()).x0
    verdict, real = judge(x, labels), digits.judge
    return {
        "net": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "iterations": iterations,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "judge": verdict.accuracy,
        "probability": round(verdict.probability, 4),
        "worst_class": float(verdict.class_accuracy.min()),
        "real_judge": round(judge.real_accuracy, 4),
        "diversity": round(float(within_class(x, labels).mean()), 3),
        "real_diversity": round(float(within_class(real.x, real.labels).mean()), 3),
        "nearest": round(float(nearest(x, data.x0).mean()), 3),
        "real_nearest": round(float(nearest(real.x, data.x0).mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["mlp"], choices=list(NETS))
    parser.add_argument("--iterations", nargs="+", type=int, default=[1000])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    digits = load_digits()
    judge = Judge(digits.judge.x, digits.judge.labels, digits.generator.x, digits.generator.labels)
    for name in args.net:
        for iterations in args.iterations:
            for seed in args.seed:
                print(json.dumps(run(name, iterations, seed, judge)), flush=True)


if __name__ == "__main__":
    main()
