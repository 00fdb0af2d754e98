"""The papers behind the methods and samplers; ``girsanov cite NAME`` prints their BibTeX.

The entries are in ``references.bib``, one paragraph each. Years and numbers are those of the first arXiv version.
"""

import difflib
import functools
from importlib import resources

from girsanov.errors import GirsanovError

CITATIONS: dict[str, tuple[str, ...]] = {
    # methods
    "am": ("domingo2024adjoint",),
    "ode-am": ("guo2026deterministic", "domingo2024adjoint"),
    "draft": ("clark2023draft",),
    "draft-lv": ("clark2023draft",),
    "alignprop": ("prabhudesai2023alignprop",),
    "refl": ("xu2023imagereward",),
    "clipped-pg": ("black2023ddpo", "liu2025flowgrpo"),
    "ddpo": ("black2023ddpo",),
    "ddpo-sf": ("black2023ddpo",),
    "dpok": ("fan2023dpok",),
    "flow-grpo": ("liu2025flowgrpo",),
    "flow-grpo-fast": ("liu2025flowgrpo",),
    "dance-grpo": ("xue2025dancegrpo",),
    "mix-grpo": ("li2025mixgrpo",),
    "mix-grpo-flash": ("li2025mixgrpo",),
    "branch-grpo": ("li2025branchgrpo",),
    "grpo-guard": ("wang2025grpoguard",),
    "pcpo": ("lee2025pcpo",),
    "tempflow-grpo": ("he2025tempflow",),
    "flow-dppo": ("ping2026flowdppo",),
    "rsm-hinge": ("lee2026rsm",),
    "ctrl": ("zhao2025score", "zhao2024scores"),
    "ctrl-ratio": ("zhao2025score",),
    "ctrl-few-step": ("zhao2025score", "yoon2024dxmi"),
    "nft": ("zheng2025nft",),
    "awm": ("xue2025awm",),
    "fpo": ("mcallister2025fpo",),
    "ram": ("bergmeister2026ram",),
    "rvm": ("rvm2026",),
    "orw-cfm-w2": ("fan2025orw",),
    "dgpo": ("luo2025dgpo",),
    "crd": ("zhu2026crd",),
    "diffusion-dpo": ("wallace2023diffusiondpo",),
    "diffusion-sdpo": ("fu2025sdpo",),
    "dspo": ("wallace2023diffusiondpo",),
    "mapo": ("hong2024mapo",),
    "rank-dpo": ("karthik2024rankdpo",),
    "diffusion-kto": ("li2024diffusionkto",),
    "online-dpo": ("guo2024oaif", "wallace2023diffusiondpo"),
    "d3po": ("yang2023d3po",),
    "spo": ("liang2024spo",),
    "prdp": ("deng2024prdp",),
    "dlpo": ("chen2024dlpo",),
    "rwr": ("zhang2023hive",),
    # agents
    "cpg": ("zhao2023continuous",),
    "cppo": ("zhao2023continuous",),
    # samplers
    "euler": ("song2021score",),
    "heun": ("karras2022edm",),
    "dpm-solver++2m": ("lu2022dpmsolver",),
    "gddim": ("zhang2022gddim", "song2020ddim"),
    "gddim-schedule": ("zhang2022gddim", "sheng2025stochasticity"),
    "euler-maruyama": ("song2021score",),
    "flow-sde": ("liu2025flowgrpo",),
    "dance-sde": ("xue2025dancegrpo",),
    "cps": ("wang2025cps",),
    "precise": ("zou2026precise",),
    "memoryless-flow": ("domingo2024adjoint",),
    "mixed": ("li2025mixgrpo",),
}
"""The papers of every method and sampler, by their names in METHODS and SAMPLERS and their keys in the file."""


@functools.cache
def references() -> dict[str, str]:
    """Every BibTeX entry by its key."""
    text = resources.files("girsanov").joinpath("references.bib").read_text(encoding="utf-8")
    entries = text.strip().split("\n\n")
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


def cite(name: str) -> str:
    """The BibTeX entries of a method or sampler. Raises GirsanovError on an unknown name."""
    if name not in CITATIONS:
        near = difflib.get_close_matches(name, CITATIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(CITATIONS)}"
        raise GirsanovError(f"no method or sampler is called {name!r}: {hint}")
    return "\n\n".join(references()[key] for key in CITATIONS[name])
