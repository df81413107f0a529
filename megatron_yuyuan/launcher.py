"""What torchrun or srun tell a process of its place in the job, by the environment."""

import os


def world_size() -> int:
    """Processes of this job: torchrun's or srun's figure, or one under plain python."""
    return _number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", 1)


def rank() -> int:
    """This process's number among them."""
    return _number("RANK", "SLURM_PROCID", 0)


def local_rank() -> int:
    """Its number among those of its machine."""
    return _number("LOCAL_RANK", "SLURM_LOCALID", 0)


def _number(by_torchrun: str, by_srun: str, alone: int) -> int:
    """A number that the launcher sets. A shell inside a SLURM allocation is no launcher: only srun
    sets SLURM_STEP_NUM_TASKS."""
    by_srun = by_srun if "SLURM_STEP_NUM_TASKS" in os.environ else ""
    return int(os.environ.get(by_torchrun) or os.environ.get(by_srun) or alone)


def job() -> str:
    """What people know this job by: SLURM's number, or torchrun's --rdzv-id; empty without either."""
    named = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return os.environ.get("SLURM_JOB_ID") or ("" if named == "none" else named)


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def order_sums_of_cublas() -> None:
    """Have cuBLAS take every sum in one order. Before the first product: it reads its variable once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def store_address() -> tuple[str, str]:
    """Host and port of the store where the ranks meet; empty what is not set."""
    return os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")


def keeps_store() -> bool:
    """Whether this process has to open that store: rank 0, unless torchrun has one."""
    return rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
