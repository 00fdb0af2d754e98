"""Importing the package stays light: none of the extras is imported with it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("diffusers", "transformers", "peft", "gymnasium", "stable_baselines3", "tensorboard", "wandb", "torchvision")


@pytest.mark.skipif(not (ROOT / "girsanov" / "__init__.py").is_file(), reason="the package folder is empty")
def test_importing_the_package_imports_no_extra() -> None:
    code = f"import sys, girsanov; print(*sorted(set({EXTRAS!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], "import these inside the function that needs them"


def test_a_public_name_is_never_hidden_by_the_module_it_comes_from() -> None:
    code = (
        "import girsanov.rollout, girsanov, types; "
        "print([n for n in girsanov.__all__ if isinstance(getattr(girsanov, n), types.ModuleType)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
