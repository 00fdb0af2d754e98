"""A run from beginning to end: folder, parts, training with its callbacks, Ctrl-C, report.

The first Ctrl-C (or SIGTERM) lets the iteration finish, saves and says how to go on; the second one stops at once.
"""

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from girsanov.accelerators import accelerator_of
from girsanov.building import fitting
from girsanov.checkpoint import checkpoints, load_weights, verify
from girsanov.compiling import compile_network
from girsanov.config import describe, dump_config, load_config, merge, read_yaml
from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.folder import RunFolder, clean
from girsanov.presets import settings_of
from girsanov.recipes import get_recipe
from girsanov.recipes.base import Assembled, Recipe, RunConfig
from girsanov.resume import restore
from girsanov.train import Run, train
from girsanov.watch import callbacks_of

SAMPLE_SEED = 20_000_003


@dataclass(frozen=True)
class Launch:
    """A run that is ready to go: its recipe, configuration and folder."""

    recipe: Recipe
    config: RunConfig
    folder: RunFolder

    @classmethod
    def new(cls, recipe: str, layers: Sequence[Mapping[str, Any]], out: Path, command: str) -> "Launch":
        """A new run in a new folder. Raises GirsanovError on a mistake in the configuration or a folder in use."""
        found = get_recipe(recipe)
        config = configure(found, layers)
        if int(os.environ.get("RANK", "0")) != 0:
            return cls(found, config, RunFolder(out))  # process 0 makes it
        return cls(found, config, RunFolder.create(out, recipe, command, dump_config(config)))

    @classmethod
    def existing(cls, path: Path, layers: Sequence[Mapping[str, Any]] = ()) -> "Launch":
        """The run of a folder, with new settings on top of its own."""
        folder = RunFolder.open(path)
        recipe = get_recipe(str(folder.facts.get("recipe")))
        config = load_config(recipe.config, read_yaml(path / "config.yaml"), *layers)
        if any(layers) and int(os.environ.get("RANK", "0")) == 0:
            write_text(path / "config.yaml", dump_config(config))
        return cls(recipe, config, folder)

    @property
    def finished(self) -> bool:
        """Whether the run has done all its iterations and has a report."""
        records = self.folder.records()
        done = records[-1]["iteration"] if records else 0
        return done >= self.config.train.iterations and (self.folder.path / "report.html").is_file()


def configure(recipe: Recipe, layers: Sequence[Mapping[str, Any]]) -> RunConfig:
    """The configuration: the recipe's settings for the method that the layers choose, what was published for them, and
    the layers themselves."""
    wanted: dict[str, Any] = {}
    for layer in layers:
        wanted = merge(wanted, layer)
    default = describe(recipe.config())["method"]["kind"]
    chosen = wanted.get("method", default)
    kind = (
        chosen if isinstance(chosen, str) else chosen.get("kind", default) if isinstance(chosen, Mapping) else default
    )
    usual = [recipe.defaults(str(kind)), settings_of(recipe.name, str(kind)), recipe.complete(wanted)]
    return load_config(recipe.config, {"method": {"kind": kind}}, *usual, wanted)


def device_of(name: str | None) -> torch.device:
    """The device of a name; by default a GPU if there is one. Each process of a launch gets a GPU of its own."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda" and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else every process keeps memory on the first GPU
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise GirsanovError(
            f"there is no device {name!r} here: use --device cpu, cuda where there is a GPU, or mps on a Mac"
        ) from None
    return device


def limit_threads(recipe: Recipe) -> None:
    """Sets the processor threads that suit the recipe, unless the environment says how many."""
    if recipe.threads is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(recipe.threads)


def execute(launch: Launch, *, device: torch.device, resume: bool = False, quiet: bool = False) -> Run:
    """Trains a run to its end, or to where it is interrupted, and writes its report.

    Raises whatever training raises; an unexpected error carries the folder, so that its traceback can go there.
    """
    try:
        with launch.folder.locked():
            return train_and_report(launch, device, resume, quiet)
    except Exception as error:
        error.girsanov_folder = launch.folder.path  # type: ignore[attr-defined]
        raise


def train_and_report(launch: Launch, device: torch.device, resume: bool, quiet: bool) -> Run:
    """Builds, restores, trains and reports."""
    try:
        accelerator = accelerator_of(launch.recipe, launch.config, device)
        limit_threads(launch.recipe)
        with fitting(launch.recipe, launch.config, device):
            parts = launch.recipe.build(launch.config, device, accelerator)
    except GirsanovError:
        if not resume:
            launch.folder.discard()  # a mistake in the settings: the same command, mended, may use the folder
        raise
    if launch.config.compile:
        compile_network(parts.run.policy.net, device)
    if resume:
        restore(parts.run, launch.folder.checkpoints, tqdm.write)
    if parts.run.reduce.rank == 0:
        describe_run(launch, parts)
    with interruptible(parts.run):
        train(parts.run, callbacks_of(launch.config, launch.folder, parts, quiet))
    finish(launch, parts)
    return parts.run


def finish(launch: Launch, parts: Assembled) -> None:
    """Pictures, model card and report of the run as it stands; process 0 writes what all have drawn and gathered."""
    from girsanov.report import write_card, write_report

    first = parts.run.reduce.rank == 0
    draw_samples(launch.folder, parts, first)
    line = None if parts.export is None else parts.export(parts.run, launch.folder.path / "weights")
    if not first:
        return
    if line is not None:
        about = json.loads((launch.folder.path / "about.json").read_text(encoding="utf-8"))
        text = json.dumps({**about, "load": line}, indent=2, ensure_ascii=False)
        write_text(launch.folder.path / "about.json", text + "\n")
    if parts.drawings is not None:
        shown = [dataclasses.asdict(drawing) for drawing in parts.drawings(parts.run)]
        write_text(launch.folder.path / "drawings.json", json.dumps(clean({"drawings": shown})) + "\n")
    write_card(launch.folder)
    write_report(launch.folder)


def describe_run(launch: Launch, parts: Assembled) -> None:
    """``about.json``: what reports and comparisons need to know of the recipe."""
    about = {
        "description": parts.description,
        "facts": dict(parts.facts),
        "method": launch.config.method.kind,
        "iterations": launch.config.train.iterations,
        "seed": launch.config.train.seed,
        "metrics": [describe(m) for m in parts.metrics],
        "frontier": [list(point) for point in parts.frontier],
        "captions": list(parts.captions),
    }
    write_text(launch.folder.path / "about.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def draw_samples(folder: RunFolder, parts: Assembled, write: bool) -> None:
    """Before and after, from the same noise. All processes draw: a network that is split runs on all of them."""
    for name, model in (("before", parts.run.reference()), ("after", parts.run.model())):
        samples = parts.sample(model, parts.pictured, SAMPLE_SEED)
        if not write:
            continue
        (folder.samples / f"{name}.png").write_bytes(parts.draw(samples))
        if samples.texts:
            text = json.dumps({"texts": samples.texts}, indent=2, ensure_ascii=False)
            write_text(folder.samples / f"{name}.json", text + "\n")


@contextmanager
def interruptible(run: Run) -> Iterator[None]:
    """The first interrupt ends the run after its iteration, the second at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if run.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        run.stop(INTERRUPTED)
        tqdm.write("stopping after this iteration; once more to stop at once")

    main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


INTERRUPTED = "interrupted"


def load_run(
    path: Path, device: torch.device, which: str = "last", change: Callable[[Any], Any] = lambda config: config
) -> tuple[Launch, Assembled]:
    """A run with its trained weights: the "last" checkpoint, the "best" one, or that of an iteration.

    ``change`` is what becomes of its configuration, here and not in the folder. Raises GirsanovError if the folder
    holds no whole checkpoint.
    """
    launch = Launch.existing(path)
    limit_threads(launch.recipe)
    with fitting(launch.recipe, launch.config, device):
        parts = launch.recipe.build(change(launch.config), device)
    load_weights(parts.run, choose_checkpoint(launch.folder, which))
    return launch, parts


def choose_checkpoint(folder: RunFolder, which: str) -> Path:
    """The folder of the "last" whole checkpoint, of the "best" one, or of an iteration's."""
    paths = checkpoints(folder.checkpoints)
    if which == "last":
        for path in reversed(paths):
            try:
                verify(path)
            except GirsanovError:
                continue
            return path
        raise GirsanovError(f"{folder.path} has no whole checkpoint: train it again")
    wanted = best_iteration(folder) if which == "best" else int(which)
    for path in paths:
        if int(path.name) == wanted:
            return path
    kept = ", ".join(str(int(p.name)) for p in paths) or "none"
    raise GirsanovError(f"{folder.path} keeps no checkpoint of iteration {wanted}: it has {kept}")


def best_iteration(folder: RunFolder) -> int:
    """The iteration whose evaluation had the best score, as the newest checkpoint remembers it."""
    state = torch.load(choose_checkpoint(folder, "last") / "state.pt", map_location="cpu", weights_only=True)
    if "best" not in state["callbacks"]:
        raise GirsanovError(f"{folder.path} has not been evaluated during training: ask for the last checkpoint")
    return int(state["callbacks"]["best"]["iteration"])
