r"""A training step on the CPU beside what others take for it: docs/performance.md holds the results.

    python tools/benchmark/training_cpu.py [--only step tensor layouts] [--rounds 5]

    step      one process, two threads: transformers' GPT2LMHeadModel with torch's AdamW
    tensor    two processes of one thread, tensor parallel: the same model under torch's `parallelize_module`
    layouts   pipeline 2 x data 2 x tensor 2, one thread a rank: one process with two threads

6 layers, C = 512, 8 heads, T = 256, V = 50304, float32, no dropout, eager, random tokens. Times are
medians of steps; the candidates of a row take turns, step by step (layouts: process by process), so compare
the ratios, not the seconds. Needs transformers.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

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
MICRO_BATCHES = CONFIG.replace(micro_batch_size=2, global_batch_size=32)
LAYOUTS = {
    "one process, two threads": (1, MICRO_BATCHES),
    "pipeline 2 x data 2 x tensor 2": (
        8,
        MICRO_BATCHES.replace(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
    ),
}
STEPS_OF_A_LAYOUT = 2
Seconds = dict[str, list[float]]
Candidate = Callable[[int], float]
"""Takes the step of that number and returns its loss."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the rows that are asked for; or, for one of them, be a process of it."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--side", choices=[*PROCESSES, *LAYOUTS], help="used by the rows")
    options = parser.parse_args(args)
    if options.side:
        be(options.side, options.rounds)
        return
    for row in options.only:
        ROWS[row](options.rounds)


def row_step(rounds: int) -> None:
    """Against transformers, in one process."""
    tokens = CONFIG.training.global_batch_size * CONFIG.data.seq_length
    report("training step, one process, two threads", tokens, launch("step", 1, 2, rounds))


def row_tensor(rounds: int) -> None:
    """Against torch's own tensor parallelism, in two processes."""
    tokens = CONFIG.training.global_batch_size * CONFIG.data.seq_length
    report("tensor parallel 2, two processes", tokens, launch("tensor", 2, 1, rounds))


def row_layouts(rounds: int) -> None:
    """Eight ranks on the cores of one process."""
    seconds: Seconds = {name: [] for name in LAYOUTS}
    for _ in range(rounds):
        for name, (ranks, _) in LAYOUTS.items():
            seconds |= {name: seconds[name] + launch(name, ranks, 2 // min(ranks, 2), 1)[name]}
    tokens = MICRO_BATCHES.training.global_batch_size * CONFIG.data.seq_length
    report("micro batch 2, global batch 32", tokens, seconds)


def launch(side: str, ranks: int, threads: int, rounds: int) -> Seconds:
    """Run processes of this program; what their rank 0 says."""
    program = [__file__, "--side", side, "--rounds", str(rounds)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ended = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), *program],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def report(title: str, tokens: int, seconds: Seconds) -> None:
    """Medians; the ratio is to the first candidate."""
    print(f"\n{title}: median of {len(next(iter(seconds.values())))} (least to most)")
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {name:<44} {median:7.3f} s ({min(times):.3f} to {max(times):.3f})"
            f" {tokens / median:7.0f} tokens/s  {median / first:5.2f} x",
            flush=True,
        )


def be(side: str, rounds: int) -> None:
    """A process of a row: candidates in turn, one step each, the first of each uncounted."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if side in LAYOUTS:
        candidates, rounds = {side: ours(LAYOUTS[side][1])}, STEPS_OF_A_LAYOUT
    else:
        candidates = PROCESSES[side]()
    seconds: Seconds = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            dist.barrier()
            begun = time.perf_counter()
            loss = candidate(number)
            seconds[name].append(time.perf_counter() - begun)
            if dist.get_rank() == 0:
                print(f"{name}: step {number}, loss {loss:.5f}", file=sys.stderr)
    if dist.get_rank() == 0:
        print(json.dumps({name: times[1:] for name, times in seconds.items()}))
    dist.destroy_process_group()


class RandomText:
    """Samples of random tokens, every label learned."""

    vocab_size, seq_length = CONFIG.model.vocab_size, CONFIG.data.seq_length

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
    from megatron_yuyuan.train.loop import Trainer
    from megatron_yuyuan.train.state import build_state

    mesh = mesh_module.start(config.parallel)
    kernels, _ = choose(config.parallel.kernels, mesh.device)
    if config.training.fp8_format != "none":
        kernels = with_float8(kernels, config.parallel.kernels, mesh.device)
    return Trainer(config, build_state(config, mesh, kernels))


def ours(config: Config) -> Candidate:
    """A step of our trainer, as pretrain_gpt.py takes it."""
    trainer = build_trainer(config)
    return lambda _: trainer.step(RandomText())["lm_loss"]


def batch_of(step: int):
    """The batch that our trainer takes in that step."""
    from megatron_yuyuan.data.loader import read_batch

    size = CONFIG.training.global_batch_size
    return read_batch(RandomText(), step * size, size, 0, 1, "cpu")


def against_transformers() -> dict[str, Candidate]:
    """transformers with AdamW as torch chooses it on a CPU, and fused."""
    from training_peers import transformers_step

    return {
        "ours": ours(CONFIG),
        "transformers, AdamW": transformers_step(CONFIG, batch_of, None),
        "transformers, AdamW(fused=True)": transformers_step(CONFIG, batch_of, True),
    }


def against_parallelize_module() -> dict[str, Candidate]:
    """torch's DTensor plan with AdamW as torch chooses it, and fused. No gradient is clipped: torch's
    norm takes no mixture of tensors and DTensors."""
    from training_peers import dtensor_step

    return {
        "ours": ours(CONFIG.replace(tensor_model_parallel_size=2, clip_grad=0.0)),
        "parallelize_module, AdamW": dtensor_step(CONFIG, batch_of, None),
        "parallelize_module, AdamW(fused=True)": dtensor_step(CONFIG, batch_of, True),
    }


ROWS = {"step": row_step, "tensor": row_tensor, "layouts": row_layouts}
PROCESSES = {"step": against_transformers, "tensor": against_parallelize_module}

if __name__ == "__main__":
    run_command(main)
