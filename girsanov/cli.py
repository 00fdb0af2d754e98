"""The command line. ``--help`` imports nothing heavy; each command imports what it needs when it runs."""

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from girsanov.errors import GirsanovError
from girsanov.preference_options import preference_commands

EXAMPLES = """\
examples:
  girsanov run digits                                  tune digits to bold strokes, then read the report
  girsanov run digits --out runs/nft --method nft      the same with another method
  girsanov run digits reward=my_file.py:fn train.lr=1e-4
  girsanov run digits --out runs/a --resume            go on after Ctrl-C or a crash
  girsanov compare runs/a runs/nft
"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Prints the sentence and exits with 2."""
        self.exit(2, f"error: {message}; `{self.prog} --help` shows what there is\n")


def unknown_words(words: Sequence[str], known: Mapping[str, object]) -> str:
    """What to say of words that no argument takes, with the nearest option."""
    options = [f"--{name.replace('_', '-')}" for name in known if name not in ("command", "version")]
    near = difflib.get_close_matches(words[0].partition("=")[0], options, n=1)
    return f"{' '.join(words)} is no option" + (f", did you mean {near[0]}?" if near else "")


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    top = Parser(
        prog="girsanov",
        description="Fine-tunes diffusion and flow models to rewards and preferences.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=argparse.RawTextHelpFormatter
        )

    run = add("run", "tune a model as a recipe says, and write a report")
    run.add_argument("recipe", metavar="RECIPE", help="name of a recipe; `girsanov list` shows them")
    run.add_argument(
        "settings", nargs="*", metavar="key.sub=value", help="any setting, as in train.lr=1e-4 method.last=5"
    )
    run.add_argument("--out", metavar="DIR", help="the run folder (default: runs/RECIPE-METHOD)")
    run.add_argument("--method", metavar="NAME", help="how to tune; `girsanov list` shows the methods")
    run.add_argument("--model", metavar="NAME", help="folder or hub name of the pipeline, for recipes that tune one")
    run.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    run.add_argument("--seeds", metavar="N", type=int, help="repeat the run with N seeds and report intervals")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out")
    run.add_argument("--lora", action="store_true", help="train adapters (rank 8) instead of all weights")
    run.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: a GPU if there is one)")
    run.add_argument(
        "--dry-run", action="store_true", help="check model, prompts, reward, memory and disk; nothing is written"
    )

    sample = add("sample", "draw samples from a run")
    sample.add_argument("run", metavar="RUN", help="the folder of a run")
    sample.add_argument("-n", type=int, default=64, metavar="N", help="how many (default 64)")
    sample.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="0 is the pretrained model, 1 the tuned one (default 1)",
    )
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    sample.add_argument("--checkpoint", default="last", help="last, best, or an iteration (default last)")
    sample.add_argument("--out", metavar="DIR", help="where they go (default: RUN/samples/seed-S)")
    sample.add_argument("--device", metavar="NAME", help="cpu or cuda")

    deployment_options(sample)

    evaluate = add("evaluate", "evaluate a run, or a folder of pictures")
    evaluate.add_argument("path", metavar="RUN_OR_FOLDER", help="the folder of a run, or one of pictures")
    evaluate.add_argument("--recipe", default="digits", help="whose judge looks at pictures (default digits)")
    evaluate.add_argument("--checkpoint", default="last", help="last, best, or an iteration (default last)")
    evaluate.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    evaluate.add_argument("--device", metavar="NAME", help="cpu or cuda")
    deployment_options(evaluate)

    folder_commands(add)
    more_commands(add)
    data_command(add("data", "check, describe or convert preference data"))
    return top


def deployment_options(command: argparse.ArgumentParser) -> None:
    """Sampling with another noise than the policy was trained with."""
    command.add_argument(
        "--eta-deploy",
        type=float,
        metavar="E",
        help="sample with this noise (0: the ODE), and scale what tuning\nlearned to fit (docs/deployment.md)",
    )
    command.add_argument(
        "--eta-train", type=float, metavar="E", help="the noise of training (default: that of the run's sampler)"
    )
    command.add_argument("--one-pass", action="store_true", help="scale the weights: faster, and approximate")


def folder_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """What is done with runs that are there."""
    merge = add("merge", "write the tuned pipeline of a run as an ordinary one, for diffusers")
    merge.add_argument("run", metavar="RUN", help="the folder of a run on a pipeline")
    merge.add_argument("--out", metavar="FOLDER", required=True, help="where the whole pipeline goes")
    merge.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="0 is the pretrained one, 1 the tuned one (default 1)"
    )
    merge.add_argument("--checkpoint", default="last", help="last, best, or an iteration (default last)")
    merge.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of its weights (default: the run's precision)"
    )

    compare = add("compare", "put runs side by side, as a table and a page")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or of runs repeated with --seeds")
    compare.add_argument("--out", metavar="FILE", default="comparison.html", help="the page (default comparison.html)")
    compare.add_argument("--json", metavar="FILE", help="write the numbers there as well")

    show = add("list", "list recipes, methods, samplers, rewards, and the runs in a folder")
    show.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="where runs are (default runs)")

    cite = add("cite", "print the BibTeX entry of a method's paper")
    cite.add_argument("method", metavar="METHOD", help="name of a method")


def more_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that are not about one run."""
    bench = add("bench", "check every method against problems whose answer is known")
    bench.add_argument(
        "--json", metavar="FILE", help="write the numbers there; rows of an existing\nfile stay or are replaced"
    )
    bench.add_argument("--plot", metavar="FILE", help="write the reward-KL plot there (PNG)")
    bench.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    bench.add_argument("--problems", nargs="+", metavar="NAME", help="only these: gaussian, gaussian-linear, mixture")
    bench.add_argument("--seeds", type=int, metavar="N", help="how many seeds")
    bench.add_argument("--fast", action="store_true", help="a coarse check in a minute")

    study = add("study", "run a study: a question that takes several runs")
    study.add_argument(
        "study",
        metavar="NAME",
        help="stochasticity (the training sampler's noise, and deployment),\n"
        "values, discretisation (score as action), timestep (agents and PPO as dt shrinks)",
    )
    study.add_argument("--out", metavar="DIR", help="where it goes (default runs/study-NAME)")
    study.add_argument("--parts", nargs="+", metavar="PART", help="only these; a wrong name is answered with all")
    study.add_argument("--fast", action="store_true", help="a few iterations and samples, to see that it runs")
    study.add_argument("--json", metavar="FILE", help="write the numbers there as well")

    preference_commands(add)

    serve = add("serve-reward", "score samples for other processes over HTTP (GIRSANOV_REWARD_TOKEN is the secret)")
    serve.add_argument("reward", metavar="REWARD", help="my_file.py:fn, or the name of a built-in reward")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    serve.add_argument("--max-mb", type=int, default=256, metavar="MB", help="largest request (default 256)")


def data_command(data: argparse.ArgumentParser) -> None:
    """``girsanov data``: what to do, to which file."""
    data.add_argument("action", choices=("check", "stats", "convert"), help="look for mistakes, count, or rewrite")
    data.add_argument("path", metavar="PATH", help="a file, a folder of files, or a data set saved by `datasets`")
    data.add_argument("--out", metavar="PATH", help="convert: NAME.jsonl, NAME.parquet, or a folder for `datasets`")
    data.add_argument("--layout", metavar="NAME", help="of the rows (default: found by the columns)")
    data.add_argument("--skip", action="store_true", help="convert: leave bad rows out; else nothing is written")
    data.add_argument("--unique", action="store_true", help="convert: leave repeated rows out")
    data.add_argument("--drop-flipped", action="store_true", help="convert: leave out what contradicts an earlier row")
    data.add_argument("--no-images", action="store_true", help="do not open the pictures")
    data.add_argument("--all", action="store_true", help="check: print every finding, not only the first")
    data.add_argument("--json", metavar="FILE", help="check, stats: write the findings or numbers there as well")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code. 2 is a mistake of the user, 130 an interrupt, 1 anything unexpected."""
    top = parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen, rest = top.parse_known_args(given)  # settings may stand between options
    if rest and (chosen.command != "run" or any(word.startswith("-") for word in rest)):
        top.error(unknown_words(rest, vars(chosen)))
    if rest:
        chosen.settings += rest
    if chosen.version:
        from girsanov import __version__

        print(__version__)
        return 0
    if chosen.command is None:
        top.print_help()
        return 0
    from girsanov import commands

    action: Callable[..., int] = getattr(commands, f"{chosen.command.replace('-', '_')}_command")
    try:
        return action(chosen, f"girsanov {shlex.join(given)}")
    except GirsanovError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        return commands.report_unexpected(error, chosen)


if __name__ == "__main__":
    sys.exit(main())
