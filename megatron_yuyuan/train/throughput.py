"""What the time of a step means: tokens and FLOPs per second, the share of the device's peak, memory,
and when the run will end."""

import math
import resource
import sys
import time

import torch

from megatron_yuyuan.config import Config, ModelConfig, TrainingConfig
from megatron_yuyuan.model.flops import block_flops, head_flops
from megatron_yuyuan.model.lora import factor_shapes
from megatron_yuyuan.train.schedule import batch_size, train_iterations
from megatron_yuyuan.train.state import TrainState

PEAK_TFLOPS = {
    "A100": (312.0, 156.0, 19.5),
    "A800": (312.0, 156.0, 19.5),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H200 NVL": (835.5, 417.5, 60.0),
    "H200": (989.4, 494.7, 66.9),
}
"""Part of a CUDA device's name -> its dense peak in TFLOP/s: bfloat16 or float16, TF32, float32 without
TF32. The first that fits counts. Source: NVIDIA's data sheets, whose figures with sparsity are twice
as high."""


def training_flops(model: ModelConfig, tokens: int) -> int:
    """Floating-point operations of the matrix products of one training step on one sample of T
    tokens: forward, and twice as much for the backward.

        6 T (L (4 C^2 + 2 C F) + C V)  +  6 T^2 C L        F the MLP's width, V the padded vocabulary

    With LoRA the backward of a product with a frozen matrix computes no gradient of it: 4 in place of
    the first 6, and 6 T r (C_in + C_out) for each pair of factors.

    The scores above the diagonal, which causal attention never needs, are not counted, nor is what
    a backward computes again: this is the model's work, not the layout's. Equal to
    `num_floating_point_operations` of megatron/training/training.py for this model.
    """
    masked = 2 * tokens * tokens * model.hidden_size  # of a block's forward, half the square
    forward = model.num_layers * (block_flops(model, tokens) - masked) + head_flops(model, tokens)
    if not model.lora_rank:
        return 3 * forward
    factors = sum(map(math.prod, factor_shapes(model).values()))
    frozen = forward - model.num_layers * masked  # attention has as much again below the diagonal
    return 3 * forward - frozen + 6 * tokens * factors


def peak_tflops(device: torch.device, training: TrainingConfig) -> float | None:
    """Dense peak of a device for the products of a run. None where it is not known: on a CPU, and
    on a CUDA device that is not in PEAK_TFLOPS."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    half, tf32, float32 = next(
        (peaks for part, peaks in PEAK_TFLOPS.items() if part in name), (None, None, None)
    )
    if training.bf16 or training.fp16:
        return half
    return float32 if torch.get_float32_matmul_precision() == "highest" else tf32


def samples_left(training: TrainingConfig, state: TrainState) -> int:
    """Samples that a run will still read."""
    if batch_size(state.consumed_samples, training) < training.global_batch_size:
        return training.train_samples - state.consumed_samples  # batches still grow
    return (train_iterations(training) - state.iteration) * training.global_batch_size


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: of CUDA memory what tensors take, on the CPU its
    resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes  # macOS counts bytes


class Throughput:
    """Turns the samples and seconds of each step into figures."""

    def __init__(self, config: Config, device: torch.device, devices: int):
        self._training, self._length = config.training, config.data.seq_length
        self._device, self._devices = device, devices
        self._flops = training_flops(config.model, self._length)
        self._peak = peak_tflops(device, config.training)
        self._begun: float | None = None
        self._samples = 0

    def figures(self, samples: int, seconds: float, after: TrainState) -> dict:
        """Of a step of `samples` samples that led to the state `after`.

        `mfu` is the share of the device's dense peak, and there only where that is known.
        """
        tflops = samples * self._flops / seconds / self._devices / 1e12
        figures = {
            "tokens_per_second": samples * self._length / seconds,
            "tflops_per_device": tflops,
            "memory_bytes": memory_bytes(self._device),
            "eta_seconds": samples_left(self._training, after)
            * self._seconds_per_sample(samples, seconds),
        }
        return figures | {"mfu": tflops / self._peak} if self._peak else figures

    def _seconds_per_sample(self, size: int, seconds: float) -> float:
        """By the clock since the end of this process's first step, which is slower than others, so
        that evaluations and checkpoints are in it. After the first step: that step's own. Samples are
        counted as they are computed, since a loss spike may take a run back."""
        now = time.perf_counter()
        if self._begun is None:
            self._begun = now
            return seconds / size
        self._samples += size
        return (now - self._begun) / self._samples
