"""What the order of samples does to the loss: our permuted windows against Megatron-LM's shuffled
documents.

    python tools/benchmark/window_order.py data/abstracts_text_document

Two models begin with the same weights and read the same tokens equally often. One reads them as
`GPTDataset` gives them: documents in their order in the shard, each epoch's cuts shifted by a phase,
windows permuted. The other reads them in Megatron-LM's way: documents shuffled each epoch, packed,
cut, windows shuffled. The validation documents are the shard's last.
"""

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import ModelConfig, OptimizerConfig
from megatron_yuyuan.data.gpt_dataset import GPTDataset
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.evaluate.perplexity import perplexity
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.train.optimizer import build_optimizer

LENGTH, BATCH, LAYERS, WIDTH, HEADS, LEARNING_RATE = 128, 8, 4, 192, 6, 1e-3
ORDERS = "permuted windows", "shuffled documents"
VALIDATION = 100
"""Documents."""


class ShuffledDocuments:
    """The samples of documents shuffled anew in each epoch, packed, cut into windows, shuffled."""

    def __init__(self, shard: IndexedDataset, documents: range, seed: int):
        self.texts = [np.concatenate(shard.document(i)) for i in documents]
        self.windows = (sum(map(len, self.texts)) - LENGTH) // LENGTH
        self.seed, self.epoch = seed, -1

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(number, self.windows)
        if epoch != self.epoch:
            self.epoch, generator = epoch, np.random.default_rng((self.seed, epoch))
            order = generator.permutation(len(self.texts))
            self.stream = np.concatenate([self.texts[i] for i in order]).astype(np.int64)
            self.order = generator.permutation(self.windows)
        first = self.order[place] * LENGTH
        return self.stream[first : first + LENGTH], self.stream[first + 1 : first + LENGTH + 1]


def train(model: GPT2, dataset, steps: int) -> None:
    """AdamW with 10% of warm-up and a cosine down to zero."""
    optimizer = build_optimizer([model], OptimizerConfig(weight_decay=0.1, adam_beta2=0.95))
    for step in range(steps):
        batch = read_batch(dataset, step * BATCH, BATCH, 0, 1, "cpu")
        loss, count = model(batch.tokens, labels=batch.labels, step=step, **batch.model_inputs())
        optimizer.zero_grad()
        (loss / count).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = min(1, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        optimizer.step()


def loss_of(order: str, prefix: str, count: int, epochs: int, seed: int) -> float:
    """The validation loss of a model that has read `count` documents `epochs` times in an order."""
    torch.set_num_threads(1)
    shard, documents = IndexedDataset(prefix), range(count)
    held_out = range(shard.num_documents - VALIDATION, shard.num_documents)
    theirs = ShuffledDocuments(shard, documents, seed)
    ours = GPTDataset(shard, LENGTH, seed, documents)
    config = ModelConfig(
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        vocab_size=shard.meta["vocab_size"],
    )
    model, steps = GPT2(config, seed), epochs * len(theirs) // BATCH
    init_weights(model, seed)
    train(model, ours if order == ORDERS[0] else theirs, steps)
    return perplexity(model.eval(), GPTDataset(shard, LENGTH, None, held_out))["loss"]


def main() -> None:
    """Train with both orders for every seed, two models at a time; print the losses as a table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("prefix", metavar="PREFIX", help="shard of texts, made with --append-eod")
    parser.add_argument("--documents", type=int, default=400, help="to train on (default: 400)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over them (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each order (default: 3)")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds is a number of runs, 2 or more: their spread is printed")
    begun, common = time.monotonic(), (options.prefix, options.documents, options.epochs)
    with ProcessPoolExecutor(2) as pool:
        runs = {
            order: [pool.submit(loss_of, order, *common, seed) for seed in range(options.seeds)]
            for order in ORDERS
        }
        losses = {order: [run.result() for run in each] for order, each in runs.items()}
    print(f"{LAYERS} layers of {WIDTH}, {BATCH} windows of {LENGTH} tokens a step, ", end="")
    print(f"{options.documents} documents {options.epochs} times, {time.monotonic() - begun:.0f} s")
    print("\n| order | validation loss by seed | mean | standard deviation |\n|---|---|---|---|")
    for name, values in losses.items():
        each = ", ".join(f"{value:.4f}" for value in values)
        print(
            f"| {name} | {each} | {statistics.mean(values):.4f} | {statistics.stdev(values):.4f} |"
        )


if __name__ == "__main__":
    run_command(main)
