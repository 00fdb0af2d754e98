"""Guards on the environment and the pinned versions; each failure is one sentence that says what to do.

Run by ``make check``.  Set ``GIRSANOV_CUDA=1`` on a machine whose torch is meant to be a CUDA build.
"""

import os
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?==[0-9][0-9a-z.]*")
LOCK_FILES = ("uv.lock", "pylock.toml", "poetry.lock", "Pipfile.lock")


def unwanted_packages(names: set[str], cuda: bool) -> list[str]:
    """Installed packages that break the environment: torchvision everywhere, CUDA wheels beside a CPU torch."""
    found = []
    if "torchvision" in names:
        found.append("torchvision is installed: its builds break diffusers beside a CPU torch, so uninstall it.")
    nvidia = sorted(name for name in names if name.startswith("nvidia-"))
    if nvidia and not cuda:
        found.append(
            f"{len(nvidia)} CUDA packages are installed ({nvidia[0]}, ...): point PIP_FIND_LINKS at a CPU wheel of "
            "torch and recreate .venv, or set GIRSANOV_CUDA=1 if this machine has a GPU."
        )
    return found


def bad_pins(text: str) -> list[str]:
    """Lines of a constraints file that are not exactly ``name==version``, names held twice, and a missing torch."""
    lines = text.splitlines()
    found = [
        f"constraints.txt:{number}: {line!r} is not name==version; run `make constraints`."
        for number, line in enumerate(lines, start=1)
        if not PIN.fullmatch(line)
    ]
    names = [line.split("==")[0] for line in lines]
    found += [f"constraints.txt pins {name} twice; keep one." for name in sorted(set(names)) if names.count(name) > 1]
    if "torch" not in names:
        found.append("constraints.txt does not pin torch: an unpinned torch resolves to a CUDA build.")
    return found


def lock_files(root: Path) -> list[str]:
    """Lock files record package index addresses; constraints.txt is the one list of versions."""
    present = [name for name in LOCK_FILES if (root / name).exists()]
    return [f"{name} is present: delete it, constraints.txt is the list of versions." for name in present]


def main() -> int:
    """Print every failure; the exit status is 1 if there is one."""
    installed = {(dist.name or "").lower().replace("_", "-") for dist in distributions()}
    failures = unwanted_packages(installed, cuda=os.environ.get("GIRSANOV_CUDA") == "1")
    failures += bad_pins((ROOT / "constraints.txt").read_text())
    failures += lock_files(ROOT)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
