"""The options of ``girsanov train-reward``, ``judge`` and ``rank``; nothing heavy is imported here."""

import argparse
from collections.abc import Callable


def preference_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Reward models, judges and rankings."""
    train = add("train-reward", "train a reward model on preferences, and measure it on others")
    what_options(train)
    network_options(train)
    training_options(train)
    judge_options(add("judge", "let a judge compare the answers of models, pair by pair"))

    ranked = add("rank", "rank models by verdicts on pairs: Bradley-Terry, Elo, win rates")
    ranked.add_argument("verdicts", nargs="+", metavar="FILE", help='rows {"a": ..., "b": ..., "value": 1, 0.5 or 0}')
    ranked.add_argument("--baseline", metavar="MODEL", help="win rates over this model (default: the last one)")
    ranked.add_argument("--prior", type=float, default=0.0, metavar="W", help="pull ratings together (default 0)")
    ranked.add_argument("--json", metavar="FILE", help="write the numbers there as well")


def what_options(train: argparse.ArgumentParser) -> None:
    """Data and loss."""
    train.add_argument("data", metavar="DATA", help="a file that `girsanov data` reads (texts or pictures), or: digits")
    train.add_argument("--out", metavar="DIR", required=True, help="the folder of the reward model")
    train.add_argument(
        "--loss",
        default="bradley-terry",
        metavar="NAME[:X]",
        help="bradley-terry, margin:A, fixed-margin:M, noisy:E, plackett-luce, choice\n"
        "or regression (default bradley-terry)",
    )
    train.add_argument(
        "--held-out", type=float, default=0.2, metavar="S", help="share of prompts to test on (default 0.2)"
    )
    train.add_argument("--limit", type=int, metavar="N", help="use so many comparisons")
    digits = train.add_argument_group("digits, and who ranks them")
    digits.add_argument("--annotator", default="bold", metavar="REWARD", help="whose taste it is (default bold)")
    digits.add_argument("--temperature", type=float, default=0.5, metavar="T", help="noise of the ranking (0.5)")
    digits.add_argument("--items", type=int, default=2, metavar="K", help="how many are ranked at once (default 2)")


def network_options(train: argparse.ArgumentParser) -> None:
    """What reads the items."""
    net = train.add_argument_group(
        "network", "bytes of texts and pixels of pictures are read without --model and --features"
    )
    net.add_argument("--model", metavar="NAME", help="texts: a causal language model, a folder or a name on the hub;\n"
                     "frozen, with a head")  # fmt: skip
    net.add_argument("--lora", type=int, metavar="RANK", help="train adapters of --model too, not only a head")
    net.add_argument(
        "--features", metavar="NAME", help="pictures: a CLIP model, a folder or a name; frozen, with a head"
    )
    net.add_argument("--head", default="linear", metavar="NAME", help="on a frozen model: linear or mlp (linear)")
    net.add_argument(
        "--objectives",
        metavar="NAMES",
        help="on a frozen model: heads that predict these ratings of the\nitems (a,b,c or: all), weighed by a gate",
    )
    net.add_argument("--ratings", metavar="FILE", help="where the rated items are (default: DATA)")
    net.add_argument(
        "--debias", metavar="NAME", help="take verbosity out of the heads: the rating that stands\nfor it, or: length"
    )
    net.add_argument("--members", type=int, default=1, metavar="M", help="networks of the ensemble (default 1)")
    net.add_argument("--length", type=int, metavar="N", help="longest text: 256 bytes, or 1024 tokens of --model")
    net.add_argument("--size", type=int, default=16, metavar="P", help="pixels: side of a picture (default 16)")
    net.add_argument("--dtype", default="float32", metavar="NAME", help="of --model: float32 (default) or bfloat16")


def training_options(train: argparse.ArgumentParser) -> None:
    """The loop."""
    loop = train.add_argument_group("training")
    loop.add_argument("--iterations", type=int, default=300, metavar="N", help="updates (default 300)")
    loop.add_argument("--lr", type=float, metavar="R", help="learning rate (default 0.001; with --lora 0.0002)")
    loop.add_argument("--weight-decay", type=float, default=0.1, metavar="W", help="of AdamW (default 0.1)")
    loop.add_argument("--batch", type=int, default=64, metavar="N", help="comparisons an update (default 64)")
    loop.add_argument("--micro-batch", type=int, metavar="N", help="comparisons a pass: less memory, the same result")
    loop.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")
    loop.add_argument("--seed", type=int, default=0, help="of all randomness (default 0)")


def judge_options(judge: argparse.ArgumentParser) -> None:
    """Who judges what."""
    judge.add_argument("answers", nargs="+", metavar="FILE", help='rows {"prompt": ..., "answer": ...}, a file a model')
    judge.add_argument("--url", metavar="URL", help="OpenAI-compatible server, as in http://127.0.0.1:8000/v1")
    judge.add_argument("--model", metavar="NAME", help="what the server calls the judge")
    judge.add_argument("--criteria", metavar="TEXT", help="how the server's model is to judge, or a file that says it")
    judge.add_argument(
        "--reader", default="brackets", metavar="NAME", help="brackets, json or scores (default brackets)"
    )
    judge.add_argument(
        "--soft", action="store_true", help="probabilities: of the server's first token, or of a reward model"
    )
    judge.add_argument("--score", metavar="SCORE", help="instead: my_file.py:fn, or a reward model's folder")
    judge.add_argument("--cache", metavar="DIR", help="keep the server's replies there")
    judge.add_argument("--out", metavar="FILE", default="verdicts.jsonl", help="the verdicts (default verdicts.jsonl)")
