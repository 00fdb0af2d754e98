"""Peak memory and time of completion log-probs with their gradient: all logits at once, and some positions at a time.

    python benchmarks/language.py

One JSON line a row: each is a process of its own, whose peak resident memory is taken before the pass and after it; the
difference is what the pass needed. ``naive`` is log-softmax and gather on the whole table; ``chunk`` is
``girsanov.language.logprobs.token_logp``. Seconds are processor seconds of one thread.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time

import torch

from girsanov.language.logprobs import token_logp


def measure(queue, positions, width, vocabulary, chunk):
    """Peak MB and seconds of one forward and backward pass; chunk 0 is the naive form."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(positions, width, requires_grad=True)
    target = torch.randint(vocabulary, (positions,))
    head.weight.grad, hidden.grad = torch.zeros_like(head.weight), torch.zeros_like(hidden)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if chunk:
        logp = token_logp(head, hidden, target, chunk)
    else:
        logp = head(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]
    logp.sum().backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put((peak / 1024, seconds, logp.sum().item(), hidden.grad.square().sum().item()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 1024, 256, 64])
    args = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # large blocks go back when freed: resident is what is used
    spawn = multiprocessing.get_context("spawn")
    for chunk in args.chunks:
        queue = spawn.Queue()
        sizes = (args.positions, args.width, args.vocabulary)
        child = spawn.Process(target=measure, args=(queue, *sizes, chunk))
        child.start()
        peak, seconds, value, gradient = queue.get()
        child.join()
        table = 4 * args.positions * args.vocabulary / 2**20
        row = {"form": f"chunk {chunk}" if chunk else "naive", "table_mb": round(table), "peak_mb": round(peak)}
        print(json.dumps({**row, "seconds": round(seconds, 2), "value": value, "gradient": gradient}), flush=True)


if __name__ == "__main__":
    main()
