"""The folder of a run: everything it leaves behind.

==================  ==============================================================================
run.json            what this folder is: schema version, recipe, the command that started it
about.json          what reports and comparisons know of the recipe: description, facts, names of the metrics
config.yaml         the resolved configuration; loading it gives the same run
versions.json       Python, packages, machine
metrics.jsonl       one line an iteration; evaluations have ``"kind": "evaluation"``, alarms ``"kind": "alarm"``
checkpoints/        see checkpoint.py
samples/            pictures of samples before and after, and during the run (0000020.png)
drawings.json       what was learned beside the exact answer, as charts, for recipes that know it
README.md           the model card
report.html         the report, one file
traceback.txt       of an unexpected error
==================  ==============================================================================
"""

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from girsanov.disk import full_disk, write_text
from girsanov.errors import GirsanovError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing locks the folder
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
PACKAGES = ("girsanov", "torch", "numpy", "accelerate", "diffusers", "transformers", "peft", "scikit-learn")


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, recipe: str, command: str, config: str) -> "RunFolder":
        """A new folder with its first files. Raises GirsanovError if the folder is in use."""
        if path.is_file():
            raise GirsanovError(f"{path} is a file: give a folder with --out")
        if (path / "run.json").exists():
            raise GirsanovError(f"{path} already holds a run: continue it with --resume, or give another --out")
        if path.is_dir() and any(path.iterdir()):
            raise GirsanovError(f"{path} is not empty and holds no run: give another --out")
        folder = cls(path)
        with full_disk(str(path)):
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            folder.samples.mkdir(exist_ok=True)
        write_text(path / "config.yaml", config)
        write_text(path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        facts = {"format": "girsanov-run", "schema": SCHEMA, "recipe": recipe, "command": command, "id": uuid4().hex}
        write_text(path / "run.json", json.dumps(facts, indent=2) + "\n")
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run. Raises GirsanovError if there is none, or one of a newer version."""
        folder = cls(path)
        if not (path / "run.json").is_file():
            raise GirsanovError(f"{path} holds no run: give the folder of a run (girsanov list shows them)")
        schema = folder.facts.get("schema")
        if folder.facts.get("format") != "girsanov-run" or not isinstance(schema, int):
            raise GirsanovError(f"{path}/run.json is not that of a run: give another folder")
        if schema > SCHEMA:
            raise GirsanovError(f"{path} was written by a newer girsanov (schema {schema}): upgrade the package")
        return folder

    def discard(self) -> None:
        """Removes a folder in which nothing has been trained yet; of several processes, the one that has made it."""
        if int(os.environ.get("RANK", "0")) != 0:
            return
        if not self.metrics.exists() and not any(self.checkpoints.iterdir()):
            shutil.rmtree(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder at the same time; a killed process lets go by itself.

        Process 0 of several holds it. Raises GirsanovError if another one does.
        """
        if int(os.environ.get("RANK", "0")) != 0 or fcntl is None:
            yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GirsanovError(
                    f"another process is training in {self.path}: wait for it or stop it, or give another --out"
                ) from None
            yield

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """The folder of pictures."""
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        """The file of metrics."""
        return self.path / "metrics.jsonl"

    @property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says."""
        try:
            facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = {}
        return facts if isinstance(facts, dict) else {}

    def log(self, iteration: int, values: Mapping[str, Any], kind: str | None = None) -> None:
        """Adds a line to the metrics. Raises GirsanovError on a full disk."""
        record = {"iteration": iteration, **({"kind": kind} if kind else {}), **values}
        line = json.dumps(clean(record), separators=(", ", ": ")) + "\n"
        with full_disk(f"the line of iteration {iteration} in {self.metrics.name}"):
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(line)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of a kind: None (iterations), "evaluation" or "alarm"."""
        return [r for r in self._lines() if r.get("kind") == kind]

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run
            if isinstance(record, dict) and "iteration" in record:
                yield record

    def truncate(self, iteration: int) -> None:
        """Drops the lines after an iteration and a last line that was cut short; the others keep their bytes."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and record["iteration"] <= iteration:
                kept.append(line)
        write_text(self.metrics, "".join(kept))


def clean(value: Any) -> Any:
    """The value with numbers that JSON lacks (NaN, infinities) as null."""
    if isinstance(value, Mapping):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, Any]:
    """Python, the packages that matter, and the machine."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "packages": found,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
