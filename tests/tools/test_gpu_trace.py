"""tools/benchmark/gpu_trace.py: what a trace shows, from traces that are made."""

import gzip
import importlib
import json

import pytest

from megatron_yuyuan.errors import DataError


@pytest.fixture
def gpu_trace(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools" / "benchmark")
    return importlib.import_module("gpu_trace")


def kernel(
    name: str, begin: float, seconds: float, group: str = "", category: str = "kernel"
) -> dict:
    """An event as torch's profiler writes it, with NCCL's note of the process group."""
    about = {"Process Group Description": group} if group else {"stream": 7}
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": seconds, "args": about}


@pytest.fixture
def written(tmp_path):
    """written(events) is the path of a compressed trace of them."""

    def write(events: list[dict]):
        path = tmp_path / "rank_00.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
        return path

    return write


def test_shares_of_a_step(gpu_trace, written):
    """Two kernels at once count once; the CPU's events not at all."""
    trace = written(
        [
            kernel("nvjet_hsh_128x256", 0, 40),
            kernel("pytorch_flash::flash_bwd_kernel<cutlass>", 50, 20),
            kernel("yuyuan::layer_norm_kernel", 60, 20),
            kernel("Memset (Device)", 80, 10, category="gpu_memset"),
            kernel("void adamw_kernel(yuyuan_piece const*)", 90, 10),
            kernel("aten::mm", 0, 1000, category="cpu_op"),
        ]
    )
    assert gpu_trace.shares(trace) == pytest.approx(
        {
            "matmul": 0.4,
            "attention": 0.2,
            "pointwise": 0.2,
            "optimizer": 0.1,
            "communication": 0.0,
            "idle": 0.1,
        }
    )


GATHER, SCATTER, SUM = (
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
)
PRODUCTS = [kernel("nvjet_hsh", 100, 60), kernel("gelu", 150, 40), kernel("nvjet_hsh", 200, 100)]
"""Busy from 100 to 190 and from 200 to 300."""
HIDDEN = [
    kernel(GATHER, 80, 40, "mesh_shard"),  # 20 of 40
    kernel(GATHER, 180, 40, "mesh_shard"),  # 30 of 40
    kernel(SCATTER, 210, 50, "mesh_shard"),
    kernel(SUM, 190, 10, "mesh_tensor"),  # between two products
]


def test_what_is_hidden_behind_computing(gpu_trace, written, capsys):
    trace = written(PRODUCTS + HIDDEN)
    assert gpu_trace.overlap(trace) == {
        "all-gather over mesh_shard": {"seconds": 80e-6, "hidden": pytest.approx(50 / 80)},
        "reduce-scatter over mesh_shard": {"seconds": 50e-6, "hidden": 1.0},
        "all-reduce over mesh_tensor": {"seconds": 10e-6, "hidden": 0.0},
    }
    gpu_trace.main([str(trace)])  # what the tensor axis exchanges is waited for
    assert "all-gather over mesh_shard: 0.0001 s, 62% beside computing" in capsys.readouterr().out


def test_an_exchange_with_nothing_beside_it_fails(gpu_trace, written):
    late = [*HIDDEN[:2], kernel(SCATTER, 300, 50, "mesh_shard")]
    with pytest.raises(SystemExit, match=r"rank_00\.json\.gz: reduce-scatter over mesh_shard"):
        gpu_trace.main([str(written(PRODUCTS + late))])


def test_the_group_of_all_ranks_is_judged_where_it_is_the_data_axis(gpu_trace, written):
    late = [kernel(GATHER, 180, 40, "default_pg"), kernel(SUM, 300, 50, "default_pg")]
    trace = str(written(PRODUCTS + late))
    gpu_trace.main([trace, "--data-parallel-only"])
    trace = str(written([*PRODUCTS, *late, kernel(SCATTER, 300, 50, "default_pg")]))
    gpu_trace.main([trace])
    with pytest.raises(SystemExit, match="reduce-scatter over default_pg"):
        gpu_trace.main([trace, "--data-parallel-only"])


def test_two_exchanges_at_once_are_no_computing(gpu_trace, written):
    trace = written([kernel(GATHER, 0, 10, "mesh_shard"), kernel(SCATTER, 0, 10, "mesh_shard")])
    assert {found["hidden"] for found in gpu_trace.overlap(trace).values()} == {0.0}


def test_a_kernel_without_its_group_is_named_so(gpu_trace, written):
    [name] = gpu_trace.overlap(written([kernel("ncclDevKernel_SendRecv", 0, 1)]))
    assert name == "exchange over a group without a name"


def test_a_trace_of_a_cpu_and_none_at_all(gpu_trace, written, tmp_path):
    with pytest.raises(DataError, match="no kernel of a GPU in"):
        gpu_trace.main([str(written([kernel("aten::mm", 0, 1, category="cpu_op")]))])
    with pytest.raises(DataError, match="no trace"):
        gpu_trace.main([str(tmp_path / "absent.json")])
