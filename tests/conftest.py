"""What every test shares: one thread, no network, the default dtype left as it was found."""

import os
import signal

# Before torch, transformers or matplotlib are imported: they read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("WANDB_MODE", "offline")

from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples on every machine and every run: a red test is red for everyone.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Restore torch's default dtype, so that a float64 test cannot change the precision of the next one."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as in a terminal, here and in processes started from here: a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
