"""``girsanov train-reward``: train, measure on held-out comparisons, save, and write a page."""

import argparse
import json

from girsanov.data.rankings import told
from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.folder import clean
from girsanov.launch import device_of
from girsanov.reward_models.causal import CausalConfig
from girsanov.reward_models.fronts import Front
from girsanov.reward_models.frozen import Clip, Language, place
from girsanov.reward_models.losses import Regression, reward_loss
from girsanov.reward_models.readings import ByAdapters, ByFeatures, ByGate, Reading
from girsanov.reward_models.report import Curve, gate_weights, write_page
from girsanov.reward_models.sources import Source, digits_source, file_source
from girsanov.reward_models.training import measure, train_reward_model
from girsanov.train import TrainConfig

BYTES, TOKENS = 256, 1024


def reading_of(chosen: argparse.Namespace) -> Reading | None:
    """How the command line asks to read the file; None is bytes or pixels.

    Raises GirsanovError where options do not belong together.
    """
    if chosen.model and chosen.features:
        raise GirsanovError("--model reads texts and --features pictures: give one of them")
    length = chosen.length or TOKENS
    if chosen.lora is not None:
        if not chosen.model or chosen.objectives:
            raise GirsanovError("--lora trains adapters of a causal language model with one head: give it with --model")
        name = place(chosen.model)
        return ByAdapters(
            CausalConfig(model=name, rank=chosen.lora, max_length=length, dtype=chosen.dtype, members=chosen.members)
        )
    front: Front | None = Clip.of(chosen.features) if chosen.features else None
    if chosen.model:
        front = Language.of(chosen.model, max_length=length, dtype=chosen.dtype)
    if not chosen.objectives and (chosen.ratings or chosen.debias):
        raise GirsanovError("--ratings and --debias are about objectives: name them with --objectives, or all")
    if front is None:
        if chosen.objectives:
            raise GirsanovError(
                "objectives are heads on a frozen model: give one with --model (texts) or --features (pictures)"
            )
        return None
    if not chosen.objectives:
        return ByFeatures(front, chosen.head, chosen.members)
    names = [] if chosen.objectives == "all" else [n.strip() for n in chosen.objectives.split(",") if n.strip()]
    return ByGate(front, names, chosen.ratings, chosen.debias, chosen.members)


def source_of(chosen: argparse.Namespace) -> Source:
    """The comparisons that the command line asks for."""
    options = {"batch_size": chosen.batch, "members": chosen.members, "seed": chosen.seed}
    reading = reading_of(chosen)
    if chosen.data != "digits":
        return file_source(
            chosen.data,
            reading,
            held_out=chosen.held_out,
            limit=chosen.limit,
            size=chosen.size,
            length=chosen.length or BYTES,
            **options,
        )
    if reading is not None:
        raise GirsanovError("digits are read as pixels: --model, --features and --objectives are for files")
    from girsanov.rewards import load_reward

    return digits_source(
        load_reward(chosen.annotator),
        items=chosen.items,
        n=chosen.limit or 2000,
        temperature=chosen.temperature,
        **options,
    )


def train_reward(chosen: argparse.Namespace, command: str) -> str:
    """Trains as the command line says; what to print."""
    loss, device = reward_loss(chosen.loss), device_of(chosen.device)
    source, curve = source_of(chosen), Curve()
    train = TrainConfig(
        iterations=chosen.iterations,
        lr=chosen.lr or (1e-3 if chosen.lora is None else 2e-4),
        weight_decay=chosen.weight_decay,
        micro_batch=chosen.micro_batch,
        seed=chosen.seed,
    )
    model = train_reward_model(
        source.config, source.train, loss, train=train, net=source.net, callbacks=[curve], front=source.front,
        device=device,
    )  # fmt: skip
    fitted = isinstance(loss, Regression)
    seen, held_out = (measure(model, data, fitted) for data in (source.train, source.test))
    objectives = gate_weights(model, source)
    about = {"data": source.about, "loss": chosen.loss, "command": command, "held_out": held_out.data()}
    model.notes = clean(about | ({"objectives": [o.data() for o in objectives]} if objectives else {}))
    folder = model.save(chosen.out)
    page = write_page(folder, model, source, (seen, held_out), curve, command, objectives)
    write_text(folder / "evaluation.json", json.dumps(model.notes, indent=2) + "\n")
    lines = [*told(source.left_out), source.about, f"held out: {len(source.test)} comparisons"]
    width = max(len(k) for k in held_out.rows())
    lines += [f"  {k:<{width}}  {v}" for k, v in held_out.rows().items()]
    lines.append(f"  {'accuracy in training':<{width}}  {seen.pairs.accuracy}")
    lines += [f"  {o.told()}" for o in objectives]
    return "\n".join([*lines, f"saved in {folder}: use it as reward={chosen.out}", f"report: {page}"])
