"""Puts tables made from committed JSON into the documentation, between their markers.

python tools/tables.py            write them
python tools/tables.py --check    fail if a page is not what the JSON says
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


def bench() -> str:
    """All bench tables, from ``docs/data/bench*.json``."""
    rows: list[dict[str, Any]] = []
    for path in sorted((ROOT / "docs/data").glob("bench*.json")):
        rows += json.loads(path.read_text())["rows"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    return "\n\n".join([limits(rows), frontier(rows, problems)])


SHOWN = ("am", "ode-am", "draft", "clipped-pg", "flow-grpo", "ctrl", "nft", "diffusion-dpo", "prdp")


def bench_short() -> str:
    """A method of each family: distance to its limit, and share of the best gain, a column a problem."""
    rows = json.loads((ROOT / "docs/data/bench.json").read_text())["rows"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    found = {(r["method"], r["problem"]): r for r in rows}
    body = []
    for name in SHOWN:
        here = [found.get((name, p), {}) for p in problems]
        values = [cell(key, r.get(key)) for key in ("to_limit", "share") for r in here]
        body.append([f"`{name}`", *values])
    head = [f"{p}: {what}" for what in ("from its limit, %", "of the best gain, %") for p in problems]
    return markdown(["method", *head], body)


def limits(rows: list[dict[str, Any]]) -> str:
    """Methods that have a limit: three errors in percent (means over seeds), order of the limit, Richardson."""
    named = {
        "to_limit": "end to limit %",
        "limit_error": "limit to law %",
        "order": "order",
        "richardson": "Richardson %",
        "to_law": "end to law %",
        "kl": "path KL",
        "reward": "reward",
        "calls": "passes",
        "seconds": "seconds",
    }
    body = [
        [r["problem"], f"`{r['method']}`", str(r["seeds"]), *[cell(name, r[name]) for name in named]]
        for r in rows
        if r["to_limit"] is not None
    ]
    return markdown(["problem", "method", "seeds", *named.values()], body)


def frontier(rows: list[dict[str, Any]], problems: list[str]) -> str:
    """All methods: share of the best possible gain in reward at the same path KL, in percent, a column a problem."""
    found = {(r["method"], r["problem"]): r["share"] for r in rows}
    names = list(dict.fromkeys(r["method"] for r in rows))
    body = [[f"`{name}`", *[cell("share", found.get((name, p))) for p in problems]] for name in names]
    return markdown(["share of the best gain at equal KL, %", *problems], body)


def cell(name: str, value: float | None) -> str:
    """A number as it is shown."""
    if value is None:
        return "-"
    if name in ("to_limit", "limit_error", "richardson", "to_law"):
        return f"{100 * value:.2f}"
    if name == "share":
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if name == "calls" else f"{value:.1f}" if name in ("order", "seconds") else f"{value:.3f}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def study(part: str, section: str, name: str = "stochasticity") -> Callable[[], str]:
    """A table of ``girsanov study NAME``, from ``docs/data/NAME-PART.json``."""

    def make() -> str:
        record = json.loads((ROOT / f"docs/data/{name}-{part}.json").read_text())
        table = record["sections"][section]["tables"][0]
        head, rows = table["columns"], table["rows"]
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", table["note"]])

    return make


def part_of(file: str, section: str, number: int = 0) -> Callable[[], str]:
    """A table of a study, from ``docs/data/FILE.json``."""

    def make() -> str:
        table = json.loads((ROOT / f"docs/data/{file}.json").read_text())["sections"][section]["tables"][number]
        return "\n".join([markdown(table["columns"], table["rows"]), "", table["note"]])

    return make


def bench_rows(*methods: str) -> Callable[[], str]:
    """The bench rows of some methods, with the distance to their limit or their share of the best gain."""

    def make() -> str:
        rows = [r for r in json.loads((ROOT / "docs/data/bench.json").read_text())["rows"] if r["method"] in methods]
        keys = {"to_limit": "end to limit %", "share": "share of the best gain at equal KL, %", "kl": "path KL"}
        body = [[r["problem"], f"`{r['method']}`", str(r["seeds"]), *[cell(k, r[k]) for k in keys]] for r in rows]
        return markdown(["problem", "method", "seeds", *keys.values()], body)

    return make


def paper(*methods: str) -> Callable[[], str]:
    """What a paper's methods did on digits and on the problems with a known answer, from ``digits.json`` and bench."""

    def make() -> str:
        runs = {r["method"]: r for r in json.loads((ROOT / "docs/data/digits.json").read_text())["runs"]}
        rows = [r for r in json.loads((ROOT / "docs/data/bench.json").read_text())["rows"] if r["method"] in methods]
        keys = ["reward", "judge", "diversity", "kl"]
        names = [runs[methods[0]]["metrics"][key]["label"] for key in keys]
        digits = [["before", *[runs[methods[0]]["metrics"][key]["before_text"] for key in keys]]]
        digits += [[f"`{m}`", *[runs[m]["metrics"][key]["after_text"] for key in keys]] for m in methods]
        exact = [
            [r["problem"], f"`{r['method']}`", str(r["seeds"]), *[cell(k, r[k]) for k in ("to_limit", "share", "kl")]]
            for r in rows
        ]
        many = len(runs[methods[0]]["seeds"])
        note = (
            f"Digits after {runs[methods[0]]['iterations']} iterations: means over {many} seeds with 95 % intervals "
            f"(Student's t). The bench gives a KL to methods that have none where that gives them an end point "
            f"(`girsanov/bench/run.py`)."
        )
        head = ["problem", "method", "seeds", "end to limit %", "share of the best gain at equal KL, %", "path KL"]
        return "\n".join([markdown(["digits", *names], digits), "", note, "", markdown(head, exact)])

    return make


PAPERS: dict[str, tuple[str, ...]] = {
    "ddpo": ("ddpo", "ddpo-sf"),
    "dpok": ("dpok",),
    "flow-grpo": ("flow-grpo", "flow-grpo-fast"),
    "dance-grpo": ("dance-grpo",),
    "mix-grpo": ("mix-grpo", "mix-grpo-flash"),
    "tempflow-grpo": ("tempflow-grpo",),
    "branch-grpo": ("branch-grpo",),
    "grpo-guard": ("grpo-guard",),
    "pcpo": ("pcpo",),
    "flow-dppo": ("flow-dppo",),
    "reward-score-matching": ("rsm-hinge",),
    "diffusion-nft": ("nft",),
    "awm": ("awm",),
    "dgpo": ("dgpo",),
    "crd": ("crd",),
    "ram": ("ram",),
    "rvm": ("rvm",),
    "orw-cfm-w2": ("orw-cfm-w2",),
    "fpo": ("fpo",),
}
"""Page under docs/papers -> the methods it shows."""


def control_runs() -> str:
    """Runs of the recipes lq and pairs, from ``docs/data/continuous-rl.json``: each seed before and after."""
    record = json.loads((ROOT / "docs/data/continuous-rl.json").read_text())
    keys = {"slope_error": "slope %", "offset_error": "offset %", "variance_error": "covariance %"}
    body = []
    for run in record["runs"]:
        metrics = run["metrics"]
        for i, seed in enumerate(run["seeds"]):
            errors = [f"{100 * metrics[k]['before'][i]:.1f} -> {100 * metrics[k]['after'][i]:.2f}" for k in keys]
            lost = f"{metrics['judge']['before'][i]:.3f} -> {metrics['judge']['after'][i]:.5f}"
            value = f"{metrics['reward']['after'][i]:.4f}"
            body.append([f"`{run['recipe']}`", f"`{run['method']}`", str(seed), *errors, lost, value])
    return markdown(["recipe", "method", "seed", *keys.values(), "loss of value", "value"], body)


def presets(recipe: str) -> Callable[[], str]:
    """The settings of a recipe for a published model, from ``girsanov/presets``: a row a method and source."""

    def make() -> str:
        places = yaml.safe_load((ROOT / "girsanov/presets/sources.yaml").read_text())
        found = yaml.safe_load((ROOT / f"girsanov/presets/{recipe}.yaml").read_text())
        body = [
            [
                "every method" if m == "*" else f"`{m}`",
                "<br>".join(f"`{k}={flow(v)}`" for k, v in s.items()),
                places[src],
            ]
            for m, parts in found.items()
            for src, s in parts.items()
        ]
        return markdown(["method", "settings", "read in"], body)

    return make


def flow(value: Any) -> str:
    """A value as on the command line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10000).split("\n")[0]


MODELS = ("sd15", "sdxl", "sd3", "flux", "flux2-klein", "sit")

CONTINUOUS = "docs/papers/continuous-rl.md"
PAPER, DEPLOYMENT = "docs/papers/sampler-stochasticity.md", "docs/deployment.md"
ACTION = "docs/papers/score-as-action.md"

TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "bench-short": ("README.md", bench_short),
    "bench": ("docs/bench.md", bench),
    "study-ve": (PAPER, study("exact", "untuned-ve")),
    "study-vp": (PAPER, study("exact", "untuned-vp")),
    "study-ddpo": (PAPER, study("digits", "ddpo")),
    "study-mix": (PAPER, study("digits", "mix-grpo")),
    "continuous-runs": (CONTINUOUS, control_runs),
    "continuous-variance": (CONTINUOUS, study("variance", "variance", "timestep")),
    "continuous-time": (CONTINUOUS, study("training", "time", "timestep")),
    "continuous-samples": (CONTINUOUS, study("training", "samples", "timestep")),
    "deployment-memory": (DEPLOYMENT, study("exact", "memory")),
    "deployment-exact": (DEPLOYMENT, study("exact", "tuned-exact")),
    "deployment-per-step": (DEPLOYMENT, study("exact", "per-step")),
    "deployment-networks": (DEPLOYMENT, study("networks", "networks")),
    "deployment-am": (DEPLOYMENT, study("am", "deployment-am")),
    "deployment-digits": (DEPLOYMENT, study("digits", "deployment")),
    "ctrl-bench": (ACTION, bench_rows("ctrl", "ctrl-ratio", "ctrl-few-step", "am")),
    "ctrl-values-gaussian": (ACTION, part_of("values-exact", "Gaussian")),
    "ctrl-values-modes": (ACTION, part_of("values-exact", "two-modes")),
    "ctrl-values-digits": (ACTION, part_of("values-digits", "digits")),
    "ctrl-grids-exact": (ACTION, part_of("discretisation-exact", "exact")),
    "ctrl-grids-cost": (ACTION, part_of("discretisation-digits", "digits")),
    "ctrl-grids-digits": (ACTION, part_of("discretisation-digits", "digits", 1)),
    **{f"presets-{recipe}": ("docs/presets.md", presets(recipe)) for recipe in MODELS},
    **{f"paper-{page}": (f"docs/papers/{page}.md", paper(*methods)) for page, methods in PAPERS.items()},
}
"""Marker -> the page it stands in, and what makes its table."""


def main(check: bool) -> int:
    """Writes (or checks) every table; the number of pages that were not up to date, when checking."""
    stale = 0
    for marker, (page, make) in TABLES.items():
        path = ROOT / page
        text = path.read_text()
        pattern = re.compile(rf"(<!-- {marker}:[^\n]*-->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no marker for the table {marker!r}")
        new = pattern.sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)
        if new != text and check:
            print(f"{page}: the table {marker!r} is not what its JSON says; run python tools/tables.py")
            stale += 1
        elif new != text:
            path.write_text(new)
    return stale


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:]))
