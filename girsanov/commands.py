"""What each command of the command line does."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from girsanov.config import nest, parse_overrides, read_yaml
from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder
from girsanov.judging.commands import judge_command as judge_command
from girsanov.judging.commands import rank_command as rank_command
from girsanov.judging.commands import train_reward_command as train_reward_command
from girsanov.launch import INTERRUPTED, Launch, device_of, execute, load_run
from girsanov.launchers import asked
from girsanov.merging import merge_command as merge_command
from girsanov.recipes import RECIPES, get_recipe
from girsanov.train import Run

LORA_RANK = 8


def layers_of(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The user's settings in rising rank: file, flags, ``key=value``, and what a launcher asks for."""
    layers = [read_yaml(Path(chosen.config))] if chosen.config else []
    if chosen.method:
        layers.append({"method": chosen.method})
    if chosen.lora:
        layers.append({"lora": LORA_RANK})
    if chosen.model:
        layers.append({"model": chosen.model})
    layers.append(parse_overrides(chosen.settings))
    return [*layers, *asked(os.environ, layers)]


def run_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov run``."""
    device = device_of(chosen.device)
    if chosen.resume and not chosen.out:
        raise GirsanovError("--resume needs the folder of the run: give it with --out")
    layers = layers_of(chosen)
    if chosen.resume and chosen.seeds is None:
        return resume_run(chosen, device)
    out = Path(chosen.out) if chosen.out else default_folder(chosen.recipe, layers)
    if chosen.dry_run:
        from girsanov.dry_run import dry_run

        return dry_run(chosen.recipe, layers, out, device)
    if chosen.seeds is not None:
        return run_seeds(chosen, layers, out, command, device)
    launch = Launch.new(chosen.recipe, layers, out, command)
    return told(execute(launch, device=device), launch.folder)


def resume_run(chosen: argparse.Namespace, device: Any) -> int:
    """Goes on with the run in ``--out``; settings given now replace those it began with."""
    launch = Launch.existing(Path(chosen.out), layers_of(chosen))
    if launch.recipe.name != chosen.recipe:
        raise GirsanovError(
            f"{chosen.out} is a run of {launch.recipe.name}: girsanov run {launch.recipe.name} --resume"
        )
    return told(execute(launch, device=device, resume=True), launch.folder)


def default_folder(recipe: str, layers: list[dict[str, Any]]) -> Path:
    """``runs/RECIPE-METHOD``, with a number if it is taken."""
    from girsanov.launch import configure

    name = f"{recipe}-{configure(get_recipe(recipe), layers).method.kind}"
    number, path = 1, Path("runs") / name
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def told(run: Run, folder: RunFolder) -> int:
    """Says how a run ended and where its report is; the exit code."""
    if run.reduce.rank != 0:
        return 0
    if run.stopped == INTERRUPTED:
        print(f"stopped after iteration {run.done} of {run.config.iterations}, everything is saved; go on with")
        print(f"  girsanov run {folder.facts['recipe']} --out {folder.path} --resume")
        return 130
    if run.stopped is not None:
        print(f"ended after iteration {run.done} by {run.stopped}")
    print(f"report: {folder.path / 'report.html'}")
    return 0


def run_seeds(chosen: argparse.Namespace, layers: list[dict[str, Any]], out: Path, command: str, device: Any) -> int:
    """Repeats a run with N seeds, in folders ``seed-0`` ... of one folder, and compares them; finished ones stay."""
    from girsanov.launch import configure
    from girsanov.report import write_comparison

    if chosen.seeds < 1:
        raise GirsanovError(f"--seeds {chosen.seeds} makes no run: give 1 or more")
    first = configure(get_recipe(chosen.recipe), layers).train.seed
    if out.exists() and any(out.iterdir()) and not chosen.resume:
        raise GirsanovError(f"{out} is not empty: go on with the runs in it with --resume, or give another --out")
    for seed in range(first, first + chosen.seeds):
        path = out / f"seed-{seed}"
        going_on = (path / "run.json").is_file()
        own = [*layers, nest("train.seed", seed)]
        launch = Launch.existing(path, layers) if going_on else Launch.new(chosen.recipe, own, path, command)
        if going_on and launch.finished:
            continue
        print(f"seed {seed}")
        run = execute(launch, device=device, resume=going_on)
        if run.stopped == INTERRUPTED:
            print(f"stopped at seed {seed}, everything is saved; go on with")
            print(f"  {command.removesuffix(' --resume')} --resume")
            return 130
    group = {"format": "girsanov-group", "schema": 1, "recipe": chosen.recipe, "command": command}
    write_text(out / "group.json", json.dumps(group, indent=2) + "\n")
    print(write_comparison([out], out / "report.html"))
    print(f"report: {out / 'report.html'}")
    return 0


def load_for_sampling(chosen: argparse.Namespace, path: Path, device: Any) -> tuple[Launch, Any]:
    """A run and, with ``--eta-deploy``, its tuned model scaled for that noise and its evaluations sampled with it."""
    if chosen.eta_deploy is None:
        if chosen.eta_train is not None or chosen.one_pass:
            raise GirsanovError("--eta-train and --one-pass say how to scale for another sampler: add --eta-deploy")
        return load_run(path, device, chosen.checkpoint)
    from girsanov.deployment import Redeployed, sampled_at

    launch, parts = load_run(path, device, chosen.checkpoint, lambda config: sampled_at(config, chosen.eta_deploy))
    parts.run.method = Redeployed.of(parts.run.method, chosen.eta_deploy, chosen.eta_train, not chosen.one_pass)
    return launch, parts


def sample_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov sample``."""
    import numpy as np

    if chosen.n < 1:
        raise GirsanovError(f"-n {chosen.n} draws nothing: give 1 or more")
    launch, parts = load_for_sampling(chosen, Path(chosen.run), device_of(chosen.device))
    name = f"seed-{chosen.seed}" + ("" if chosen.eta_deploy is None else f"-eta-{chosen.eta_deploy:g}")
    out = Path(chosen.out) if chosen.out else launch.folder.samples / name
    out.mkdir(parents=True, exist_ok=True)
    samples = parts.sample(parts.run.model(chosen.strength), chosen.n, chosen.seed)
    if parts.write is None:
        np.save(out / "samples.npy", samples.x.cpu().numpy())
    else:
        parts.write(samples, out)
    (out / "grid.png").write_bytes(parts.draw(samples))
    print(f"{chosen.n} samples in {out}")
    return 0


def evaluate_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov evaluate``."""
    path, device = Path(chosen.path), device_of(chosen.device)
    if not path.is_dir():
        raise GirsanovError(f"there is no folder {path}: give the folder of a run, or one of pictures")
    if (path / "run.json").is_file():
        _, parts = load_for_sampling(chosen, path, device)
        values = parts.evaluate(parts.run)
        labels = {m.key: m.label for m in parts.metrics}
    else:
        values, labels = get_recipe(chosen.recipe).evaluate_folder(path, device), {}
    for key, value in values.items():
        if not key.endswith("_se"):
            error = values.get(f"{key}_se")
            print(f"{labels.get(key, key):<36} {value:10.4f}" + (f"  ± {1.96 * error:.4f}" if error else ""))
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(values, indent=2) + "\n")
    return 0


def compare_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov compare``."""
    from girsanov.report import write_comparison

    json_path = Path(chosen.json) if chosen.json else None
    print(write_comparison([Path(p) for p in chosen.runs], Path(chosen.out), json_path))
    print(f"page: {chosen.out}")
    return 0


def list_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov list``."""
    from girsanov.control.agents import AGENTS
    from girsanov.control.environments import ENVIRONMENTS
    from girsanov.language.named import LANGUAGE_METHODS
    from girsanov.language.rewards import TEXT_REWARDS
    from girsanov.methods import METHODS
    from girsanov.rewards import REWARDS
    from girsanov.samplers import SAMPLERS

    print("recipes")
    for name, address in RECIPES.items():
        if importlib.util.find_spec(address.partition(":")[0]) is not None:
            print(f"  {name:<14} {get_recipe(name).summary}")
    families: dict[str, Iterable[str]] = {"methods": METHODS, "samplers": SAMPLERS, "rewards": REWARDS}
    families |= {"agents (of the recipes lq and pairs)": AGENTS, "environments": ENVIRONMENTS}
    families |= {
        "methods of language models (of the recipes words and language)": LANGUAGE_METHODS,
        "rewards of texts": TEXT_REWARDS,
    }
    for title, names in families.items():
        print(f"{title}\n  {', '.join(names)}")
    runs = sorted(p.parent for p in Path(chosen.folder).glob("**/run.json"))
    print(f"runs in {chosen.folder}")
    for path in runs:
        folder = RunFolder(path)
        records = folder.records()
        done = records[-1]["iteration"] if records else 0
        print(f"  {str(path):<32} {folder.facts.get('recipe', '?')}, {done} iterations")
    if not runs:
        print("  none")
    return 0


def cite_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov cite``."""
    from girsanov.citations import cite

    print(cite(chosen.method))
    return 0


def bench_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov bench``."""
    from girsanov.bench import run_bench

    parts = {"methods": chosen.methods, "problems": chosen.problems, "seeds": [chosen.seeds] if chosen.seeds else None}
    told = [
        "girsanov bench",
        *(f"--{k} {' '.join(map(str, v))}" for k, v in parts.items() if v),
        *["--fast"] * chosen.fast,
    ]
    options = {"methods": chosen.methods, "problems": chosen.problems, "seeds": chosen.seeds, "fast": chosen.fast}
    run_bench(chosen.json, chosen.plot, **options, command=" ".join(told))
    return 0


def study_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov study``."""
    from girsanov.config.parts import load
    from girsanov.settings import unknown
    from girsanov.studies import STUDIES

    if chosen.study not in STUDIES:
        raise GirsanovError(f"{chosen.study!r} {unknown(chosen.study, STUDIES, 'study')}")
    out = Path(chosen.out) if chosen.out else Path("runs") / f"study-{chosen.study}"
    chosen_parts = f" --parts {' '.join(chosen.parts)}" if chosen.parts else ""
    told_as = f"girsanov study {chosen.study}{chosen_parts}{' --fast' if chosen.fast else ''}"
    page = load(STUDIES[chosen.study])(out, told_as, chosen.parts, chosen.fast)
    if chosen.json:
        write_text(Path(chosen.json), (out / "study.json").read_text(encoding="utf-8"))
    print(f"report: {page}")
    return 0


def data_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov data``."""
    from girsanov.data.commands import ACTIONS

    return ACTIONS[chosen.action](chosen)


def serve_reward_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov serve-reward``."""
    from girsanov.rewards import load_reward
    from girsanov.rewards.server import serve_reward

    serve_reward(load_reward(chosen.reward), chosen.host, chosen.port, chosen.max_mb)
    return 0


def report_unexpected(error: Exception, chosen: argparse.Namespace) -> int:
    """Writes the traceback of an unexpected error to a file, names it in one line; the exit code 1."""
    folder = getattr(error, "girsanov_folder", None)
    text = "".join(traceback.format_exception(error))
    try:
        path = Path(folder or tempfile.mkdtemp(prefix="girsanov-")) / "traceback.txt"
        write_text(path, text)
    except (OSError, GirsanovError):
        print(text, file=sys.stderr)
        return 1
    print(f"error: unexpected {type(error).__name__}; the traceback is in {path}", file=sys.stderr)
    return 1
