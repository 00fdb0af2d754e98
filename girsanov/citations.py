"""The papers behind the methods, samplers and rewards; ``girsanov cite NAME`` prints their BibTeX.

The entries are in ``references.bib``, one paragraph each. Years and numbers are those of the first arXiv version. Where
title or authors were not at hand, the entry's note says so.
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
    # preference losses and methods of language models
    "dpo": ("rafailov2023dpo",),
    "ipo": ("azar2023ipo",),
    "gpo": ("tang2024gpo",),
    "hinge": ("tang2024gpo", "zhao2023slichf"),
    "squared-hinge": ("tang2024gpo",),
    "exponential": ("tang2024gpo",),
    "f-dpo-forward-kl": ("wang2023fdpo",),
    "f-dpo-alpha": ("wang2023fdpo",),
    "f-dpo-js": ("wang2023fdpo",),
    "cdpo": ("mitchell2023cdpo",),
    "rdpo": ("chowdhury2024rdpo",),
    "r-dpo": ("park2024rdpo",),
    "odpo": ("amini2024odpo",),
    "mallows-dpo": ("chen2024mallowsdpo",),
    "cpo": ("cpo2024",),
    "orpo": ("hong2024orpo",),
    "simpo": ("meng2024simpo",),
    "rainbow-po": ("zhao2024rainbowpo",),
    "slic": ("zhao2023slichf",),
    "dpop": ("pal2024dpop",),
    "tdpo1": ("zeng2024tdpo",),
    "tdpo2": ("zeng2024tdpo",),
    "dense-dpo": ("yu2023rlhfv",),
    "exo": ("ji2024exo",),
    "optune": ("chen2024optune",),
    "lipo": ("liu2024lipo",),
    "rrhf": ("rrhf2023",),
    "pro": ("song2023pro",),
    "plackett-luce": ("rafailov2023dpo",),
    "infonca": ("chen2024nca",),
    "exo-list": ("ji2024exo",),
    "nca": ("chen2024nca",),
    "kto": ("ethayarajh2024kto",),
    "bco": ("jung2024bco",),
    "aot": ("melnyk2024aot",),
    "aot-unpaired": ("melnyk2024aot",),
    "povid": ("zhou2024povid",),
    "sppo": ("wu2024sppo",),
    "nash-md-pg": ("munos2023nashmd",),
    "tr-dpo": ("gorbatovski2024trdpo",),
    "tr-dpo-hard": ("gorbatovski2024trdpo",),
    "sdpo": ("kim2024sdpo",),
    "oaif": ("guo2024oaif",),
    "iterative-dpo": ("yuan2024selfrewarding",),
    "spin": ("spin2024",),
    "rso": ("liu2023rso",),
    "expo": ("zheng2024expo",),
    "best-of-n": ("dong2023raft",),
    "raft": ("dong2023raft",),
    "rest": ("gulcehre2023rest",),
    "superhf": ("mukobi2023superhf",),
    "sft": ("ouyang2022ppo",),
    "ppo": ("ouyang2022ppo",),
    "remax": ("li2023remax",),
    "rloo": ("ahmadian2024rloo",),
    "grpo": ("shao2024grpo",),
    "p3o": ("wu2023p3o",),
    "p3o-joint": ("wu2023p3o",),
    "p3o-on-off": ("fakoor2019p3o",),
    "rto": ("zhong2024rto",),
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
    # rewards
    "compressible": ("black2023ddpo",),
    "incompressible": ("black2023ddpo",),
    "aesthetic": ("schuhmann2022laion", "black2023ddpo"),
    "clip-score": ("hessel2021clipscore",),
    "pick-score": ("kirstain2023pickapic",),
    "hpsv2": ("wu2023hpsv2",),
    "hpsv3": ("ma2025hpsv3",),
    "image-reward": ("xu2023imagereward",),
    "laion-aesthetic": ("schuhmann2022laion",),
    "vlm-judge": ("zheng2023judge",),
    "ocr": ("liu2025flowgrpo",),
    "objects": ("ghosh2023geneval",),
}
"""The papers of every method, sampler, loss and reward, by their names in the dicts and their keys in the file."""


@functools.cache
def references() -> dict[str, str]:
    """Every BibTeX entry by its key."""
    text = resources.files("girsanov").joinpath("references.bib").read_text(encoding="utf-8")
    entries = text.strip().split("\n\n")
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


def cite(name: str) -> str:
    """The BibTeX entries of a method, sampler, loss or reward. Raises GirsanovError on an unknown name."""
    if name not in CITATIONS:
        near = difflib.get_close_matches(name, CITATIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(CITATIONS)}"
        raise GirsanovError(f"no method, sampler or reward is called {name!r}: {hint}")
    return "\n\n".join(references()[key] for key in CITATIONS[name])
