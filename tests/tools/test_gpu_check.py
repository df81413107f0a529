"""tools/gpu_check.sh and the benchmarks it runs, without a GPU: their order, what is kept and started
again, what is compared, counted and written. Only CUDA itself is left for a machine that has it."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY

from megatron_yuyuan.errors import KernelsError
from megatron_yuyuan.kernels import Kernels, choice, reference
from megatron_yuyuan.model.attention_backend import backends_chosen
from megatron_yuyuan.parallel import mesh
from megatron_yuyuan.validation import validate

CPU = torch.device("cpu")


@pytest.fixture
def benchmark(repository, monkeypatch):
    """benchmark("gpu_trace") is that module of tools/benchmark."""
    monkeypatch.syspath_prepend(repository / "tools" / "benchmark")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nothing here is large enough for two
    yield importlib.import_module
    torch.set_num_threads(threads)
    mesh.stop()


@pytest.fixture
def training_gpu(benchmark, monkeypatch):
    """That module; a step has two micro batches."""
    module = benchmark("training_gpu")
    monkeypatch.setattr(module, "MICRO_BATCHES", 2)
    return module


# The script, with a python that only notes its arguments.

STUB = """#!/usr/bin/env bash
[ "$1" = -c ] && exit "${MISSING:-0}"
name=$(basename -- "$1" .py)
[ "$name" = -m ] && name=pytest
echo "$name ${*:2}" >>"$CALLS"
[ "$name" = pytest ] && sleep "${SLEEP:-0}"
exit "$(cat "$CALLS.$name" 2>/dev/null || echo 0)"
"""


@pytest.fixture
def check(repository, tmp_path):
    """check(*flags, ends={program: status}) runs the script; returns (status, what it said, the programs it ran)."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*flags, ends: dict[str, int] | None = None, **environment):
        calls.write_text("")
        for old in tmp_path.glob("calls.*"):
            old.unlink()
        for program, status in (ends or {}).items():
            (tmp_path / f"calls.{program}").write_text(str(status))
        ended = subprocess.run(
            ["bash", repository / "tools/gpu_check.sh", "--out", tmp_path / "out", *flags],
            env={**os.environ, "PYTHON": str(stub), "CALLS": str(calls), **environment},
            capture_output=True,
            text=True,
        )
        programs = [line.split()[0] for line in calls.read_text().splitlines()]
        return ended.returncode, ended.stdout + ended.stderr, programs

    return run


MEASURED = ["machine_gpu", "kernels_gpu", "pytest", "kernels_gpu", "training_gpu", "training_gpu"]
FOLDERS = {path.parent.name for path in Path(__file__).parents[1].glob("*/test_*.py")} | {"root"}
"""Of tests: a call of pytest each."""
ALL = [*MEASURED, *len(FOLDERS) * ["pytest"]]


def test_the_stages_in_their_order_and_once(check):
    assert check("--device", "cpu")[::2] == (0, [*ALL, "gpu_report"])
    status, said, programs = check("--device", "cpu")
    assert (status, programs, said.count("done before")) == (0, ["gpu_report"], len(ALL))


def test_one_stage_alone(check):
    assert check("--only", "peers")[::2] == (0, ["training_gpu", "gpu_report"])
    status, said, programs = check("--only", "pears")
    assert status == 2 and "no stage pears" in said and not programs
    assert check("--help")[0] == 2


@pytest.mark.parametrize(
    ("ends", "expected", "word"),
    [
        ({"training_gpu": 75}, 75, "not finished, start again"),
        ({"kernels_gpu": 1}, 1, "FAILED with status 1"),
        ({"pytest": 1, "training_gpu": 75}, 1, "FAILED with status 1"),
    ],
)
def test_what_did_not_succeed_is_run_again(check, ends, expected, word):
    """Everything else goes on meanwhile."""
    status, said, programs = check("--device", "cpu", ends=ends)
    assert status == expected and word in said and programs == [*ALL, "gpu_report"]
    again = [program for program in ALL if program in ends]
    assert check("--device", "cpu")[::2] == (0, [*again, "gpu_report"])


def test_the_suite_has_every_folder_of_tests(check):
    _, said, programs = check("--device", "cpu", "--only", "suite")
    begun = re.findall(r"suite-(\w+): at most", said)
    assert begun[0] == "parallel" and sorted(begun) == sorted(FOLDERS)
    assert programs == [*len(FOLDERS) * ["pytest"], "gpu_report"]


def test_the_suite_goes_on_where_it_was(check):
    """Its time is up before the second folder; a folder that was begun in the full time is not begun again."""
    slow = {"SLEEP": "2", "SUITE_SECONDS": "61"}
    status, said, programs = check("--device", "cpu", "--only", "suite", **slow)
    assert (status, programs) == (75, ["pytest", "gpu_report"])
    assert "suite-parallel: at most 61 s" in said and "suite-train: no time left" in said
    status, said, programs = check("--device", "cpu", "--only", "suite", **slow)
    assert (status, programs) == (75, ["pytest", "gpu_report"])
    assert "suite-parallel: done before" in said and "suite-checkpoint: no time left" in said


def test_no_pytest_is_said(check):
    status, said, programs = check("--device", "cpu", "--only", "build+tests", MISSING="1")
    assert status == 0 and "there is no pytest here" in said and "pytest" not in programs


# Results that survive their process.


def out_of_memory() -> dict:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def broken() -> dict:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")


def test_rows_are_kept_and_not_measured_again(benchmark, tmp_path):
    Results = benchmark("gpu_measure").Results
    path = tmp_path / "rows.json"
    first = Results(path, CPU, 60)
    first.describe({"date": "today"})
    first.measure("a", lambda: {"seconds": 1.0})
    first.measure("b", out_of_memory)
    with pytest.raises(SystemExit) as end:  # this process can compute nothing more
        first.measure("c", broken)
    second = Results(path, CPU, 60)
    second.describe({"date": "tomorrow"})
    second.measure("a", lambda: {"seconds": 2.0})
    assert end.value.code == 75 and second.about == {"date": "today"}
    assert second.rows["a"] == {"seconds": 1.0} and second.rows["b"] == {
        "not_measured": "out of memory"
    }
    assert second.rows["c"]["not_measured"].endswith(
        "illegal memory access was encountered and more"
    )
    second.finish()


def test_rows_without_time_are_left_for_the_next_start(benchmark, tmp_path):
    Results = benchmark("gpu_measure").Results
    results = Results(tmp_path / "rows.json", CPU, -1)
    results.measure("late", lambda: {"seconds": 1.0})
    with pytest.raises(SystemExit) as end:
        results.finish()
    assert end.value.code == 75 and results.left == ["late"] and not results.rows


def test_a_wrong_result_is_a_failure_to_the_end(benchmark, tmp_path):
    Results = benchmark("gpu_measure").Results
    for work in (lambda: {"agrees": False}, lambda: {"agrees": True}):  # the second is not asked
        results = Results(tmp_path / "rows.json", CPU, 60)
        results.measure("gelu", work)
        with pytest.raises(SystemExit) as end:
            results.finish()
        assert end.value.code == "wrong results: gelu"


def test_kernels_that_cannot_be_had_on_a_gpu_fail_the_stage_and_are_measured_again(
    benchmark, tmp_path, monkeypatch
):
    gpu_measure = benchmark("gpu_measure")
    monkeypatch.setattr(gpu_measure, "free_memory", lambda device: None)
    path, gpu = tmp_path / "rows.json", torch.device("cuda")

    def unbuilt():
        raise KernelsError("no nvcc", "why", "try")

    first = gpu_measure.Results(path, gpu, 60)
    first.measure("gelu, apex", unbuilt)
    first.finish()
    first.measure("gelu, cuda", unbuilt)
    with pytest.raises(SystemExit, match="wrong results: gelu, cuda"):
        first.finish()
    assert list(gpu_measure.Results(path, gpu, 60).rows) == ["gelu, apex"]


# Kernels.


def test_every_function_of_the_seam_is_measured(benchmark, tmp_path):
    """causal softmax, cross entropy, ... each has a case, but those that are parts of others."""
    kernels_gpu = benchmark("kernels_gpu")
    functions = {field.name for field in dataclasses.fields(Kernels)}
    elsewhere = {"adamw", "dropout", "gelu", "float8_product"}  # machine_gpu.py has the product
    assert functions - kernels_gpu.CASES.keys() <= elsewhere
    flags = ["--device", "cpu", "--contenders", "reference", "cuda", "--out", str(tmp_path)]
    kernels_gpu.main(flags)
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert rows["adamw, reference"]["norm+step"]["seconds"] > 0
    assert "lives on cpu" in rows["layer_norm, cuda"]["not_measured"]
    for name, case in kernels_gpu.CASES.items():
        row = rows[f"{name}, reference"]
        assert row["agrees"] and row["forward"]["bytes_per_second"] > 0
        assert ("backward" in row) == (case.backward > 0)


def wrong_gelu(x, bias):
    return reference.bias_gelu(x, bias) * 1.001


def test_a_wrong_kernel_is_seen(benchmark, monkeypatch):
    kernels_gpu = benchmark("kernels_gpu")
    kernels_gpu.compare_all(["reference"], CPU)
    monkeypatch.setattr(kernels_gpu, "choose", lambda *_: (Kernels(bias_gelu=wrong_gelu), "wrong"))
    with pytest.raises(SystemExit) as end:
        kernels_gpu.compare_all(["cuda"], CPU)
    assert end.value.code == (
        f"wrong:\nbias_gelu, cuda, torch.float32: error {1e-3:.1e}, bound {2e-5:.0e}"
    )


# On CUDA itself.

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
def test_the_kernels_agree_with_the_reference_on_cuda(benchmark):
    benchmark("kernels_gpu").compare_all(["cuda"], torch.device("cuda", 0))


@needs_cuda
def test_five_steps_on_cuda_are_those_of_the_cpu(benchmark, training_gpu):
    row = benchmark("machine_gpu").five_steps(torch.device("cuda", 0))
    assert row["agrees"], row


@needs_cuda
def test_what_training_takes_drops_what_it_is_asked_on_cuda(benchmark):
    device, machine_gpu = torch.device("cuda", 0), benchmark("machine_gpu")
    with backends_chosen("auto", device, torch.bfloat16, False, 0.1):
        assert machine_gpu.drop_rate(0.1, device) == pytest.approx(0.1, abs=machine_gpu.TOLERANCE)


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 has this product on GPUs alone")
def test_float8_products_are_measured(benchmark):
    row = benchmark("machine_gpu").float8_product(CPU, 16, 32, 48)
    assert row["flops_per_second"] > 0


# What attention drops.


def test_a_rounded_drop_rate_is_seen(benchmark, monkeypatch):
    """As cuDNN does it: 0.1 becomes 2 / 16."""
    machine_gpu, sdpa = benchmark("machine_gpu"), F.scaled_dot_product_attention
    assert machine_gpu.drop_rate(0.1, CPU) == pytest.approx(0.1, abs=machine_gpu.TOLERANCE)

    def rounded(q, k, v, mask, p, **options):
        return sdpa(q, k, v, mask, round(16 * p) / 16, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", rounded)
    assert machine_gpu.drop_rate(0.1, CPU) == pytest.approx(0.125, abs=machine_gpu.TOLERANCE)


# Training.


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.02, False)])
def test_five_steps_see_a_wrong_kernel(benchmark, training_gpu, monkeypatch, factor, agrees):
    wrong = Kernels(bias_gelu=lambda x, bias: factor * reference.bias_gelu(x, bias))
    turns = iter((Kernels(), wrong))  # the reference on the CPU, then ours
    monkeypatch.setattr(choice, "choose", lambda name, device: (next(turns), name))
    row = benchmark("machine_gpu").five_steps(CPU)
    assert row["agrees"] is agrees and len(row["ours"]) == 5
    assert row["reference"][0] != row["reference"][-1]


def test_a_row_of_ours(training_gpu, monkeypatch, tmp_path):
    row = training_gpu.Row("tiny", "reference", 1, fp8_format="hybrid")
    monkeypatch.setattr(training_gpu, "rows_of_ours", lambda on_gpu: [row])
    training_gpu.main(["--device", "cpu", "--steps", "1", "--out", str(tmp_path), "--profile"])
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    figures = rows["tiny, reference, micro batch 1, dropout 0.1, float8 hybrid"]
    assert figures["tokens_per_second"] == pytest.approx(2 * 16 / figures["seconds"][0])
    assert len(figures["losses"]) == 4 and figures["losses"][0] == pytest.approx(4.6, abs=0.1)
    assert (tmp_path / "trace.json.gz").exists()
    assert rows["profile"]["not_measured"].startswith("DataError: no kernel of a GPU in")


def test_our_kernels_are_those_that_are_asked_for(training_gpu):
    """No row of --kernels cuda may be the reference's."""
    with pytest.raises(KernelsError, match="the model lives on cpu"):
        training_gpu.build(training_gpu.Row("tiny", "cuda", 1), CPU)


def test_transformers_has_our_loss_to_begin_with(training_gpu):
    """The same micro batches, the same mean over them: log(V) before any step."""
    pytest.importorskip("transformers")
    losses = [
        training_gpu.build(training_gpu.Row("tiny", contender, 1, 0.0), CPU)(0)
        for contender in ("reference", "transformers")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.3) == pytest.approx(4.7, abs=0.3)


def test_every_row_can_train(benchmark):
    training_gpu = benchmark("training_gpu")
    for row in training_gpu.rows_of_ours(True) + training_gpu.rows_with_peers(True):
        validate(row.config, 1)
        assert row.config.training.global_batch_size == 8 * row.micro_batch


def test_flops_by_both_formulas(benchmark):
    """One second for one step of the 3.5B model; 21.878 GFLOP a token by the exact count."""
    training_gpu = benchmark("training_gpu")
    config = training_gpu.Row("3.5b", "cuda", 8).config
    figures = training_gpu.speed(config, 1.0, CPU, {"matmul_flops_per_second": 7e14})
    samples, t, layers, c, v = 64, 1024, 30, 3072, 50304
    formula = 72 * samples * t * layers * c**2 * (1 + t / (6 * c) + v / (12 * layers * c))
    assert figures["tflops_megatron_formula"] == pytest.approx(formula / 1e12)
    assert figures["tflops"] * 1e12 / (samples * t) == pytest.approx(21.878e9, rel=1e-3)
    assert figures["share_of_measured_matmul"] == pytest.approx(figures["tflops"] / 700)


def test_predicted_memory_of_one_layer(benchmark):
    """What the table says of one token more, and of one parameter's 18 bytes."""
    training_gpu = benchmark("training_gpu")
    config = TINY.replace(num_layers=1, vocab_size=128)
    [small, large] = [
        training_gpu.predicted_bytes(config.replace(micro_batch_size=size)) for size in (1, 2)
    ]
    c, n = config.model.hidden_size, config.model.num_attention_heads
    activations = 16 * (32 * c + 4 * n + 16 + 6 * c)
    assert large - small == activations
    assert small - activations == 18 * config.model.num_parameters + 4 * 128 * c
