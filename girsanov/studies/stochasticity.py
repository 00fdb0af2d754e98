"""``girsanov study stochasticity``: what the noise of the training sampler does to the sampler that is deployed.

Parts: ``exact`` (Gaussian problems, exact curves beside measured ones), ``networks`` (small networks against the exact
optimum), ``digits`` (DDPO on a diffusion and MixGRPO on a flow at several eta), ``deployment`` and ``deployment-am``
(the deployment factor on digits).

Reference: arXiv:2510.10767, 2026.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from girsanov.report.svg import Line
from girsanov.studies.digits import DDPO, MIX, Setting, matched, run_deployment, run_gap, with_kl
from girsanov.studies.exact import exact_sections
from girsanov.studies.networks import network_section
from girsanov.studies.page import TONES, Plot, Section, Table, study_of, write_study

ETAS = (0.5, 1.0, 2.0)
FLOW_GRPO = 0.495  # a = 0.7
MATCHED = 4.0  # beta of adjoint matching
DEPLOYED = (("per-step", FLOW_GRPO), ("path", FLOW_GRPO), ("path", 1.0), ("path", 2.0))


def gap_section(setting: Setting, fast: bool) -> Section:
    """Training at several eta, each followed under its SDE and under the ODE."""
    iterations, every, n = (2, 1, 60) if fast else (40, 8, 500)
    rows = [run_gap(setting, eta, iterations, every, n) for eta in ETAS]
    table = Table(
        ("eta", "SDE before", "SDE after", "ODE before", "ODE after", "gain", "±", "gap", "±", "trend", "±", "judge"),
        [
            [
                f"{r['eta']:g}",
                *(r[k][i] for k in ("sde", "ode") for i in (0, -1)),
                r["improvement"],
                r["improvement_half"],
                r["gap"][-1],
                r["gap_half"][-1],
                f"{r['trend']:+.4f}",
                r["trend_half"],
                f"{100 * r['judge']:.1f} %",
            ]
            for r in rows
        ],
        f"Reward of {n} pictures from the same noise; 95 % intervals, paired. Gain: ODE after less before. Gap: ODE "
        f"less SDE at the end. Trend: of the gap per iteration, over {iterations}. Judge: share of the ODE's digits it "
        "reads.",
    )
    at = rows[0]["at"]
    plots = [
        Plot(
            f"{setting.key}-gap",
            f"{setting.label}: gap ODE - SDE",
            "iteration",
            [
                Line(at, r["gap"], r["gap_half"], name=f"eta {r['eta']:g}", style=TONES[i], dots=True)
                for i, r in enumerate(rows)
            ],
        ),
        Plot(
            f"{setting.key}-ode",
            f"{setting.label}: reward under the ODE",
            "iteration",
            [Line(at, r["ode"], name=f"eta {r['eta']:g}", style=TONES[i], dots=True) for i, r in enumerate(rows)],
        ),
    ]
    text = (f"{setting.label}, trained with noise eta and without a KL; one seed for each eta, the same for all.",)
    return Section(setting.key, setting.label, text, [table], plots, {"rows": rows, "n": n, "iterations": iterations})


def deployment_section(
    key: str, title: str, text: str, runs: Sequence[tuple[Setting, float]], iterations: int, fast: bool
) -> Section:
    """Policies deployed by the ODE raw and corrected, beside the SDE they were trained with."""
    iterations, n = (2, 60) if fast else (iterations, 500)
    rows = [run_deployment(setting, eta, iterations, n) for setting, eta in runs]
    shown = {"sde": "SDE as trained", "raw": "ODE raw", "corrected": "ODE corrected", "one_pass": "ODE one pass"}
    table = Table(
        ("training, eta, c", "sampler", "reward", "gain", "±", "judge", "diversity", "path KL"),
        [
            [
                f"{r['setting'].removeprefix('flow-')}, {r['eta']:g}, {r['c']:.3f}",
                label,
                r[key]["reward"],
                r[key]["gain"],
                r[key]["gain_half"],
                f"{100 * r[key]['judge']:.1f} %",
                r[key]["diversity"],
                r[key]["kl"],
            ]
            for r in rows
            for key, label in shown.items()
        ],
        f"{n} pictures, {iterations} iterations, one seed. Gain: over the untuned model with the same sampler and "
        "noise, 95 % intervals. Path KL: of the model at eta = 1, whatever it is sampled with.",
    )
    return Section(key, title, (text,), [table], (), {"rows": rows, "n": n, "iterations": iterations})


def gradient_section(fast: bool) -> Section:
    """Clipped policy gradients with a KL in the objective."""
    runs = [(with_kl(kind, 0.1), eta) for kind, eta in DEPLOYED]
    text = (
        "A clipped policy gradient with a KL in its objective on the digits' flow; eta = 0.495 is Flow-GRPO's a = 0.7. "
        "The theorem says that at the optimum of the path KL the corrected ODE gains what the SDE gains."
    )
    return deployment_section("deployment", "Policy gradients, deployed on digits", text, runs, 80, fast)


def matching_section(fast: bool) -> Section:
    """Adjoint matching, whose fixed point is the optimum."""
    text = (
        f"Adjoint matching with beta = {MATCHED:g} on the same flow, at noise that is not memoryless on purpose: it "
        "regresses onto the optimum of the path KL."
    )
    runs = [(matched(MATCHED), eta) for eta in (FLOW_GRPO, 1.0, 2.0)]
    return deployment_section("deployment-am", "Adjoint matching, deployed on digits", text, runs, 240, fast)


PARTS: dict[str, Callable[[bool], Sequence[Section]]] = {
    "exact": exact_sections,
    "networks": lambda fast: [network_section(fast)],
    "digits": lambda fast: [gap_section(DDPO, fast), gap_section(MIX, fast)],
    "deployment": lambda fast: [gradient_section(fast)],
    "deployment-am": lambda fast: [matching_section(fast)],
}
"""Parts of the study by name."""


def run_study(out: Path, command: str, parts: Sequence[str] | None = None, fast: bool = False) -> Path:
    """Runs the parts (all by default) and writes the study; the path of its page.

    Raises GirsanovError on an unknown part.
    """
    sections = study_of(PARTS, parts, fast)
    lead = (
        "Fine-tuning explores with a stochastic sampler, deployment often uses the ODE. What does the noise of "
        "training do to the deployed reward, and can the gap be closed without training again?"
    )
    return write_study(out, "Sampler stochasticity", lead, sections, command)
