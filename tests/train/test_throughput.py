"""FLOPs of the model as torch counts them, and what a step's time then means."""

from types import SimpleNamespace

import pytest
import torch
from tiny import TINY, RandomText
from torch.utils.flop_counter import FlopCounterMode

from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.train import throughput
from megatron_yuyuan.train.throughput import Throughput, samples_left, training_flops


def product(_into, a: tuple[int, int], b: tuple[int, int], **_) -> int:
    """FLOPs of a matrix product of these shapes."""
    return 2 * a[0] * a[1] * b[1]


def test_flops_are_those_that_torch_counts_less_the_masked_half_of_the_scores():
    """With dropout attention multiplies the whole square, which torch's counter sees."""
    config = TINY.replace(attention_dropout=0.1, ffn_hidden_size=96)
    model, samples = GPT2(config.model), 3
    init_weights(model, seed=1)
    batch = read_batch(RandomText(config), 0, samples, 0, 1, "cpu")
    in_place = {torch.ops.aten.addmm_: product}  # the counter knows only addmm by itself
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        loss, _ = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
        loss.backward()
    length, width, layers = config.data.seq_length, config.model.hidden_size, 8
    masked = 6 * length * length * width * layers
    flops = training_flops(config.model, length)
    assert counter.get_total_flops() == samples * (flops + masked)
    assert masked > flops / 100  # not vacuous


def test_flops_are_megatrons():
    """GPT-2 of 1.5e9 parameters by num_floating_point_operations of megatron/training/training.py
    (commit d98e8a6), its terms multiplied out for this model."""
    shape = {"num_layers": 48, "hidden_size": 1600, "num_attention_heads": 25, "vocab_size": 50257}
    model = TINY.replace(**shape).model
    batch, s, h, layers, v = 16, 1024, 1600, 48, 50304
    projections = 3 * 2 * (h * (h + h + h) + h * h)
    core = 3 * 2 * h / 2 * 2
    mlp = 3 * 2 * h * (4 * h * 2)
    megatrons = batch * s * ((mlp + projections) * layers + 3 * 2 * h * v)
    megatrons += batch * s**2 * core * layers
    assert batch * training_flops(model, s) == megatrons == pytest.approx(1.606e14, rel=1e-3)


def on_device(monkeypatch, name: str) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "half", "tf32", "float32"),
    [
        ("NVIDIA A100-SXM4-40GB", 312.0, 156.0, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 378.0, 51.2),
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA H200 NVL", 835.5, 417.5, 60.0),
        ("NVIDIA GeForce RTX 2080", None, None, None),
    ],
)
def test_the_peak_is_that_of_the_device_in_the_precision_of_the_run(
    monkeypatch, name, half, tf32, float32
):
    device, training = on_device(monkeypatch, name), TINY.training
    precision = {"highest": float32, "high": tf32}
    for value, peak in precision.items():
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda value=value: value)
        assert throughput.peak_tflops(device, training) == peak
        for compute in ({"bf16": True}, {"fp16": True}):
            replaced = TINY.replace(**compute).training
            assert throughput.peak_tflops(device, replaced) == half
    assert throughput.peak_tflops(torch.device("cpu"), training) is None


def test_a_step_of_known_time_on_a_known_device(monkeypatch):
    device = on_device(monkeypatch, "NVIDIA H100 80GB HBM3")
    clock = iter([100.0, 104.0, 112.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    meter = Throughput(TINY.replace(bf16=True), device, devices=2)
    state, etas = SimpleNamespace(), []
    for state.iteration in (1, 2, 3):
        state.consumed_samples = 8 * state.iteration
        figures = meter.figures(8, 0.5, state)
        etas.append(figures["eta_seconds"])
    assert figures["tokens_per_second"] == 8 * 16 / 0.5
    tflops = 8 * training_flops(TINY.model, 16) / 0.5 / 2 / 1e12
    assert figures["tflops_per_device"] == pytest.approx(tflops)
    assert figures["mfu"] == pytest.approx(tflops / 989.4)
    assert figures["memory_bytes"] == 2**30
    # after the first step by its own time, then by the clock since its end: of 5 steps 4, 3, 2 are left
    assert etas == pytest.approx([4 * 0.5, 3 * 4.0, 2 * 6.0])


def test_what_is_left_while_batches_grow_and_when_they_are_whole():
    ramp = TINY.replace(rampup_batch_size=(4, 4, 8), train_iters=0, train_samples=28).training
    steps = []
    for iteration, consumed in enumerate((0, 4, 8, 16, 24)):
        state = SimpleNamespace(iteration=iteration, consumed_samples=consumed)
        steps.append(samples_left(ramp, state))
    assert steps == [28, 24, 16, 8, 0]  # 28 = 4 + 4 + 8 + 8, and 4 that are not read


def test_on_the_cpu_there_is_memory_but_no_share_of_a_peak():
    state = SimpleNamespace(iteration=1, consumed_samples=8)
    figures = Throughput(TINY, torch.device("cpu"), devices=1).figures(8, 0.5, state)
    assert "mfu" not in figures
    assert 50 * 2**20 < figures["memory_bytes"] < 2**40  # torch itself is larger
    assert figures["eta_seconds"] == 4 * 0.5
