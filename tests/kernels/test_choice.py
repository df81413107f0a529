"""--kernels: what is asked for is what computes, or an error; auto says what it chose, and why."""

from functools import partial

import pytest
import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import DropoutMask, Kernels, VocabularyRows, build, fused
from megatron_yuyuan.kernels.choice import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def absent(target):
    raise KernelsError("the kernels cannot be compiled", "line one\n       line two", "mend it")


@pytest.mark.parametrize(
    ("name", "said"), [("reference", "reference"), ("auto", "reference, on cpu")]
)
def test_on_the_cpu_the_reference_computes(name, said):
    assert choose(name, CPU) == (Kernels(), said)


@pytest.fixture
def played_gpu(monkeypatch):
    """A machine where CUDA's tensors are made on the CPU, and the kernels are built."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a played GPU")
    monkeypatch.setattr(build, "load", lambda target: None)


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_on_cuda_the_kernels_compute_if_they_can_be_built(name, played_gpu, monkeypatch):
    monkeypatch.setattr(fused, "layer_norm", Kernels().layer_norm)
    assert choose(name, GPU) == (fused.KERNELS, "cuda")


def test_kernels_that_are_built_and_do_not_run(played_gpu, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("layer_norm: cudaErrorInsufficientDriver\nException raised from ...")

    monkeypatch.setattr(fused, "layer_norm", fails)
    with pytest.raises(KernelsError, match="do not run on a played GPU") as raised:
        choose("cuda", GPU)
    assert raised.value.why == "layer_norm: cudaErrorInsufficientDriver"
    _, said = choose("auto", GPU)
    assert said.startswith("reference, because the kernels are built and do not run")


def test_auto_goes_on_without_them_and_says_why(monkeypatch):
    monkeypatch.setattr(build, "load", absent)
    why = "reference, because the kernels cannot be compiled: line one line two"
    assert choose("auto", GPU) == (Kernels(), why)


def test_cuda_that_cannot_be_had_is_an_error_with_the_compilers_reason(monkeypatch):
    monkeypatch.setattr(build, "load", absent)
    with pytest.raises(KernelsError, match="line one"):
        choose("cuda", GPU)


def test_cuda_for_a_model_on_the_cpu():
    with pytest.raises(KernelsError, match="kernels=cuda, but the model lives on cpu"):
        choose("cuda", CPU)


def test_compile_is_the_reference_compiled(monkeypatch):
    """By the part of torch.compile that needs no compiler of its own."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    kernels, said = choose("compile", CPU)
    assert said == "compile" and kernels.adamw is Kernels().adamw
    x, vector = torch.randn(2, 3, 8, requires_grad=True), torch.ones(8)
    gradients = []
    for k in (kernels, Kernels()):
        results = []
        for step in range(3):
            mask = DropoutMask(0.5, torch.arange(6).view(2, 3), 7, step, 5)
            s, y = k.bias_dropout_add_norm(x, vector, x, mask, vector, vector, 1e-5)
            results += [s, *k.norm_beside(k.bias_gelu(y, vector), vector, vector, 1e-5)]
        logits, labels = x.detach().flatten(0, 1).clone(), torch.arange(6)
        loss, slope = k.cross_entropy(logits, labels, VocabularyRows(7))
        [gradient] = torch.autograd.grad(sum(r.square().sum() for r in results), x)
        gradients.append([*results, loss, slope, gradient])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
    assert not torch.equal(gradients[0][0], gradients[0][3])  # another step, another mask


@pytest.mark.slow
def test_compile_with_torchs_own_compiler():
    kernels, _ = choose("compile", CPU)
    x, vector = torch.randn(2, 3, 8), torch.ones(8)
    torch.testing.assert_close(kernels.bias_gelu(x, vector), Kernels().bias_gelu(x, vector))
