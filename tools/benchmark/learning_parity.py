"""Whether a run learns as a plain loop over transformers' GPT-2 does: the same weights at the start, the
same samples in the same order, a thousand steps.

    python tools/benchmark/learning_parity.py data/pubmed_text_document --tokenizer-model tokenizer \\
        --output learning_parity.png

Ours runs as a user runs it, in one process and at 2 x 2 x 2 (pipeline x data x tensor), in float32
and in bf16. The plain loop is run with three seeds in float32, which shows how far losses lie apart
by chance, and with the first seed under bf16 autocast. Needs the extras `hf` and `report`.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from training_peers import adamw

from megatron_yuyuan.checkpoint.hf_format import huggingface_config, to_huggingface
from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import IGNORE, Config, flag_of
from megatron_yuyuan.data.loader import Dataset, read_batch
from megatron_yuyuan.data.tokenizer import open_tokenizer
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.samples import text_datasets
from megatron_yuyuan.train.schedule import learning_rate

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2, 3)
SETTINGS = {
    "num_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "lr": 1e-3,
    "min_lr": 1e-4,
    "lr_warmup_fraction": 0.1,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "eval_iters": 50,
    "split": "98,1,1",
    "tokenizer_type": "HuggingFaceTokenizer",
    "device": "cpu",
}
CUBE = ("--pipeline-model-parallel-size", "2", "--tensor-model-parallel-size", "2")
OURS = {
    "ours, 1 process, float32": (1, ()),
    "ours, 1 process, bf16": (1, ("--bf16",)),
    "ours, 2 x 2 x 2, float32": (8, CUBE),
    "ours, 2 x 2 x 2, bf16": (8, (*CUBE, "--sequence-parallel", "--bf16")),
}


def ours(settings: dict, ranks: int, flags: tuple[str, ...]) -> tuple[list[float], float]:
    """Losses of all steps and the validation loss of a run of pretrain_gpt.py."""
    named = []
    for name, value in settings.items():
        named += [flag_of(name), *(value if isinstance(value, tuple) else [value])]
    with tempfile.TemporaryDirectory() as directory:
        launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
        command = (*launch, ranks, ROOT / "pretrain_gpt.py", *named, *flags, "--save", directory)
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(list(map(str, command)), check=True, capture_output=True, env=one_thread)
        metrics = f"{directory}/metrics.jsonl"
        losses = [step["lm_loss"] for step in read_metrics(metrics, "step")]
        return losses, read_metrics(metrics, "evaluation")[-1]["validation_loss"]


def plain(settings: dict, autocast: bool) -> tuple[list[float], float]:
    """The same of a plain loop over transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    config = Config().replace(**settings)
    tokenizer = open_tokenizer(config.data)
    config = config.replace(vocab_size=tokenizer.vocab_size)
    training_set, validation_set = text_datasets(config, tokenizer)
    assert validation_set is not None
    start = GPT2(config.model)
    init_weights(start, config.training.seed)
    model = GPT2LMHeadModel(
        GPT2Config(**huggingface_config(config.model, tokenizer.eod, "float32"))
    )
    model.load_state_dict(to_huggingface(start.state_dict(), config.model), strict=False)
    optimizer = adamw(list(model.parameters()), config.optimizer, None)
    losses, size, steps = [], config.training.global_batch_size, config.training.train_iters
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, count = sum_of_losses(model, training_set, step * size, size)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, steps, config.optimizer)
        optimizer.step()
        losses.append((total / count).item())
    return losses, evaluated(model, validation_set, size, config.training.eval_iters, autocast)


def sum_of_losses(model, dataset: Dataset, consumed: int, size: int, limit: int | None = None):
    """(summed loss, number of learned labels) of one batch."""
    batch = read_batch(dataset, consumed, size, 0, 1, "cpu", limit)
    logits = model(batch.tokens).logits.float().flatten(0, 1)
    labels = batch.labels.flatten()
    total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    return total, torch.sum(labels != IGNORE)


@torch.no_grad()
def evaluated(model, dataset: Dataset, size: int, batches: int, autocast: bool) -> float:
    """The loss per learned token over the samples that ours evaluates on."""
    limit = min(len(dataset), batches * size)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sums = [
            sum_of_losses(model.eval(), dataset, first, size, limit)
            for first in range(0, limit, size)
        ]
    return (sum(total for total, _ in sums) / sum(count for _, count in sums)).item()


def draw(curves: dict[str, list[float]], output: str) -> None:
    """All curves in one picture, each the mean of the 20 steps around, and their distance from the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = smooth(next(iter(curves.values())))
    for name, losses in curves.items():
        smoothed = smooth(losses)
        left.plot(smoothed, linewidth=0.9, label=name)
        right.plot([a - b for a, b in zip(smoothed, first, strict=True)], linewidth=0.9)
    left.set(xlabel="optimizer step", ylabel="training loss (nats)", yscale="log")
    right.set(xlabel="optimizer step", ylabel=f"difference from {next(iter(curves))}")
    left.legend(fontsize=7)
    figure.savefig(output, dpi=110)


def smooth(losses: list[float], width: int = 20) -> list[float]:
    return [
        statistics.fmean(losses[max(0, i - width // 2) : i + width // 2])
        for i in range(len(losses))
    ]


def main() -> None:
    """Run everything, two runs at a time; print a table, draw the curves."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("prefix", metavar="PREFIX", help="shard of texts")
    parser.add_argument("--tokenizer-model", required=True, metavar="PATH", help="its tokenizer")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    parser.add_argument("--output", required=True, metavar="FILE.png", help="the curves")
    options = parser.parse_args()
    common = SETTINGS | {"train_iters": options.steps, "eval_interval": options.steps}
    common |= {"tokenizer_model": options.tokenizer_model, "data_path": (options.prefix,)}
    with ProcessPoolExecutor(2) as pool:
        peers = {
            f"transformers, seed {seed}, {'bf16' if autocast else 'float32'}": pool.submit(
                plain, common | {"seed": seed}, autocast
            )
            for seed, autocast in [*((seed, False) for seed in SEEDS), (SEEDS[0], True)]
        }
        mine = common | {"seed": SEEDS[0]}
        runs = {name: pool.submit(ours, mine, *how) for name, how in OURS.items()}
        results = {name: run.result() for name, run in (peers | runs).items()}
    same, *others = [loss for name, (_, loss) in results.items() if name in list(peers)[:3]]
    spread = statistics.stdev([same, *others])
    print(
        f"| run | validation loss after {options.steps} steps | from transformers, seed {SEEDS[0]} |"
    )
    print("|---|---|---|")
    for name, (_, loss) in results.items():
        print(f"| {name} | {loss:.5f} | {loss - same:+.5f} |")
    print(f"\nstandard deviation of transformers over three seeds: {spread:.5f}")
    within = all(math.fabs(results[name][1] - same) <= spread for name in OURS)
    print(f"ours within it: {'yes' if within else 'NO'}")
    draw({name: losses for name, (losses, _) in results.items()}, options.output)


if __name__ == "__main__":
    run_command(main)
