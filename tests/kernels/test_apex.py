"""NVIDIA's apex behind the seam. Its calls are played here by torch, since it runs on CUDA alone; the
package of the same name on PyPI is refused."""

import importlib
import sys

import pytest
import torch

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels, apex
from megatron_yuyuan.kernels.choice import choose

LAYER_NORM = """
import torch
calls = []
def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    calls.append(eps)
    return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
"""
MULTI_TENSOR = """
def multi_tensor_applier(op, noop_flag_buffer, tensor_lists, *args):
    return op(2048 * 32, noop_flag_buffer, tensor_lists, *args)
"""
AMP_C = """
import torch
def multi_tensor_adam(chunk, noop, lists, lr, beta1, beta2, eps, step, mode, correction, decay):
    assert noop.dtype == torch.int32 and mode == correction == 1
    gradients, parameters, means, squares = lists
    steps = [torch.tensor(float(step)) for _ in parameters]
    torch._fused_adamw_(parameters, gradients, means, squares, [], steps, lr=lr, beta1=beta1, beta2=beta2,
                        weight_decay=decay, eps=eps, amsgrad=False, maximize=False)
"""
NVIDIAS = {
    "apex/__init__.py": "",
    "apex/normalization/__init__.py": "",
    "apex/normalization/fused_layer_norm.py": LAYER_NORM,
    "apex/multi_tensor_apply/__init__.py": MULTI_TENSOR,
    "fused_layer_norm_cuda.py": "",
    "amp_C.py": AMP_C,
}
PYPIS = {"apex/__init__.py": "from pyramid.session import UnencryptedCookieSessionFactoryConfig"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts modules where Python finds them: installed({path: code})."""

    def forget():
        for name in list(sys.modules):
            if name.split(".")[0] in ("apex", "amp_C", "fused_layer_norm_cuda"):
                del sys.modules[name]
        importlib.invalidate_caches()

    def put(files: dict[str, str]) -> None:
        for path, code in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(code)
        forget()

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    forget()


def test_apexs_layer_norm_and_adam_give_what_the_reference_gives(installed):
    installed(NVIDIAS)
    kernels, reference = apex.kernels(), Kernels()
    torch.manual_seed(0)
    x, residual, weight, bias = (torch.randn(2, 3, 8), torch.randn(2, 3, 8), *torch.randn(2, 8))
    for name, arguments in [
        ("layer_norm", (x, weight, bias, 1e-5)),
        ("norm_beside", (x, weight, bias, 1e-5)),
        ("bias_dropout_add_norm", (x, bias, residual, None, weight, bias, 1e-5)),
    ]:
        ours, theirs = getattr(reference, name)(*arguments), getattr(kernels, name)(*arguments)
        torch.testing.assert_close(theirs, ours)
    assert importlib.import_module("apex.normalization.fused_layer_norm").calls == [1e-5] * 3

    results = []
    for adamw in (reference.adamw, kernels.adamw):
        parameters = [torch.nn.Parameter(p.clone()) for p in (x, weight)]
        groups = [
            {"params": [parameters[0]], "weight_decay": 0.1},
            {"params": [parameters[1]], "weight_decay": 0.0},
        ]
        optimizer = adamw(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
        for slope in (3.0, -1.0):
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, slope)
            norm = optimizer.squared_norm(parameters)
            optimizer.update(0.5)
        moments = [optimizer.state[p][m] for p in parameters for m in ("exp_avg", "exp_avg_sq")]
        results.append([norm, *parameters, *moments])
    torch.testing.assert_close(results[1], results[0])
    assert not torch.equal(results[1][1], x)  # it went somewhere


def test_no_apex(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KernelsError, match="there is no apex") as raised:
        apex.kernels()
    assert "tools/install_apex.sh" in raised.value.remedy


def test_the_other_project_of_that_name_is_recognised(installed):
    installed(PYPIS)
    with pytest.raises(KernelsError, match="is not NVIDIA's") as raised:
        apex.kernels()
    assert "pip uninstall apex, then tools/install_apex.sh" in raised.value.remedy


def test_an_apex_without_its_extensions(installed):
    installed({path: code for path, code in NVIDIAS.items() if "/" in path})
    with pytest.raises(KernelsError, match="no fused_layer_norm_cuda and no amp_C"):
        apex.kernels()


def test_apex_for_a_model_on_the_cpu(installed):
    installed(NVIDIAS)
    with pytest.raises(KernelsError, match="kernels=apex, but the model lives on cpu"):
        choose("apex", torch.device("cpu"))
    kernels, said = choose("apex", torch.device("cuda", 0))
    assert said == "apex" and kernels.adamw is apex.ApexAdamW
