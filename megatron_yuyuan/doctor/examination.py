"""All checks, in the order in which a job would meet them."""

from dataclasses import dataclass

import torch.distributed as dist

from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.doctor.findings import OK, Finding, merged, of_error
from megatron_yuyuan.doctor.job import Job
from megatron_yuyuan.doctor.machine import examine_machine
from megatron_yuyuan.doctor.memory import examine_memory
from megatron_yuyuan.doctor.network import examine_groups
from megatron_yuyuan.doctor.phases import Phases
from megatron_yuyuan.doctor.storage import examine_storage
from megatron_yuyuan.errors import LostError, YuyuanError
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.samples import question_datasets, text_datasets


@dataclass(frozen=True)
class Page:
    """What was found."""

    findings: list[Finding]
    broken_off: YuyuanError | None = None
    """Why the ranks did not come through together: then the findings are this rank's own."""


def examine(config: Config, finetuning: bool) -> Page:
    """The page of a job, the same on every rank unless it is broken off; every rank must take part."""
    try:
        mesh = mesh_module.start(meeting(config.parallel))
    except YuyuanError as error:
        return Page(examine_machine(config.parallel), error)
    own: list[Finding] = []
    try:
        return Page(_examine(config, finetuning, mesh, own))
    except LostError as error:
        return Page(own, error)
    finally:
        mesh_module.stop()


def meeting(parallel: ParallelConfig) -> ParallelConfig:
    """The process group of a configuration without its layout, which need not fit."""
    kept = ("device", "distributed_backend", "distributed_timeout_minutes")
    return ParallelConfig(**{name: getattr(parallel, name) for name in kept})


def _examine(config: Config, finetuning: bool, mesh: Mesh, own: list[Finding]) -> list[Finding]:
    """On ranks that have met. `own` gets what this rank finds by itself."""
    phases, is_valid = Phases(60 * config.parallel.distributed_timeout_minutes), False
    with phases.phase("machine"):
        own += examine_machine(config.parallel)
    with phases.phase("job"):
        if describes_training(config):
            job = examine_job(config, finetuning)
            config, is_valid = job.config, job.is_valid
            own += job.findings
        else:
            own.append(Finding("job", OK, "no training command was given: the machine alone"))
    together = merged(all_gather_object(own))
    is_valid = all(all_gather_object(is_valid))  # or one rank alone would build the mesh
    with phases.phase("process groups"):
        if is_valid:
            mesh = mesh_module.start(config.parallel)
            together.append(examine_memory(config, mesh))
        together += examine_groups(mesh)
    with phases.phase("save directory"):
        if describes_training(config) or config.checkpoint.save:
            together += examine_place(config, is_valid)
    return [*together, phases.finding()]


def describes_training(config: Config) -> bool:
    """Whether a configuration says what to train, and not the machine alone."""
    data = config.data
    return bool(
        config.model.num_layers or config.checkpoint.load or data.data_path or data.train_data_path
    )


def examine_job(config: Config, finetuning: bool) -> Job:
    """Take the steps that a run begins with."""
    samples = question_datasets if finetuning else text_datasets
    job = Job(config.replace(finetune=config.checkpoint.finetune or finetuning), samples)
    job.examine(dist.get_world_size())
    return job


def examine_place(config: Config, resolved: bool) -> list[Finding]:
    """The save directory; an error is the same on every rank."""
    try:
        return examine_storage(config, resolved)
    except YuyuanError as error:
        return of_error("save directory", error)
