"""Python values of all ranks."""

import torch.distributed as dist


def all_gather_object(value, group: dist.ProcessGroup | None = None) -> list:
    """Every rank's value, on every rank of the group (None: the job), in the order of ranks. A collective."""
    values: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
