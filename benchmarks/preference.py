"""What preference losses cost: their arithmetic in a step of the small DiT, network passes, and DPO of text beside TRL.

    python benchmarks/preference.py            # all parts
    python benchmarks/preference.py --part trl

One JSON line a figure. ``loss``: processor seconds of the loss's own arithmetic (from squared errors to the loss, with
its gradient) over those of a whole step of Diffusion-DPO (noising, both networks, backward pass, Adam), medians over
repeats. ``passes``: network calls of a step and samples in each, with the reference's errors known and not.

``trl``: the same Llama with random weights, the same pairs and batch, float32, AdamW, DPO with a reference pass in
every step (``girsanov cached``: with the reference's log-probs on disk; ``trl precomputed``: with TRL's). Each in a
process of its own; tokens (prompts and completions of both sides) a processor second of one thread, median over steps
after the first; memory is the growth of the peak resident memory from before training to its end.
"""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time

import torch


def emit(figure, **values):
    print(json.dumps({"figure": figure, **values, "load": round(os.getloadavg()[0], 1)}), flush=True)


def seconds(action):
    start = time.process_time()
    action()
    return time.process_time() - start


def small_dit(pairs=60, repeats=15):
    from girsanov.methods.base import Turn
    from girsanov.methods.preference import DiffusionDPO
    from girsanov.methods.preference.noised import Seen
    from girsanov.methods.preference.weights import ConstantWeight
    from girsanov.models import Model
    from girsanov.nets import NETS
    from girsanov.pairs import Pairs
    from girsanov.policy import Policy
    from girsanov.processes import RectifiedFlow
    from girsanov.recipes.digits_data import balanced_labels, digit_cond

    shape, seen = (1, 8, 8), []
    net = NETS["dit"](shape=shape, classes=10).build(0)
    net.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    policy = Policy(Model(net, RectifiedFlow(), "velocity", shape))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, pairs, *shape, generator=g)
    data = Pairs(digit_cond(balanced_labels(pairs)), x[0], x[1], pairs)
    method, optimizer = DiffusionDPO(weight=ConstantWeight(200.0)), torch.optim.Adam(policy.parameters(), lr=1e-5)

    def step(i=0):
        with torch.no_grad():
            batch = method.collect(policy, data.batch(i), {}, Turn(0, i))
        for chunk in method.losses(policy, batch, {}):
            chunk.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batch = method.collect(policy, data.batch(0), {}, Turn(0, 0))
    (draw,) = batch.draws
    with torch.no_grad():
        base = draw.look(policy.view("reference", "train"), batch.cond)

    def arithmetic():
        error = base.error.clone().requires_grad_(True)
        method.rows(Seen(base.prediction, error), base, draw, batch)[0].mean().backward()

    step(), arithmetic()
    times = [(seconds(step), seconds(lambda: [arithmetic() for _ in range(20)]) / 20) for _ in range(repeats)]
    whole, part = (statistics.median(t) for t in zip(*times, strict=True))
    emit(
        "loss", step_ms=round(1e3 * whole, 2), loss_ms=round(1e3 * part, 3), share_percent=round(100 * part / whole, 2)
    )
    seen.clear()
    list(method.losses(policy, batch, {}))
    asked = list(seen)
    seen.clear()
    known = dataclasses.replace(batch, draws=(dataclasses.replace(draw, base=base.error),))
    list(method.losses(policy, known, {}))
    emit("passes", pairs=pairs, samples_a_pass=asked, samples_a_pass_with_known_reference=seen)


WORDS = "the quick brown fox takes a red pill and walks home"


def texts(pairs, length):
    """Prompts and two completions of this many letters each."""
    long = (WORDS + " ") * (length // len(WORDS) + 2)
    turn = [long[i % 17 :] for i in range(3 * pairs)]
    return [
        (turn[i][: length // 2], turn[i + pairs][:length], turn[i + 2 * pairs][1 : length + 1]) for i in range(pairs)
    ]


def parts(vocabulary):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(set(WORDS))
    made = Tokenizer(models.WordLevel({"</s>": 0, **{c: i for i, c in enumerate(letters, 1)}}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def ours(rows, batch, steps, folder, model, tokenizer, cache):
    from girsanov.language import Encoder, LanguageModel, LanguageNet
    from girsanov.language.data import TextComparisons
    from girsanov.language.named import LANGUAGE_METHODS
    from girsanov.policy import Policy
    from girsanov.train import Run, TrainConfig, iterate

    lm = LanguageModel(LanguageNet(model), Encoder(tokenizer, 512))
    data = TextComparisons.encode(lm.encoder, [(p, [c, r]) for p, c, r in rows], batch_size=batch)
    method = LANGUAGE_METHODS["dpo"](beta=0.1, cache=folder if cache else None)
    run = Run(Policy(lm), method, TrainConfig(iterations=steps, lr=1e-5), data)
    return lambda mark: [(iterate(run), mark()) for _ in range(steps)]


def theirs(rows, batch, steps, folder, model, tokenizer, cache):
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    table = Dataset.from_dict(
        {k: list(v) for k, v in zip(("prompt", "chosen", "rejected"), zip(*rows, strict=True), strict=True)}
    )
    config = DPOConfig(
        output_dir=folder, per_device_train_batch_size=batch, max_steps=steps, learning_rate=1e-5, beta=0.1,
        lr_scheduler_type="constant", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=None, logging_steps=10**6, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        precompute_ref_log_probs=cache,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model, ref_model=copy.deepcopy(model), args=config, train_dataset=table, processing_class=tokenizer
    )

    def train(mark):
        class Mark(TrainerCallback):
            def on_step_end(self, *args, **more):
                mark()

        trainer.add_callback(Mark())
        trainer.train()

    return train


SIDES = {
    "girsanov": (ours, False),
    "trl": (theirs, False),
    "girsanov cached": (ours, True),
    "trl precomputed": (theirs, True),
}


def measure(queue, side, pairs, batch, length, steps, vocabulary):
    torch.set_num_threads(1)
    make, cache = SIDES[side]
    with tempfile.TemporaryDirectory() as folder:
        train = make(texts(pairs, length), batch, steps, folder, *parts(vocabulary), cache)
        before, marks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        train(lambda: marks.append(time.process_time()))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    gaps = [b - a for a, b in zip(marks[1:], marks[2:], strict=False)]
    tokens = batch * 2 * (length // 2 + length + 1)
    queue.put({"tokens_a_second": round(tokens / statistics.median(gaps)), "peak_mb": round(peak), "steps": len(marks)})


def beside_trl(args):
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**20), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    spawn = multiprocessing.get_context("spawn")
    for side in SIDES:
        queue = spawn.Queue()
        sizes = (args.pairs, args.batch, args.length, args.steps, args.vocabulary)
        child = spawn.Process(target=measure, args=(queue, side, *sizes))
        child.start()
        found = queue.get(timeout=300)
        child.join()
        emit("trl", side=side, **found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["images", "trl"])
    for name, value in {"pairs": 32, "batch": 8, "length": 64, "steps": 12, "vocabulary": 8000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part != "trl":
        small_dit()
    if args.part != "images":
        beside_trl(args)


if __name__ == "__main__":
    main()
