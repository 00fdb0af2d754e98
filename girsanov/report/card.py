"""The model card: ``README.md`` of a run folder."""

from girsanov.disk import write_text
from girsanov.folder import RunFolder
from girsanov.report.data import RunData
from girsanov.report.verdict import verdict


def write_card(folder: RunFolder) -> None:
    """Writes the model card: what it is, how well it does, how to use and how to repeat it."""
    run, found = RunData.read(folder), verdict(RunData.read(folder))
    rows = [
        f"| {m.label} | {m.text('before')} {m.interval('before')} | {m.text('after')} {m.interval('after')} |"
        for m in run.metrics
    ]
    alarms = [f"- Iteration {a['iteration']}: {a['message']}." for a in run.alarms] or ["None rang."]
    facts = [f"{label}: {text}." for label, text in run.about.get("facts", {}).items()]
    load = run.about.get("load")
    plain = ["In diffusers, on the pipeline it was tuned from:", "", "```python", load, "```", ""] if load else []
    text = "\n".join(
        [
            f"# {run.name}",
            "",
            f"{run.about.get('description', '')}",
            "",
            f"Tuned with girsanov: recipe {run.facts.get('recipe')}, method {run.method}, {run.done} of {run.total} "
            "iterations.",
            "",
            f"**{found.headline}.** {found.reason}",
            "",
            "| | before | after |",
            "| --- | --- | --- |",
            *rows,
            "",
            *facts,
            "",
            "## Alarms",
            "",
            *alarms,
            "",
            "## Use",
            "",
            "```sh",
            f"girsanov sample {run.name} -n 64   # more samples; --strength 0.5 goes half way",
            f"girsanov evaluate {run.name}",
            "```",
            "",
            *plain,
            "The weights are `checkpoints/*/current.safetensors`, averaged ones `ema.safetensors` beside them.",
            "",
            "## Repeat",
            "",
            "```sh",
            f"{run.facts.get('command')}",
            "```",
            "",
            "Limits: tuned to a reward that measures one thing; `report.html` shows what else moved.",
            "",
        ]
    )
    write_text(folder.path / "README.md", text)
