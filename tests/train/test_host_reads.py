"""How often the host waits for the device in a step: once, for loss and gradient norm together, from which
it decides whether the step is taken."""

import importlib
import sys
from collections import Counter

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_yuyuan.errors import DataError

READS = {
    *("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"),
    *("equal", "allclose", "is_nonzero", "masked_select", "unique"),
}
"""Names of torch's functions that end only when the device has computed their result."""
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
"""And of its operators, which functions written in C++ and autograd call by themselves."""


def is_about_ranks() -> bool:
    """Whether torch's DeviceMesh is at work, whose tensor of ranks always lies on the host."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.endswith("device_mesh.py"):
        frame = frame.f_back
    return frame is not None


class Calls(TorchFunctionMode):
    """The calls of READS inside."""

    def __init__(self):
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.counted[name] += name in READS and not is_about_ranks()
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """The calls of OPERATORS inside."""

    def __init__(self):
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        self.counted[name] += name in OPERATORS and not is_about_ranks()
        return function(*args, **(kwargs or {}))


def reads_of_a_step(config, one_more: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """What is read in the second step, as Python and as its operators see it."""
    trainer, samples = build_trainer(config), RandomText()
    trainer.step(samples)
    if one_more:
        compute = trainer.pipeline.forward_backward
        trainer.pipeline.forward_backward = lambda *given: (given[2].item(), compute(*given))[1]
    with Calls() as calls, Operators() as operators:
        trainer.step(samples)
    return +calls.counted, +operators.counted


PLAIN = TINY.replace(hidden_dropout=0.1, num_layers=2)
FP16 = TINY.replace(fp16=True, num_layers=2)
FLOAT8 = TINY.replace(bf16=True, fp8_format="hybrid", num_layers=2)
CASES = [
    (PLAIN, Layout()),
    (FP16, Layout()),
    (PLAIN, Layout(pipeline=2)),
    (FLOAT8, Layout(1, 2, 2, True)),
]


@pytest.mark.parametrize(("config", "layout"), CASES, ids=["plain", "fp16", "pipeline", "float8"])
def test_a_step_reads_its_figures_at_once_and_nothing_else(ranks, config, layout):
    calls, operators = ranks.run(layout.ranks, reads_of_a_step, layout.of(config))
    assert calls == {"tolist": 1}
    assert operators == {}


def test_another_read_would_be_seen(ranks):
    calls, operators = ranks.run(1, reads_of_a_step, PLAIN, True)
    assert calls == {"tolist": 1, "item": 1} and operators == {"_local_scalar_dense": 1}


class NothingLearned(RandomText):
    """Samples of which every label is masked."""

    def __getitem__(self, number: int):
        tokens, labels = super().__getitem__(number)
        return tokens, labels * 0 - 100


def refusal(config) -> tuple[str, bool]:
    """The message of a step without a learned token, and whether the weights stayed as they were."""
    trainer = build_trainer(config)
    before = [p.to_local().clone() for p in trainer.state.stages[0].parameters()]
    try:
        trainer.step(NothingLearned())
    except DataError as error:
        after = [p.to_local() for p in trainer.state.stages[0].parameters()]
        return error.what, all(map(torch.equal, before, after))
    return "", False


def test_a_batch_of_which_nothing_is_learned_is_refused_before_an_update(ranks):
    said, unchanged = ranks.run(
        2, refusal, Layout(data=2).of(TINY.replace(max_skipped_iterations=9))
    )
    assert said == "no token is learned in the batch after sample 0" and unchanged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_host_waits_once_in_a_step(repository, monkeypatch):
    """Counted by torch.cuda.set_sync_debug_mode, with the fused kernels and dropout."""
    monkeypatch.syspath_prepend(repository / "tools" / "benchmark")
    waits = importlib.import_module("machine_gpu").synchronisations(torch.device("cuda", 0))
    assert waits["count"] == 1, waits
