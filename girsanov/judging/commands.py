"""``girsanov train-reward``, ``judge`` and ``rank``: each imports what it needs when it runs."""

import argparse
from pathlib import Path


def train_reward_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov train-reward``."""
    from girsanov.reward_models.commands import train_reward

    print(train_reward(chosen, command))
    return 0


def judge_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov judge``."""
    from girsanov.judging.report import judge_files

    print(judge_files(chosen))
    return 0


def rank_command(chosen: argparse.Namespace, command: str) -> int:
    """``girsanov rank``."""
    from girsanov.judging.report import rank_files

    json_path = Path(chosen.json) if chosen.json else None
    print(rank_files([Path(p) for p in chosen.verdicts], chosen.baseline, chosen.prior, json_path))
    return 0
