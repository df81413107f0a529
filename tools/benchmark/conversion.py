"""What conversions of a large model take: wall time and peak memory, beside the bound that is promised.

    python tools/benchmark/conversion.py [--layers 48] [--hidden-size 1600] [--folder DIR]

The model is random, in float32; the folder needs five times its size. Every conversion is a process of
its own, which compares the logits of both sides before it ends. Its peak is the resident memory of the
largest of its processes, the one that compares included. Beside it stands 1.2 times the largest file of the
foreign side, and a layer.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

HEADS, POSITIONS = 8, 1024
CONVERT = Path(__file__).parents[1] / "convert_checkpoint.py"
MIB = 2**20


def main(args: Sequence[str] | None = None) -> None:
    """Write the model, then a line for every conversion."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48, metavar="N")
    parser.add_argument("--hidden-size", type=int, default=1600, metavar="N")
    parser.add_argument("--folder", metavar="DIR", help="on a disk with room")
    parser.add_argument("--write", metavar="RUN", help="only write the random model, as a run")
    options = parser.parse_args(args)
    if options.write:
        write_random(Path(options.write), options.layers, options.hidden_size)
        return
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.folder) as folder:
        convert_all(Path(folder), options)


def write_random(run: Path, layers: int, hidden_size: int) -> None:
    """A run directory of random weights, with a small tokenizer."""
    tokenizer = train_bpe(iter(["Gout is a disease of the joints."]), 280)
    config = Config().replace(
        num_layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        seq_length=POSITIONS,
        vocab_size=tokenizer.vocab_size,
    )
    model = GPT2(config.model)
    init_weights(model, seed=1)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(run, 1, tensors, describe_run(config, tokenizer, 0, None))
    tokenizer.save(run / "tokenizer")


def convert_all(folder: Path, options: Namespace) -> None:
    shape = ["--layers", str(options.layers), "--hidden-size", str(options.hidden_size)]
    measured([__file__, "--write", str(folder / "run"), *shape])
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "run/tokenizer"]
    conversions = {
        "--to hf": ["--load", "run", "--save", "hf"],
        "--from hf": ["--load", "hf", "--save", "run_of_hf"],
        "--to megatron": ["--load", "run", "--save", "megatron"],
        "--from megatron": ["--load", "megatron", "--save", "run_of_megatron", *tokenizer],
    }
    layer = 12 * options.hidden_size**2 * 4
    print("conversion, seconds, peak MiB, 1.2 x the largest file + a layer")
    for name, flags in conversions.items():
        way, side = name.split()
        seconds, peak = measured([str(CONVERT), way, side, *flags], folder)
        files = [path.stat().st_size for path in (folder / side).rglob("*")]
        print(
            f"{name}, {seconds:.0f}, {peak:,.0f}, {(1.2 * max(files) + layer) / MIB:,.0f}",
            flush=True,
        )


def measured(command: list[str], folder: Path | None = None) -> tuple[float, float]:
    """Wall seconds of a Python command, and MiB of its largest process."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


if __name__ == "__main__":
    run_command(main)
