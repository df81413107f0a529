r"""Training steps on one GPU: tokens and FLOP per second, MFU, memory. docs/performance.md holds the results.

    python tools/benchmark/training_gpu.py --out FOLDER [--rows ours|peers] [--seconds 420] [--profile]

    ours   every size and micro batch with --kernels cuda, compile, reference
    peers  ours beside transformers' GPT2LMHeadModel, as it is and compiled, and megatron-core's GPTModel

A row is an optimizer step on a global batch of 8 micro batches of 1024 random tokens a sample: median of
--steps after three that do not count. All keep float32 weights and moments and compute in bfloat16, with the
same dropout, AdamW (matrices decayed) and clipping. Rows that are in FOLDER are not measured again. With
--device cpu everything runs at a tiny size, to try it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, parse_config, run_command
from megatron_yuyuan.config import Config

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
WIDTHS = {
    "3.5b": ["--config", str(CONFIGS / "yuyuan_3.5b.toml")],
    "1.3b": "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --vocab-size 50257".split(),
    "124m": ["--config", str(CONFIGS / "gpt2_124m.toml")],
    "tiny": "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 100".split(),
}
"""Size -> its shape, as flags. 1.3b: the width and depth of GPT-3 XL, heads of 128."""
MICRO_BATCHES = 8
WARM_UP = 3
"""Steps that do not count. A compiled kernel is compiled again where a step is 1, and where it is more."""
Step = Callable[[int], float]
"""Takes the optimizer step of that number and returns its loss."""


@dataclass(frozen=True)
class Row:
    """One contender at one size."""

    size: str
    contender: str
    """A value of --kernels for ours, or a name in training_gpu_peers.CONTENDERS."""
    micro_batch: int
    dropout: float = 0.1
    """Of hidden states and attention weights, the latter by torch's generator inside SDPA."""
    fp8_format: str = "none"
    """Of ours alone. MFU remains the share of bfloat16's peak."""

    def __str__(self) -> str:
        text = (
            f"{self.size}, {self.contender}, micro batch {self.micro_batch}, dropout {self.dropout}"
        )
        return text if self.fp8_format == "none" else f"{text}, float8 {self.fp8_format}"

    @property
    def config(self) -> Config:
        tiny = self.size == "tiny"
        config = parse_config("", WIDTHS[self.size])
        return config.replace(
            seq_length=16 if tiny else 1024,
            max_position_embeddings=16 if tiny else 1024,
            hidden_dropout=self.dropout,
            attention_dropout=self.dropout,
            attention_dropout_rng="torch" if self.dropout else "counter",
            micro_batch_size=self.micro_batch,
            global_batch_size=MICRO_BATCHES * self.micro_batch,
            train_iters=1000,
            lr_warmup_iters=100,
            clip_grad=1.0,
            bf16=True,
            fp8_format=self.fp8_format,
        )


def rows_of_ours(on_gpu: bool) -> list[Row]:
    """The most valuable first: a stage may run out of time."""
    if not on_gpu:
        return [
            Row("tiny", "reference", 2),
            Row("tiny", "reference", 2, 0.0),
            Row("tiny", "reference", 2, fp8_format="hybrid"),
            Row("tiny", "cuda", 2),
        ]
    rows = [Row("3.5b", "cuda", 16), Row("3.5b", "cuda", 8), Row("3.5b", "compile", 8)]
    rows += [Row("3.5b", kernels, 8, fp8_format="hybrid") for kernels in ("cuda", "compile")]
    rows += [Row("3.5b", "cuda", 16, 0.0), Row("3.5b", "cuda", 8, 0.0)]
    rows += [Row("3.5b", "reference", 8), Row("3.5b", "cuda", 4)]
    for size, micro_batch in (("1.3b", 16), ("124m", 32)):
        rows += [Row(size, kernels, micro_batch) for kernels in ("cuda", "compile", "reference")]
    for micro_batch in (16, 4):
        rows += [Row("3.5b", kernels, micro_batch) for kernels in ("compile", "reference")]
    return rows


def rows_with_peers(on_gpu: bool) -> list[Row]:
    """Ours beside the others in one process, size by size."""
    others = ("transformers", "transformers, compiled", "megatron-core")
    if not on_gpu:
        return [Row("tiny", contender, 2) for contender in ("reference", "transformers", others[2])]
    return [
        Row(size, contender, micro_batch)
        for size, micro_batch in (("3.5b", 8), ("1.3b", 8), ("124m", 16), ("3.5b", 4))
        for contender in ("cuda", *others)
    ]


def ours_on(device) -> str:
    """The kernels that ours is measured with. By name: `auto` could be the reference, unseen."""
    return "cuda" if device.type == "cuda" else "reference"


def main(args: Sequence[str] | None = None) -> None:
    """Measure the rows that are asked for and not yet in FOLDER."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", choices=("ours", "peers"), default="ours")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=420, help="begin no row after so many")
    parser.add_argument("--steps", type=int, default=3, metavar="N")
    parser.add_argument(
        "--profile", action="store_true", help="also record a step, and save its trace"
    )
    options = parser.parse_args(args)
    import torch
    from gpu_measure import Results, ceilings, describe_machine

    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    stage = "training" if options.rows == "ours" else "peers"
    results = Results(options.out / f"{stage}.json", device, options.seconds)
    if not results.about:
        results.describe(describe_machine(device) | ceilings(device))
    rows = (rows_of_ours if options.rows == "ours" else rows_with_peers)(device.type == "cuda")
    for row in rows:
        results.measure(str(row), partial(measured, row, options, results.about))
        if options.profile and row == rows[0]:
            trace = options.out / "trace.json.gz"
            results.measure("profile", partial(profiled, row, device, trace))
    results.finish()


def measured(row: Row, options, about: dict) -> dict:
    """One row."""
    import torch

    from megatron_yuyuan.model.attention_backend import describe_attention
    from megatron_yuyuan.train.throughput import memory_bytes

    device = torch.device(options.device)
    step = build(row, device)
    losses, seconds = [], []
    for number in range(WARM_UP + options.steps):
        begun = time.perf_counter()
        losses.append(step(number))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    attention = describe_attention(row.config.model, torch.bfloat16, device)
    figures = speed(row.config, statistics.median(seconds[WARM_UP:]), device, about)
    counted = row.contender == "cuda" and row.fp8_format == "none"
    predicted = predicted_bytes(row.config) if counted else None
    return {
        **vars(row),
        "attention": "its own" if row.contender == "megatron-core" else attention,
        "losses": losses,
        "seconds": seconds[WARM_UP:],
        **figures,
        "memory_bytes": memory_bytes(device),
        "predicted_bytes": predicted,
    }


def speed(config: Config, seconds: float, device, about: dict) -> dict:
    """Figures of a step. Two counts of FLOPs: the exact one leaves out the scores above the diagonal,
    that of Narayanan et al. 2021, 72 B T L C^2 (1 + T / 6C + V / 12LC), has them."""
    from megatron_yuyuan.model.flops import block_flops, head_flops
    from megatron_yuyuan.train.throughput import peak_tflops, training_flops

    model, length = config.model, config.data.seq_length
    samples = config.training.global_batch_size
    exact = samples * training_flops(model, length) / seconds
    forward = model.num_layers * block_flops(model, length) + head_flops(model, length)
    peak = peak_tflops(device, config.training)
    return {
        "tokens_per_second": samples * length / seconds,
        "tflops": exact / 1e12,
        "tflops_megatron_formula": 3 * samples * forward / seconds / 1e12,
        "mfu": exact / 1e12 / peak if peak else None,
        "share_of_measured_matmul": exact / about["matmul_flops_per_second"],
    }


def predicted_bytes(config: Config) -> int:
    """Peak memory of a step on one device with fused kernels, without recomputation.

    | what                                                   | bytes                          |
    |--------------------------------------------------------|--------------------------------|
    | float32 weights, two moments, accumulated gradients    | 16 a parameter                 |
    | gathered bfloat16 weights                              | 2 a parameter                  |
    | activations: residual and norm twice, q, k, v, their   | 32 C a token and layer         |
    |   mixture, and the MLP's 4C before and after gelu      |                                |
    | attention's log-sum-exp, statistics of two norms       | 4 N + 16 a token and layer     |
    | embedding, ln_f and the gradient of its output         | 6 C a token                    |
    | gradient of the head's weight in float32               | 4 V C                          |
    """
    m = config.model
    tokens = config.training.micro_batch_size * config.data.seq_length
    layers = m.num_layers * (32 * m.hidden_size + 4 * m.num_attention_heads + 16)
    head = 4 * m.padded_vocab_size * m.hidden_size
    return 18 * m.num_parameters + tokens * (layers + 6 * m.hidden_size) + head


def build(row: Row, device) -> Step:
    """The contender, ready for its first step."""
    from training_cpu import build_trainer
    from training_gpu_peers import CONTENDERS

    text = random_text(row.config)
    if row.contender in CONTENDERS:
        return CONTENDERS[row.contender](row.config, batches(row.config, text, device), device)
    config = row.config.replace(kernels=row.contender, device=device.type)
    trainer = build_trainer(config)
    return lambda _: trainer.step(text)["lm_loss"]


def random_text(config: Config):
    """Samples of random tokens of the model's vocabulary."""
    from training_cpu import RandomText

    text = RandomText()
    text.vocab_size, text.seq_length = config.model.vocab_size, config.data.seq_length
    return text


def batches(config: Config, text, device) -> Callable[[int], Iterator]:
    """The micro batches of a step, as our trainer takes them."""
    from megatron_yuyuan.data.loader import read_batch

    size = config.training.global_batch_size

    def micro_batches(step: int) -> Iterator:
        batch = read_batch(text, step * size, size, 0, 1, device)
        yield from batch.split(MICRO_BATCHES)

    return micro_batches


def profiled(row: Row, device, trace: Path) -> dict:
    """Record a step of a row in a Chrome trace; what the GPU did in it."""
    from gpu_trace import shares
    from torch.profiler import profile

    step = build(row, device)
    for number in range(WARM_UP):
        step(number)
    with profile() as recorder:
        step(WARM_UP)
    recorder.export_chrome_trace(str(trace))
    return {**vars(row), "trace": trace.name, "shares": shares(trace)}


if __name__ == "__main__":
    run_command(main)
