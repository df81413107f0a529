"""What every rank of a job must have the same, compared before anything is computed together."""

import platform
from collections.abc import Mapping

from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.parallel.gathering import all_gather_object


def require_alike(mine: Mapping[str, str]) -> None:
    """Raises ConfigErrors, on every rank, naming what differs and where. A collective."""
    everyone = all_gather_object((platform.node(), dict(mine)))
    (_, first), problems = everyone[0], []
    for name in first:
        others = {
            rank: (host, values[name])
            for rank, (host, values) in enumerate(everyone)
            if values[name] != first[name]
        }
        if others:
            rank, (host, value) = next(iter(others.items()))
            more = f" and on {len(others) - 1} more" if len(others) > 1 else ""
            problems.append(
                ConfigError(
                    f"{name} is {first[name]} on rank 0, {value} on rank {rank} ({host}){more}",
                    "ranks that differ wait for each other forever, or train apart silently",
                    "the same command, configuration files, data and view of SAVE on every machine",
                )
            )
    if problems:
        raise ConfigErrors(problems)
