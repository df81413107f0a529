"""The fused kernels as torch sees them, against the reference: on a GPU where there is one, else the same
sources on the CPU, under the emulator, bound as on a GPU."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from kernels import emulated
from kernels.seam import (
    DEVICE,
    EPSILON,
    MASKS,
    SEAM,
    SHAPE,
    TOLERANCE,
    arguments,
    assert_close,
    some_mask,
    tensor,
    with_gradients,
)
from tiny import TINY, RandomText
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.kernels import Kernels, VocabularyRows, build, compilers, fused, fused_adamw
from megatron_yuyuan.kernels.fused_adamw import pieces
from megatron_yuyuan.kernels.operators import SCHEMAS, ops
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.plan import build_stages
from megatron_yuyuan.train.loss_scale import LossScale
from megatron_yuyuan.train.optimizer import build_optimizer
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.trainer import Trainer

REFERENCE = Kernels()


@pytest.fixture(scope="module")
def bound(tmp_path_factory) -> Path:
    """torch.ops.yuyuan on the CPU; the folder of what was built for it.

    The session's emulated kernels stand where an install would have left its own.
    """
    library, installed = Path(emulated.kernels()._name), tmp_path_factory.mktemp("installed")
    shutil.copy(library, installed / compilers.library_name(compilers.EMULATED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "INSTALLED", installed)
        entry = build.built(compilers.EMULATED, tmp_path_factory.mktemp("cache"))
    build.load_binding(entry)
    return entry


@pytest.fixture(autouse=True)
def on_device(bound):
    """What a test makes is made where the kernels run."""
    if DEVICE == "cuda":
        build.load(compilers.CUDA)
    with torch.device(DEVICE):
        yield


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("name", SEAM)
def test_values_and_gradients_are_the_references(name, masked, dtype):
    tensors, mask = arguments(dtype), MASKS[masked]()
    exact = [t.detach().float().requires_grad_() for t in tensors]
    expected = with_gradients(SEAM[name], REFERENCE, exact, mask)
    actual = with_gradients(SEAM[name], fused.KERNELS, tensors, mask)
    assert all(t.dtype == dtype for t in actual)
    assert_close(actual, expected, TOLERANCE[dtype])
    if "dropout" in name and mask is not None:  # not vacuous: another step drops others
        others = with_gradients(SEAM[name], fused.KERNELS, tensors, some_mask(step=4))
        with pytest.raises(AssertionError):
            assert_close(others, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("used", [0, 1], ids=["the sum alone", "the norm alone"])
@pytest.mark.parametrize("name", ["norm_beside", "bias_dropout_add_norm"])
def test_gradients_where_one_of_two_results_is_used(name, used):
    def one(*arguments):
        return [SEAM[name](*arguments)[used]]

    tensors = arguments()
    both = [with_gradients(one, k, tensors, some_mask()) for k in (fused.KERNELS, REFERENCE)]
    assert_close([t for t in both[0] if t.any()], both[1], TOLERANCE[torch.float32])


def test_without_dropout_branch_and_residual_have_one_gradient_that_is_written_once():
    def gradients(mask):
        x, residual, a, b, c = arguments()
        results = fused.bias_dropout_add_norm(x, a, residual, mask, b, c, EPSILON)
        return torch.autograd.grad(sum(r.square().sum() for r in results), (x, residual))

    of_branch, of_residual = gradients(None)
    assert of_branch.data_ptr() == of_residual.data_ptr()
    of_branch, of_residual = gradients(some_mask())
    assert not torch.equal(of_branch, of_residual)


def test_in_float32_the_reference_and_the_kernel_drop_and_add_to_the_same_bits():
    x, residual, bias, *_ = arguments()
    expected = REFERENCE.bias_dropout_add(x, bias, residual, some_mask())
    assert torch.equal(fused.bias_dropout_add(x, bias, residual, some_mask()), expected)


@pytest.mark.parametrize("name", SEAM)
def test_tensors_that_do_not_lie_as_the_kernels_want_them(name):
    """Strided, and beginning off the 16 bytes; and columns that no kernel takes."""
    expected = with_gradients(SEAM[name], REFERENCE, arguments(), some_mask())
    awkward = []
    for t in arguments():
        wide = torch.zeros(*t.shape[:-1], t.shape[-1] + 3)
        wide[..., 1:-2] = t.detach()
        awkward.append(wide[..., 1:-2].requires_grad_())
    assert not awkward[0].is_contiguous() and awkward[2].data_ptr() % 16
    actual = with_gradients(SEAM[name], fused.KERNELS, awkward, some_mask())
    assert_close(actual, expected, TOLERANCE[torch.float32])

    odd = arguments(shape=(2, 3, 13))
    both = [with_gradients(SEAM[name], k, odd, some_mask()) for k in (fused.KERNELS, REFERENCE)]
    assert all(map(torch.equal, *both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_cross_entropy_and_its_gradient(dtype):
    """Of a head whose first row is token 100, with 50 tokens and then padding; no label is elsewhere."""
    logits = tensor(6, 56, seed=1, dtype=dtype, scale=5.0).detach()
    labels, rows = torch.tensor([100, 149, 120, IGNORE, 110, 101]), VocabularyRows(150, 100)
    expected = REFERENCE.cross_entropy(logits.float().clone(), labels, rows)
    loss, gradient = fused.cross_entropy(logits, labels, rows)
    assert gradient.data_ptr() == logits.data_ptr()  # in place
    assert_close([loss, gradient], list(expected), TOLERANCE[dtype])
    assert not gradient[:, 50:].any() and not gradient[3].any() and gradient[4].any()


def test_longer_rows_than_a_kernel_takes_go_to_the_reference():
    """Asked all the same, it fails with the name that CUDA gives the error."""
    x, vector = torch.randn(2, 8200), torch.ones(8200)
    with pytest.raises(RuntimeError, match="layer_norm: cudaErrorInvalidValue"):
        ops.layer_norm(x, vector, vector, EPSILON)
    for name in ("layer_norm", "norm_beside", "bias_dropout_add_norm", "causal_softmax"):
        given = (x[None], x[None], vector, vector, vector, None)
        ours, theirs = (SEAM[name](kernels, *given) for kernels in (fused.KERNELS, REFERENCE))
        assert all(map(torch.equal, ours, theirs))


def test_the_limits_are_those_of_the_header():
    header = (emulated.SOURCES / "launchers.h").read_text()
    for module, name in [
        (fused, "NORM_COLUMNS"),
        (fused, "SOFTMAX_COLUMNS"),
        (fused_adamw, "PIECE"),
    ]:
        assert f"YUYUAN_{name} = {getattr(module, name)} }};" in header


def test_cross_entropy_refuses_logits_that_it_cannot_overwrite():
    logits, labels = torch.zeros(4, 16)[:, :8], torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="contiguous and aligned"):
        ops.cross_entropy_gradient(logits, labels, torch.zeros(4), torch.ones(4), 0, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, v: ops.bias_gelu(x, v[:8]), "dtypes and sizes fit"),
        (lambda x, v: ops.bias_gelu(x, v.half()), "dtypes and sizes fit"),
        (lambda x, v: ops.bias_gelu(x.double(), v.double()), "float32, float16 or bfloat16"),
        (lambda x, v: ops.bias_gelu(x[..., :12], v[:12]), "columns by 8, not 12"),
        (
            lambda x, v: ops.bias_dropout_add(x, None, None, torch.arange(5), 1, 1.0, 0, 0, 0),
            "dtypes and sizes fit",
        ),
        (lambda x, v: ops.squared_norm(torch.zeros(2, 5, dtype=torch.int64)), "6 contiguous words"),
    ],
)
def test_what_no_kernel_takes_is_refused_and_never_read(wrong, message):
    with pytest.raises(RuntimeError, match=message):
        wrong(torch.zeros(SHAPE), torch.zeros(SHAPE[-1]))


def samples() -> dict[str, tuple]:
    """Arguments of every operator."""
    x, residual, a, b, c = (t.detach() for t in arguments())
    dropout, statistic = fused.numbers(some_mask()), torch.ones(SHAPE[:-1])
    labels, sums = torch.tensor([1, 2]), torch.ones(2)
    parameter = torch.nn.Parameter(torch.ones(9))
    parameter.grad = torch.ones(9)
    moments = {name: torch.zeros(9) for name in ("exp_avg", "exp_avg_sq")}
    rows = pieces(parameter, moments, 0.1, True)
    table = torch.from_numpy(rows.view("int64").reshape(-1, 6)).to(DEVICE)
    samples.alive = parameter, moments  # the table holds their addresses
    return {
        "layer_norm": (x, a, b, EPSILON),
        "layer_norm_backward": (x, residual, x, a, statistic, statistic),
        "bias_dropout_add": (x, a, residual, *dropout),
        "bias_dropout_add_backward": (x, *dropout),
        "bias_dropout_add_norm": (x, a, residual, *dropout, b, c, EPSILON),
        "bias_dropout_add_norm_backward": (x, None, x, a, statistic, statistic, *dropout),
        "bias_gelu": (x, a),
        "bias_gelu_backward": (x, x, a),
        "cross_entropy": (torch.ones(2, 8), labels, 0, 7),
        "cross_entropy_gradient": (torch.ones(2, 8), labels, sums, sums, 0, 7),
        "causal_softmax": (x, 0.5),
        "causal_softmax_backward": (x, x, 0.5),
        "adamw": (table, torch.ones(()), 1e-3, 0.9, 0.99, 1e-8, 0.1, 0.01),
        "squared_norm": (table,),
    }


DIFFERENTIABLE = (
    "layer_norm",
    "bias_dropout_add",
    "bias_dropout_add_norm",
    "bias_gelu",
    "causal_softmax",
)


@pytest.mark.parametrize("name", [schema.split("(")[0] for schema in SCHEMAS])
def test_torch_finds_nothing_wrong_with_an_operator(name):
    given = samples()[name]
    if name in DIFFERENTIABLE:
        given = tuple(
            a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in given
        )
    torch.library.opcheck(getattr(ops, name).default, given)


class Called(TorchDispatchMode):
    """The names of the operators inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_without_dropout_one_gradient_is_written_for_both_and_read_no_more():
    x, residual, a, b, c = arguments()
    total, y = fused.KERNELS.bias_dropout_add_norm(x, a, residual, None, b, c, EPSILON)
    with Called() as called:
        dx, dresidual = torch.autograd.grad((total.sum() + y.square().sum()), (x, residual))
    assert dx.data_ptr() == dresidual.data_ptr()
    behind = called.names[called.names.index("bias_dropout_add_norm_backward") + 1 :]
    assert not [name for name in behind if name not in ("detach", "view")]
    dropout = fused.numbers(None)
    given = (y.detach(), None, x.detach(), b.detach(), *2 * [torch.ones(SHAPE[:-1])], *dropout)
    torch.library.opcheck(ops.bias_dropout_add_norm_backward.default, given)


def layer(kernels: Kernels, x, residual, a, b, c, mask) -> list[Tensor]:
    """All functions of a block, one after another."""
    total, y = kernels.bias_dropout_add_norm(x, a, residual, mask, b, c, EPSILON)
    total, y = kernels.norm_beside(total + kernels.bias_gelu(y, a), b, c, EPSILON)
    return [kernels.bias_dropout_add(y, c, total, mask), kernels.dropout(y, mask)]


def test_torch_compile_takes_the_operators_whole_and_the_step_as_a_number_that_changes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    tensors = arguments()

    @functools.partial(torch.compile, backend=backend, fullgraph=True)
    def compiled(step, *tensors):
        return layer(fused.KERNELS, *tensors, some_mask(step=step))

    for step in range(4):
        expected = with_gradients(layer, REFERENCE, tensors, some_mask(step=step))
        actual = with_gradients(lambda _, *t: compiled(step, *t[:-1]), None, tensors, None)  # noqa: B023
        assert_close(actual, expected, TOLERANCE[torch.float32])
    assert len(graphs) == 2  # of the first step, then of any


def test_activation_checkpointing_draws_the_same_masks_again():
    tensors, mask = arguments(), some_mask()

    def again(kernels, *tensors_and_mask):
        return checkpoint(layer, kernels, *tensors_and_mask, use_reentrant=False)

    expected = with_gradients(layer, fused.KERNELS, tensors, mask)
    actual = with_gradients(again, fused.KERNELS, tensors, mask)
    assert all(map(torch.equal, actual, expected))


SMALL = TINY.replace(
    num_layers=2, hidden_dropout=0.1, train_iters=20, micro_batch_size=4, global_batch_size=4
)


def twenty_losses(config, entry: Path) -> list[list[float]]:
    """Of a model under FSDP2 on the ranks of the process group: by the reference, and by the kernels of
    `entry`."""
    if config.parallel.device == "cuda":
        build.load(compilers.CUDA)
    else:
        build.load_binding(entry)
    mesh, data = mesh_module.start(config.parallel), RandomText(config)
    losses = []
    for kernels in (REFERENCE, fused.KERNELS):
        stages = build_stages(config, mesh, kernels)
        optimizer = build_optimizer(stages, config.optimizer)
        state = TrainState(stages, optimizer, mesh, LossScale(config.training))
        trainer = Trainer(config, state)
        losses.append([trainer.step(data)["lm_loss"] for _ in range(20)])
    return losses


@pytest.mark.parametrize("tensor_ranks", [1, 2])
def test_a_model_trained_20_steps_with_the_kernels_is_the_references(ranks, bound, tensor_ranks):
    config = SMALL.replace(tensor_model_parallel_size=tensor_ranks)
    expected, actual = ranks.run(tensor_ranks, twenty_losses, config, bound)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert actual != expected and expected[-1] < expected[0] - 0.3  # other bits, and it learned
