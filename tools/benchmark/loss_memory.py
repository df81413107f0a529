r"""Peak memory and time of the loss: ours in chunks beside the cross entropy of all logits.

    python tools/benchmark/loss_memory.py [--tokens 4096] [--vocab-size 50304] [--hidden-size 768]

Forward and backward of hidden states x (tokens, C) through the head's weight (V, C). Each run is a
process of its own; memory is what its largest resident size grows by from x and the weight in
place, to both gradients in place. Each process warms up on 64 tokens first, without
gradients.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, run_command

SIDES = ("chunks", "all logits")


def main(args: Sequence[str] | None = None) -> None:
    """Run both sides in turn, print medians; or be one of them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, metavar="N")
    parser.add_argument("--vocab-size", type=int, default=50304, metavar="V")
    parser.add_argument("--hidden-size", type=int, default=768, metavar="C")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--side", choices=SIDES, help="used by the runs")
    options = parser.parse_args(args)
    sizes = (options.tokens, options.vocab_size, options.hidden_size)
    if options.side:
        print(json.dumps(measure(options.side, *sizes)))
        return
    runs: dict[str, list] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, results in runs.items():
            own = [sys.executable, __file__, *(sys.argv[1:] if args is None else args)]
            ended = subprocess.run([*own, "--side", side], capture_output=True, check=True)
            results.append(json.loads(ended.stdout.splitlines()[-1]))
    print("{} tokens, V = {}, C = {}, float32, median of {}".format(*sizes, options.rounds))
    for side, results in runs.items():
        loss, memory, seconds = map(statistics.median, zip(*results, strict=True))
        print(f"  {side:<11} loss {loss:.6f}   peak {memory:7.0f} MiB   {seconds:6.2f} s")


def measure(side: str, tokens: int, vocab_size: int, hidden_size: int) -> tuple:
    """(mean loss, MiB that the process grows by, seconds)."""
    import torch

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden_size, generator=draw).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, generator=draw).mul_(0.02).requires_grad_()
    labels = torch.randint(0, vocab_size, (tokens,), generator=draw)
    with torch.no_grad():
        mean_loss(side, x[:64], weight, labels[:64])
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss = mean_loss(side, x, weight, labels)
    loss.backward()
    seconds = time.perf_counter() - begun
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return loss.item(), grown / 1024, seconds


def mean_loss(side: str, x, weight, labels):
    """Per token, x (tokens, C), weight (V, C), labels (tokens,)."""
    import torch.nn.functional as F

    from megatron_yuyuan.kernels import Kernels, VocabularyRows
    from megatron_yuyuan.model.loss import linear_cross_entropy

    if side == "all logits":
        return F.cross_entropy(F.linear(x, weight), labels)
    rows = VocabularyRows(len(weight))
    return linear_cross_entropy(x[None], weight, labels[None], rows, Kernels()).sum() / len(x)


if __name__ == "__main__":
    run_command(main)
