r"""Opening a shard, building the order of its samples, and reading at random: ours beside megatron-core.

    python tools/benchmark/reading.py FOLDER [--documents 10000000] [--rounds 5]

Each run is a process of its own, imports not counted; the shard's files are in the page cache in every
case. Cold: megatron-core has no index files yet. Warm: it finds those of the run before. Ours makes none.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.gpt_dataset import GPTDataset, split_documents
from megatron_yuyuan.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter

LENGTH, SPLIT, SAMPLES = 1024, "949,50,1", 10_000


def main(args: Sequence[str] | None = None) -> None:
    """Make the shard, run the readers in turn, print medians; or be one of them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="where the shard is made, or is already")
    parser.add_argument("--documents", type=int, default=10**7, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--reader", choices=("ours", "megatron"), help="used by the runs")
    options = parser.parse_args(args)
    prefix = str(Path(options.folder) / "reading")
    if options.reader:
        seconds, dataset = {"ours": ours, "megatron": megatron}[options.reader](prefix)
        print(json.dumps([seconds, samples_per_second(dataset)]))
        return
    if not Path(f"{prefix}.idx").exists():
        write_shard(prefix, options.documents)
    results: dict[str, list] = {"ours": [], "megatron cold": [], "megatron warm": []}
    for _ in range(options.rounds):
        shutil.rmtree(f"{prefix}.cache", ignore_errors=True)
        for name, runs in results.items():
            command = [sys.executable, __file__, options.folder, "--reader", name.split()[0]]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(ended.stdout.splitlines()[-1]))
    print(f"\n{options.documents:,} documents, median of {options.rounds} (all runs)")
    for name, runs in results.items():
        opening, rates = zip(*runs, strict=True)
        print(
            f"  {name:<14} open and order {1e3 * statistics.median(opening):8.1f} ms"
            f" ({', '.join(f'{1e3 * s:.0f}' for s in opening)})   samples/s"
            f" {statistics.median(rates):8,.0f} ({', '.join(f'{rate:,.0f}' for rate in rates)})"
        )


def write_shard(prefix: str, documents: int) -> None:
    """Documents of 20 to 59 random tokens."""
    draw = np.random.default_rng(0)
    with IndexedDatasetWriter(prefix, np.uint16) as shard:
        for first in range(0, documents, 100_000):
            lengths = draw.integers(20, 60, min(100_000, documents - first)).astype(np.int32)
            ids = draw.integers(0, 50_000, lengths.sum(), dtype=np.uint16)
            shard.add_documents(ids, lengths)
        shard.finish({"kind": "text"})


def ours(prefix: str) -> tuple[float, GPTDataset]:
    """Seconds to have training, validation and test samples; the training samples."""
    begun = time.perf_counter()
    shard = IndexedDataset(prefix)
    train, valid, test = split_documents(shard.num_documents, SPLIT)
    parts = ((1234, train), (None, valid), (None, test))
    sets = [GPTDataset(shard, LENGTH, seed, part) for seed, part in parts]
    return time.perf_counter() - begun, sets[0]


def megatron(prefix: str) -> tuple[float, object]:
    """The same of megatron-core's builder."""
    warnings.filterwarnings("ignore")
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        eod = pad = eos_token_id = 0
        vocab_size = 50_000
        unique_identifiers = OrderedDict(name="benchmark")

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=([prefix], None),
        split=SPLIT,
        path_to_cache=f"{prefix}.cache",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    begun = time.perf_counter()
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [None] * 3, lambda: True, config)
    sets = builder.build()
    return time.perf_counter() - begun, sets[0]


def samples_per_second(dataset) -> float:
    """Of samples at random places, after a thousand that are not counted."""
    places = np.random.default_rng(1).integers(0, len(dataset), SAMPLES + 1000).tolist()
    for place in places[:1000]:
        dataset[place]
    begun = time.perf_counter()
    for place in places[1000:]:
        dataset[place]
    return SAMPLES / (time.perf_counter() - begun)


if __name__ == "__main__":
    run_command(main)
