"""The ranks that save or load a checkpoint together, or the one process that does so alone."""

from collections.abc import Callable

import torch.distributed as dist

from megatron_yuyuan.errors import YuyuanError
from megatron_yuyuan.parallel.gathering import all_gather_object


class Ranks:
    """All ranks of the job, or one process where there is no process group.

    group: over which they talk. None is the default group, which training uses: a background thread
    needs one of its own, of gloo.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group, self.alone = group, not dist.is_initialized()
        self.rank = 0 if self.alone else dist.get_rank(group)
        self.size = 1 if self.alone else dist.get_world_size(group)

    def all_gather_object(self, value) -> list:
        """Every rank's value, on every rank."""
        return [value] if self.alone else all_gather_object(value, self.group)

    def on_first(self, action: Callable):
        """Run `action` on rank 0 and return its result on every rank; its OSError or YuyuanError is
        raised on every rank, so that none waits for one that has given up."""
        outcome: list = [None]
        if self.rank == 0:
            try:
                outcome = [action()]
            except (OSError, YuyuanError) as error:
                outcome = [error]
        if not self.alone:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]
