"""What vendors publish, and who shares which wire."""

import dataclasses

import pytest

from megatron_yuyuan.planner.clusters import GPUS, Cluster
from megatron_yuyuan.planner.rates import RATES
from megatron_yuyuan.train.throughput import PEAK_TFLOPS

A100 = GPUS["a100-80g"]
FOUR_NODES = Cluster(A100, 32, 8, 100.0)


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_of_the_table_is_complete(name):
    gpu = GPUS[name]
    assert gpu.architecture in RATES and "data sheet" in gpu.source
    numbers = [v for v in vars(gpu).values() if not isinstance(v, str)]
    assert len(numbers) == 6 and min(numbers) > 0
    assert 0.95 < gpu.memory_gib / float(name.split("-")[1].rstrip("g")) < 1.0


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_those_that_a_run_reports_its_mfu_by(name):
    assert GPUS[name].peak_tflops == PEAK_TFLOPS[name.split("-")[0].upper()][0]


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (8, 1, 300e9),  # a node's own links
        (4, 2, 300e9),
        (32, 1, 100e9),  # one group: its ring leaves each node once, alone
        (16, 2, 50e9),  # two groups share the way out of a node
        (4, 8, 12.5e9),  # each GPU of a node is of another group
        (2, 16, 12.5e9),  # no more than all GPUs of a node can
    ],
)
def test_groups_that_leave_a_node_share_its_network(size, stride, expected):
    assert FOUR_NODES.bandwidth(size, stride) == expected


@pytest.mark.parametrize(
    ("size", "stride", "inside"), [(2, 1, True), (2, 3, True), (4, 1, False), (2, 2, False)]
)
def test_a_group_that_straddles_two_nodes_is_not_within_one(size, stride, inside):
    """Ranks 4 to 7 of nodes of 6 lie on two."""
    nodes = Cluster(A100, 12, 6, 100.0)
    assert nodes.holds(size, stride) == inside
    assert nodes.bandwidth(size, stride) == (300e9 if inside else 100e9 / stride)
    assert Cluster(A100, 6, 6).holds(4, 1)  # there is one node


def test_a_network_faster_than_the_links_is_bound_by_them():
    fast = dataclasses.replace(FOUR_NODES, inter_node_gb_per_second=1000.0)
    assert fast.bandwidth(32, 1) == 300e9 and fast.bandwidth(4, 8) == 125e9


def test_without_a_bandwidth_the_network_is_the_vendors():
    assert Cluster(A100, 32).network == 200e9 == Cluster(A100, 32, 8, 200.0).network
    assert Cluster(A100, 32).nodes == 4 and Cluster(A100, 4, 8).nodes == 1
