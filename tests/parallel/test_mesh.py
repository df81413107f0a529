"""Who starts the processes, and where they compute."""

import pytest
import torch.distributed as dist

from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.parallel import mesh

LAUNCHERS = [
    ({}, 1),
    ({"WORLD_SIZE": "4"}, 4),
    ({"SLURM_NTASKS": "4"}, 1),  # a shell inside an allocation
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 4),  # srun
    ({"WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"}, 8),  # srun torchrun
]


@pytest.mark.parametrize(("environment", "processes"), LAUNCHERS)
def test_the_launcher_says_how_many_processes_there_are(monkeypatch, environment, processes):
    for name in ("WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mesh.world_size() == processes


def test_srun_without_a_meeting_place_is_refused(monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT"):
        mesh.start(ParallelConfig(device="cpu"))


def test_a_rank_without_a_device_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(mesh.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mesh.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="local rank 2 has no CUDA device"):
        mesh.choose_device(ParallelConfig())
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert mesh.choose_device(ParallelConfig()).index == 1


def test_a_task_of_srun_may_see_its_own_device_alone(monkeypatch):
    """As `srun --gpus-per-task 1` shows them; under torchrun it is a process too many."""
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mesh.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mesh.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert mesh.choose_device(ParallelConfig()).index == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with pytest.raises(ConfigError, match="local rank 3 has no CUDA device"):
        mesh.choose_device(ParallelConfig())


def places(parallel: ParallelConfig) -> tuple[list[dict[str, int]], str]:
    """Where each rank stands on every axis, and how the mesh is described."""
    own = mesh.start(parallel)
    axes = ("pipeline", "data", "replica", "shard", "tensor")
    mine: list = [None] * dist.get_world_size()
    dist.all_gather_object(mine, {axis: own.rank(axis) for axis in axes})
    return mine, own.describe()


def test_neighbours_divide_and_far_ranks_repeat(ranks):
    parallel = ParallelConfig(device="cpu", num_distributed_optimizer_instances=2)
    found, description = ranks.run(4, places, parallel)
    assert [rank["data"] for rank in found] == [0, 1, 2, 3]
    assert [(rank["replica"], rank["shard"]) for rank in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = "pipeline 1 x data 4 (replica 2 x shard 2) x tensor 1 on cpu over gloo"
    assert description == expected


def test_without_sharding_the_shard_axis_has_one_rank(ranks):
    parallel = ParallelConfig(
        device="cpu", data_parallel_sharding_strategy="no_shard", tensor_model_parallel_size=2
    )
    found, description = ranks.run(4, places, parallel)
    assert [rank["replica"] for rank in found] == [rank["data"] for rank in found] == [0, 0, 1, 1]
    assert {rank["shard"] for rank in found} == {0}
    assert description == "pipeline 1 x data 2 x tensor 2 on cpu over gloo"


def timeouts(parallel: ParallelConfig) -> set[float]:
    """Minutes after which gloo gives up, of every group of the mesh."""
    own = mesh.start(parallel)
    groups = [own.group(axis) for axis in ("pipeline", "data", "replica", "shard", "tensor")]
    assert own.tied_group is not None
    gloo = [group._get_backend(mesh.torch.device("cpu")) for group in (*groups, own.tied_group)]
    return {backend.options._timeout.total_seconds() / 60 for backend in gloo}


def test_every_group_of_the_mesh_waits_as_long_as_it_is_told(ranks):
    sizes = {"pipeline_model_parallel_size": 2, "tensor_model_parallel_size": 2}
    parallel = ParallelConfig(device="cpu", distributed_timeout_minutes=3, **sizes)
    assert ranks.run(4, timeouts, parallel) == {3.0}


@pytest.mark.parametrize(("backend", "left"), [("gloo", [True]), ("nccl", [])])
def test_after_an_error_no_rank_waits_for_nccl_to_end(monkeypatch, backend, left):
    """Its orderly end waits for ranks that wait for this one."""
    ended: list[bool] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(True))
    mesh.abandon()
    assert ended == left
