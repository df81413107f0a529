"""Who starts the processes, and where they compute."""

import pytest

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
