"""Float8 in the linear layers: what they compute, with whose scales, what is kept and travels."""

import pytest
import torch
from commands import run, train_flags
from tiny import TINY, Layout, RandomText, build_trainer, largest_difference
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from trajectory import whole_gradients

from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.kernels import Kernels
from megatron_yuyuan.kernels.float8 import E4M3, E5M2
from megatron_yuyuan.parallel.collectives import all_gather_last, part_of_rank, start_all_gather
from megatron_yuyuan.parallel.float8 import Float8Axis
from megatron_yuyuan.parallel.tensor import ColumnParallelLinear, RowParallelLinear
from megatron_yuyuan.validation import validate

B, T, C, C_OUT = 2, 8, 32, 64
RANKS = 2
FLOAT8 = TINY.replace(num_layers=2, micro_batch_size=2, fp8_format="hybrid")


def whole_tensors() -> list[torch.Tensor]:
    """x, W, b and dy, every part of them of another size."""
    torch.manual_seed(0)
    x, weight, bias, dy = (torch.randn(s) for s in ((B, T, C), (C_OUT, C), (C_OUT,), (B, T, C_OUT)))
    for tensor in (x, dy):
        tensor *= torch.linspace(0.1, 2.0, T)[:, None] * torch.linspace(0.1, 2.0, tensor.shape[-1])
    weight *= torch.linspace(0.1, 2.0, C_OUT)[:, None] * torch.linspace(0.1, 2.0, C)
    return [x, weight, bias, dy]


def layer_of_rank(kind, sequence_parallel: bool):
    """The layer on this tensor rank, and its x and dy."""
    x, weight, bias, dy = whole_tensors()
    mesh = init_device_mesh("cpu", (RANKS,))
    axis = Float8Axis(mesh, sequence_parallel, False, Kernels(), E5M2)
    layer, is_column = kind(nn.Linear(C, C_OUT), axis), kind is ColumnParallelLinear
    with torch.no_grad():
        layer.weight.to_local().copy_(weight.chunk(RANKS, 0 if is_column else 1)[axis.rank])
        layer.bias.to_local().copy_(bias.chunk(RANKS)[axis.rank] if is_column else bias)
    outer, inner = (x, dy) if is_column else (dy, x)
    outer = part_of_rank(outer, axis.rank, RANKS) if sequence_parallel else outer
    inner = inner.chunk(RANKS, 2)[axis.rank].contiguous()
    x, dy = (outer, inner) if is_column else (inner, outer)
    return layer, x.clone().requires_grad_(), dy


def whole_results(kind, sequence_parallel: bool) -> list[torch.Tensor]:
    """y, dx and dW, put together from the ranks."""
    layer, x, dy = layer_of_rank(kind, sequence_parallel)
    y = layer(x)
    y = y if kind is ColumnParallelLinear else y[0] + layer.bias.to_local()
    y.backward(dy)
    group = layer.axis.group

    def of_stream(part):
        return start_all_gather(part, group).wait() if sequence_parallel else part

    def of_features(part):
        return all_gather_last(part, group)

    is_column = kind is ColumnParallelLinear
    outer, inner = (of_features, of_stream) if is_column else (of_stream, of_features)
    return [outer(y.detach()), inner(x.grad), layer.weight.grad.full_tensor()]


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x after a way through 8 bits, float64."""
    scale = x.abs().max() / torch.finfo(dtype).max
    return (x / scale).to(dtype).double() * scale.double()


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tp", "sp"])
@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
def test_the_ranks_compute_the_layer_of_whole_rounded_tensors(ranks, kind, sequence_parallel):
    """In float64; what the ranks compute is float32's rounding away, a scale of a part alone is not."""
    x, weight, bias, dy = whole_tensors()
    x8, w8, dy8 = rounded(x, E4M3), rounded(weight, E4M3), rounded(dy, E5M2)
    y, dx = x8 @ w8.t() + bias.double(), dy8 @ w8
    dw = dy8.flatten(0, 1).t() @ x8.flatten(0, 1)
    found = ranks.run(RANKS, whole_results, kind, sequence_parallel)
    for name, mine, expected in zip("y dx dW".split(), found, (y, dx, dw), strict=True):
        assert (mine.double() - expected).abs().max() <= 2e-6 * expected.abs().max(), name
    plain = x.double() @ weight.double().t() + bias.double()
    assert (plain - y).abs().max() > 1e-3 * y.abs().max()  # it is float8
    halves = torch.cat([rounded(half, E4M3) for half in weight.chunk(2, 1)], 1)
    assert (x8 @ halves.t() + bias.double() - y).abs().max() > 1e-4 * y.abs().max()


def kept(sequence_parallel: bool) -> list[tuple]:
    """(dtype, shape) of what a forward keeps for its backward, scales aside."""
    found: list[tuple] = []
    layer, x, _ = layer_of_rank(ColumnParallelLinear, sequence_parallel)
    with saved_tensors_hooks(lambda t: found.append((t.dtype, *t.shape)) or t, lambda t: t):
        layer(x)
    return sorted((each for each in found if len(each) > 1), key=str)


def test_x_is_kept_in_8_bits_and_under_sequence_parallelism_its_part(ranks):
    weight = (torch.float32, C_OUT // RANKS, C)
    assert ranks.run(RANKS, kept, False) == [weight, (E4M3, B, T, C)]
    assert ranks.run(RANKS, kept, True) == [weight, (E4M3, B, T // RANKS, C)]


def trajectory(config, scale_of_part: bool = False):
    """Gradients of the first step, and the losses of a few."""
    if scale_of_part:  # the process ends with the call
        scales = Float8Axis.scales
        Float8Axis.scales = lambda axis, dtype, *tensors, are_parts: scales(
            axis, dtype, *tensors, are_parts=False
        )
    trainer, samples = build_trainer(config), RandomText()
    loss, _ = trainer.gradients(samples)
    gradients = whole_gradients(trainer)
    return gradients, [loss, *(trainer.step(samples)["lm_loss"] for _ in range(3))]


@pytest.fixture(scope="module")
def alone(ranks):
    return {
        config: ranks.run(1, trajectory, config) for config in (FLOAT8, FLOAT8.replace(bf16=True))
    }


LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(data=2),
    pytest.param(Layout(2, 2, 2, True), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_layout_changes_a_scale(ranks, alone, layout):
    """Computed in float32, so that little else is rounded: sums in another order now and then turn an
    8-bit number over, one of thousands; another scale turns them all."""
    expected_gradients, expected = alone[FLOAT8]
    config = layout.of(FLOAT8).replace(micro_batch_size=2)
    gradients, losses = ranks.run(layout.ranks, trajectory, config)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert largest_difference(gradients, expected_gradients)[0] <= 2e-3


def test_the_scale_of_a_part_would_be_seen(ranks, alone):
    config = Layout(tensor=2).of(FLOAT8).replace(micro_batch_size=2)
    gradients, losses = ranks.run(2, trajectory, config, True)
    assert losses != pytest.approx(alone[FLOAT8][1], rel=1e-5)
    assert largest_difference(gradients, alone[FLOAT8][0])[0] > 2e-2


LAYOUTS_BOUND = 3e-2


def test_bf16_around_them_differs_between_layouts_by_its_rounding(ranks, alone):
    layout = Layout(tensor=2, sequence_parallel=True)
    config = layout.of(FLOAT8).replace(micro_batch_size=2, bf16=True)
    _, losses = ranks.run(2, trajectory, config)
    assert losses == pytest.approx(alone[FLOAT8.replace(bf16=True)][1], rel=LAYOUTS_BOUND)


def losses(config, steps: int) -> tuple[float, list[float]]:
    """Validation loss before the first step, and the losses of the steps."""
    trainer, samples = build_trainer(config), RandomText(length=16)
    before = trainer.evaluate(RandomText(length=13))["validation_loss"]
    return before, [trainer.step(samples)["lm_loss"] for _ in range(steps)]


NEAR_BF16 = 6e-2


def test_twenty_steps_stay_near_those_of_bf16(ranks):
    config = TINY.replace(num_layers=2, bf16=True, train_iters=20, micro_batch_size=8)
    bf16, float8, e4m3 = (
        ranks.run(1, losses, config.replace(fp8_format=name), 20)
        for name in ("none", "hybrid", "e4m3")
    )
    assert bf16[0] == float8[0] == e4m3[0]  # an evaluation multiplies in bfloat16
    assert float8[1] == pytest.approx(bf16[1], rel=NEAR_BF16)
    assert e4m3[1] == pytest.approx(bf16[1], rel=NEAR_BF16)
    assert float8[1] != e4m3[1] and float8[1][0] != bf16[1][0]
    assert bf16[1][0] / bf16[1][-1] > 1 + 10 * NEAR_BF16


def lora_losses(config) -> tuple[float, list[str]]:
    """A loss, and which parameters have a gradient."""
    trainer = build_trainer(config)
    loss, _ = trainer.gradients(RandomText())
    parameters = trainer.state.stages[0].named_parameters()
    return loss, [name for name, parameter in parameters if parameter.grad is not None]


def test_a_frozen_matrix_is_multiplied_in_float8_too(ranks):
    lora = FLOAT8.replace(lora_rank=2)
    loss, learned = ranks.run(1, lora_losses, lora)
    assert all("lora_" in name for name in learned) and len(learned) == 16
    assert loss == ranks.run(1, trajectory, FLOAT8)[1][0]  # factors begin at 0
    layout = Layout(tensor=2, sequence_parallel=True).of(lora).replace(micro_batch_size=2)
    assert ranks.run(2, lora_losses, layout)[0] == pytest.approx(loss, rel=1e-5)


def test_a_run_says_who_multiplies_and_refuses_a_cpu(prepared, tmp_path):
    """--kernels auto is not the reference by name."""
    command = train_flags(prepared, tmp_path / "run", "--bf16", "--fp8-format", "hybrid")
    ended = run(*command, status=2)
    assert "fp8_format is given, but the model lives on cpu" in ended.stderr
    ended = run(*command, "--kernels", "reference")
    assert "kernels: reference, float8 hybrid" in ended.stdout


WRONG = [
    ({"bf16": False}, "fp8_format=hybrid without bf16"),
    (
        {"pipeline_model_parallel_size": 2, "pipeline_schedule": "ZBVZeroBubble"},
        "fp8_format=hybrid with pipeline_schedule=ZBVZeroBubble",
    ),
    (
        {"hidden_size": 24, "num_attention_heads": 4},
        "hidden_size / tensor_model_parallel_size is 24",
    ),
    ({"ffn_hidden_size": 40}, "the MLP's width / tensor_model_parallel_size is 40"),
    ({"seq_length": 9, "micro_batch_size": 1}, "a micro batch's tokens are 9"),
]


@pytest.mark.parametrize(("changes", "what"), WRONG, ids=[what for _, what in WRONG])
def test_what_cannot_work_is_refused(changes, what):
    config = FLOAT8.replace(bf16=True)
    with pytest.raises(ConfigErrors, match=what):
        validate(config.replace(**changes), 2 if "pipeline_schedule" in changes else 1)
    validate(config, 1)
