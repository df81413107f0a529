r"""A training step on the CPU beside what others take for it: docs/performance.md holds the results.

    python tools/benchmark/training_cpu.py [--only step tensor layouts loss checkpoint] [--rounds 5] [--tiny]

    step        one process, two threads: transformers' GPT2LMHeadModel with torch's AdamW
    tensor      two processes of one thread, tensor parallel: the same model in plain torch under
                `parallelize_module`
    layouts     pipeline 2 x data 2 x tensor 2, one thread a rank: one process with two threads
    loss        loss_memory.py, with as many rounds
    checkpoint  checkpoint.py, with as many rounds

6 layers, C = 512, 8 heads, T = 256, V = 50304, float32, no dropout, eager, random tokens. Times are
medians of steps; the candidates of a row take turns, step by step (layouts: process by process), so compare
the ratios, not the seconds. All start from the same weights: a row whose candidates find other losses in
the first step, which is not timed, ends there. Needs transformers. --tiny: everything very small, to try it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import Config

CONFIG = Config().replace(
    num_layers=6,
    hidden_size=512,
    num_attention_heads=8,
    vocab_size=50304,
    max_position_embeddings=256,
    seq_length=256,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    micro_batch_size=8,
    global_batch_size=8,
    train_iters=1000,
    clip_grad=1.0,
    device="cpu",
)
TINY = CONFIG.replace(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    vocab_size=128,
    max_position_embeddings=16,
    seq_length=16,
    init_method_std=0.2,
    lr=1e-2,
)
"""Weights and rate are large, so that a fault shows in the loss."""
MICRO_BATCHES = {"micro_batch_size": 2, "global_batch_size": 32}
LAYOUTS = {
    "one process, two threads": (1, MICRO_BATCHES),
    "pipeline 2 x data 2 x tensor 2": (
        8,
        {**MICRO_BATCHES, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    ),
}
"""Name -> ranks, and what it changes in the configuration."""
STEPS_OF_A_LAYOUT = 2
TINY_SCRIPTS = {
    "loss_memory": ["--tokens", "64", "--vocab-size", "128", "--hidden-size", "32"],
    "checkpoint": ["--gigabytes", "0.01"],
}
LOSSES_AGREE = 1e-5
"""Largest relative difference in the first step, between sums taken in another order."""
Candidate = Callable[[int], float]
"""Takes the step of that number and returns its loss."""


class Steps(NamedTuple):
    """What a candidate did: step 0 is not timed."""

    losses: list[float]
    seconds: list[float]


Measured = dict[str, Steps]
"""By the names of the candidates, ours or the simplest first."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the rows that are asked for; or, for one of them, be a process of it."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--tiny", action="store_true", help="very small, to try it")
    parser.add_argument("--side", choices=[*PROCESSES, *LAYOUTS], help="used by the rows")
    options = parser.parse_args(args)
    config = TINY if options.tiny else CONFIG
    if options.side:
        be(config, options.side, options.rounds)
        return
    for row in options.only:
        ROWS[row](config, options.rounds)


def row_step(config: Config, rounds: int) -> None:
    """Against transformers, in one process."""
    tokens = config.training.global_batch_size * config.data.seq_length
    report("training step, one process, two threads", tokens, launch(config, "step", 1, 2, rounds))


def row_tensor(config: Config, rounds: int) -> None:
    """Against torch's own tensor parallelism, in two processes."""
    tokens = config.training.global_batch_size * config.data.seq_length
    report("tensor parallel 2, two processes", tokens, launch(config, "tensor", 2, 1, rounds))


def row_layouts(config: Config, rounds: int) -> None:
    """Eight ranks on the cores of one process."""
    measured: Measured = {name: Steps([], []) for name in LAYOUTS}
    for _ in range(rounds):
        for name, (ranks, _) in LAYOUTS.items():
            steps = launch(config, name, ranks, 2 // min(ranks, 2), STEPS_OF_A_LAYOUT)[name]
            measured[name].losses.extend(steps.losses)
            measured[name].seconds.extend(steps.seconds)
        require_same_loss({name: steps.losses[0] for name, steps in measured.items()})
    tokens = MICRO_BATCHES["global_batch_size"] * config.data.seq_length
    report("micro batch 2, global batch 32", tokens, measured)


def row_loss(config: Config, rounds: int) -> None:
    """Memory of the loss."""
    run_beside("loss_memory", config, rounds)


def row_checkpoint(config: Config, rounds: int) -> None:
    """Saving."""
    run_beside("checkpoint", config, rounds)


def run_beside(script: str, config: Config, rounds: int) -> None:
    """Run another benchmark of this folder, which reports by itself."""
    print(f"\n{script}.py", flush=True)
    program = [sys.executable, str(Path(__file__).with_name(f"{script}.py"))]
    tiny = TINY_SCRIPTS[script] if config is TINY else []
    subprocess.run([*program, "--rounds", str(rounds), *tiny], check=True)


def launch(config: Config, side: str, ranks: int, threads: int, rounds: int) -> Measured:
    """Run processes of this program; what their rank 0 says."""
    program = [__file__, "--side", side, "--rounds", str(rounds)]
    program += ["--tiny"] if config is TINY else []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ended = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), *program],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    said = json.loads(ended.stdout.splitlines()[-1])
    return {name: Steps(*steps) for name, steps in said.items()}


def report(title: str, tokens: int, measured: Measured) -> None:
    """Medians; the ratio is to the first candidate."""
    medians = {name: statistics.median(steps.seconds) for name, steps in measured.items()}
    first = next(iter(measured))
    loss = measured[first].losses[0]
    print(f"\n{title}: median of {len(measured[first].seconds)} (least to most), loss {loss:.5f}")
    for name, (_, times) in measured.items():
        print(
            f"  {name:<44} {medians[name]:7.3f} s ({min(times):.3f} to {max(times):.3f})"
            f" {tokens / medians[name]:7.0f} tokens/s  {medians[name] / medians[first]:5.2f} x",
            flush=True,
        )


def be(config: Config, side: str, rounds: int) -> None:
    """A process of a row; rank 0 says what was measured."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    measured = measure(config, side, rounds)
    if dist.get_rank() == 0:
        print(json.dumps(measured))
    dist.destroy_process_group()


def measure(config: Config, side: str, rounds: int) -> Measured:
    """Candidates in turn, one step each; the first of each is compared and not timed."""
    import torch.distributed as dist

    candidates = layout(config, side) if side in LAYOUTS else PROCESSES[side](config)
    measured: Measured = {name: Steps([], []) for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            dist.barrier()
            begun = time.perf_counter()
            loss = candidate(number)
            if number:
                measured[name].seconds.append(time.perf_counter() - begun)
            measured[name].losses.append(loss)
            if dist.get_rank() == 0:
                print(f"{name}: step {number}, loss {loss:.5f}", file=sys.stderr)
        if not number:
            require_same_loss({name: steps.losses[0] for name, steps in measured.items()})
    return measured


def require_same_loss(losses: dict[str, float]) -> None:
    """Raises RuntimeError where the candidates do not compute the same: their times could not be
    compared."""
    first = next(iter(losses.values()))
    if any(not abs(loss - first) <= LOSSES_AGREE * abs(first) for loss in losses.values()):
        raise RuntimeError(f"the losses of the first step differ: {losses}")


class RandomText:
    """Samples of random tokens, every label learned."""

    def __init__(self, config: Config = CONFIG):
        self.vocab_size, self.seq_length = config.model.vocab_size, config.data.seq_length

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, number: int):
        import numpy as np

        draw = np.random.default_rng(number)
        text = draw.integers(0, self.vocab_size, self.seq_length + 1)
        return text[:-1], text[1:]


def build_trainer(config: Config):
    """Our trainer, on the ranks that were launched, with the kernels that the configuration asks for."""
    from megatron_yuyuan.kernels.choice import choose
    from megatron_yuyuan.kernels.float8 import with_float8
    from megatron_yuyuan.parallel import mesh as mesh_module
    from megatron_yuyuan.train.state import build_state
    from megatron_yuyuan.train.trainer import Trainer

    mesh = mesh_module.start(config.parallel)
    kernels, _ = choose(config.parallel.kernels, mesh.device)
    if config.training.fp8_format != "none":
        kernels = with_float8(kernels, config.parallel.kernels, mesh.device)
    return Trainer(config, build_state(config, mesh, kernels))


def ours(config: Config) -> Candidate:
    """A step of our trainer, as pretrain_gpt.py takes it."""
    trainer, text = build_trainer(config), RandomText(config)
    return lambda _: trainer.step(text)["lm_loss"]


def batches(config: Config):
    """Number of a step -> the batch that our trainer takes in it."""
    from megatron_yuyuan.data.loader import read_batch

    text, size = RandomText(config), config.training.global_batch_size
    return lambda step: read_batch(text, step * size, size, 0, 1, "cpu")


def layout(config: Config, name: str) -> dict[str, Candidate]:
    """Our trainer in a layout."""
    _, changes = LAYOUTS[name]
    return {name: ours(config.replace(**changes))}


def against_transformers(config: Config) -> dict[str, Candidate]:
    """transformers with AdamW as torch chooses it on a CPU, and fused."""
    from training_peers import transformers_step

    return {
        "ours": ours(config),
        "transformers, AdamW": transformers_step(config, batches(config), None),
        "transformers, AdamW(fused=True)": transformers_step(config, batches(config), True),
    }


def against_parallelize_module(config: Config) -> dict[str, Candidate]:
    """torch's DTensor plan with AdamW as torch chooses it, and fused. No gradient is clipped: torch's
    norm takes no mixture of tensors and DTensors."""
    from training_peers import dtensor_step

    return {
        "ours": ours(config.replace(tensor_model_parallel_size=2, clip_grad=0.0)),
        "parallelize_module, AdamW": dtensor_step(config, batches(config), None),
        "parallelize_module, AdamW(fused=True)": dtensor_step(config, batches(config), True),
    }


ROWS = {
    "step": row_step,
    "tensor": row_tensor,
    "layouts": row_layouts,
    "loss": row_loss,
    "checkpoint": row_checkpoint,
}
PROCESSES = {"step": against_transformers, "tensor": against_parallelize_module}

if __name__ == "__main__":
    run_command(main)
