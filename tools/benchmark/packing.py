"""How many real tokens a second are read: packed pairs, against padding to the sequence length (as
YuyuanQA's finetuning did) and against padding to the longest of a micro batch.

    python tools/benchmark/packing.py data/medquad_train_qa_document

One process takes steps of AdamW on the CPU, with the same number of samples in each. A real token is
one of a question or of an answer, whether it is learned or not; padding is none. The three ways take
turns, step by step; the first step of each is not counted.
"""

import time

import torch

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import ModelConfig, OptimizerConfig
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import Batch, Borders, read_batch
from megatron_yuyuan.data.packing import PackedQADataset
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.train.optimizer import build_optimizer

PACKED, LONGEST, WHOLE = "packed", "padded to the longest of a batch", "padded to the sequence"
SEED = 1


def batches(packed: PackedQADataset, padded: QADataset, size: int, steps: int):
    """Way -> [(batch, its real tokens)], read beforehand."""
    borders = Borders(packed.eod, reset_position_ids=True, reset_attention_mask=True)
    found: dict[str, list[tuple[Batch, int]]] = {PACKED: [], LONGEST: [], WHOLE: []}
    for first in range(0, steps * size, size):
        full = read_batch(packed, first, size, 0, 1, "cpu", borders=borders)
        whole = read_batch(padded, first, size, 0, 1, "cpu")
        lengths = [padded.lengths[padded.pairs(first + i)].sum() for i in range(size)]
        found[PACKED].append((full, real_tokens(packed, first, size)))
        found[LONGEST].append((cut(whole, int(max(lengths)) - 1), int(sum(lengths))))
        found[WHOLE].append((whole, int(sum(lengths))))
    return found


def epoch_shares(packed: PackedQADataset, padded: QADataset, size: int) -> dict[str, float]:
    """Way -> share of the places of an epoch that hold a real token; the last, incomplete batch of
    samples that are padded to the longest is left out."""
    real, width = int(padded.lengths.sum()), padded.seq_length + 1
    batches = len(padded) // size
    order = [padded.pairs(number)[0] for number in range(batches * size)]
    lengths = padded.lengths[order].reshape(batches, size)
    return {
        PACKED: real / (len(packed) * width),
        LONGEST: float(lengths.sum() / (size * lengths.max(1).sum())),
        WHOLE: real / (len(padded) * width),
    }


def real_tokens(dataset: QADataset, first: int, size: int) -> int:
    """Tokens of questions and answers in samples first, ..., first + size - 1."""
    return sum(int(dataset.lengths[dataset.pairs(first + i)].sum()) for i in range(size))


def cut(batch: Batch, length: int) -> Batch:
    """The first `length` tokens of every sample."""
    tokens, labels, positions = (
        t[:, :length].contiguous() for t in (batch.tokens, batch.labels, batch.positions)
    )
    return Batch(tokens, labels, positions, batch.sample_ids)


def step_seconds(model: GPT2, optimizer, batch: Batch) -> float:
    """Forward, backward and update."""
    begun = time.perf_counter()
    loss, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
    optimizer.zero_grad()
    (loss / count).sum().backward()
    optimizer.step()
    return time.perf_counter() - begun


def main() -> None:
    """Take steps in turns; print a table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("prefix", metavar="PREFIX", help="shard of questions and answers")
    for name, default, what in (
        ("--seq-length", 1024, "tokens of a sample"),
        ("--micro-batch-size", 4, "samples of a step"),
        ("--steps", 5, "steps of each way, and one more to warm up"),
        ("--num-layers", 4, "blocks"),
        ("--hidden-size", 256, "width; a head is 64 wide"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what} (default: {default})")
    options = parser.parse_args()
    shard, length = IndexedDataset(options.prefix), options.seq_length
    config = ModelConfig(
        num_layers=options.num_layers,
        hidden_size=options.hidden_size,
        num_attention_heads=options.hidden_size // 64,
        max_position_embeddings=length,
        vocab_size=shard.meta["vocab_size"],
    )
    model = GPT2(config)
    init_weights(model, SEED)
    optimizer = build_optimizer([model], OptimizerConfig())
    steps = options.steps + 1
    eod = int(shard.document(0)[1][-1])
    packed = PackedQADataset(shard, length, eod, SEED)
    padded = QADataset(shard, length, eod, SEED)
    print(packed.describe())
    found = batches(packed, padded, options.micro_batch_size, steps)
    seconds = dict.fromkeys(found, 0.0)
    for step in range(steps):
        for way, each in found.items():
            taken = step_seconds(model, optimizer, each[step][0])
            seconds[way] += taken if step else 0.0
    shares = epoch_shares(packed, padded, options.micro_batch_size)
    print_table({way: each[1:] for way, each in found.items()}, seconds, shares)


def print_table(
    found: dict[str, list[tuple[Batch, int]]], seconds: dict[str, float], shares: dict[str, float]
) -> None:
    """A row for each way: what its steps read, and what an epoch would."""
    print("\n| samples | real tokens | of the places | in an epoch | real tokens/s | packed is |")
    print("|---|---|---|---|---|---|")
    real = {way: sum(tokens for _, tokens in each) for way, each in found.items()}
    speeds = {way: real[way] / seconds[way] for way in found}
    for way, each in found.items():
        places = sum(len(batch.tokens) * (batch.tokens.shape[1] + 1) for batch, _ in each)
        share = real[way] / places
        ratio = speeds[PACKED] / speeds[way]
        print(
            f"| {way} | {real[way]:,} | {share:.1%} | {shares[way]:.1%} | {speeds[way]:,.0f} | {ratio:.2f}x |"
        )
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_command(main)
