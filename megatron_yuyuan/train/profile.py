"""Chrome traces of a few steps, one file a rank: --profile."""

import os
from pathlib import Path

import torch.distributed as dist
from torch.profiler import profile

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Borders, Dataset
from megatron_yuyuan.train.schedule import train_iterations
from megatron_yuyuan.train.state import TrainState
from megatron_yuyuan.train.trainer import Trainer


class ProfiledTrainer(Trainer):
    """A trainer that records its steps profile_step_start to profile_step_end - 1, and writes
    SAVE/profile/rank_NN.json.gz after the last of them.

    The format is Chrome's trace event format, which ui.perfetto.dev and chrome://tracing open. These
    steps are slower for being recorded; starting and writing are not in their time.
    """

    def __init__(self, config: Config, state: TrainState, borders: Borders | None = None):
        super().__init__(config, state, borders)
        self.iterations = profiled_iterations(config, state.iteration)
        self._recorder: profile | None = None

    def step(self, dataset: Dataset) -> dict:
        if self.state.iteration + 1 not in self.iterations:
            self.close()  # if a rollback has left them
            return super().step(dataset)
        if self._recorder is None:
            self._recorder = profile()
            self._recorder.start()
        figures = super().step(dataset)
        if self.state.iteration == self.iterations[-1]:
            self.close()
        return figures

    def close(self) -> None:
        """Write what was recorded. A run that ends inside its recorded steps keeps those it has taken.
        (torch's profiler, left running, ends the process with a segmentation fault.)"""
        if self._recorder is None:
            return
        self._recorder.stop()
        path = trace_path(self.config.checkpoint.save, dist.get_rank())
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished_{path.name}")
        self._recorder.export_chrome_trace(str(unfinished))
        os.replace(unfinished, path)
        self._recorder = None


def choose_trainer(config: Config, state: TrainState, borders: Borders | None) -> Trainer:
    """The trainer of this rank: one that records where --profile asks for this rank."""
    logging = config.logging
    asked = not logging.profile_ranks or dist.get_rank() in logging.profile_ranks
    return (ProfiledTrainer if logging.profile and asked else Trainer)(config, state, borders)


def profiled_iterations(config: Config, taken: int) -> range:
    """The iterations that a run records which has taken so many already; empty where it is past
    them, or ends before them."""
    last = train_iterations(config.training)
    start, end = config.logging.profile_step_start, config.logging.profile_step_end
    return range(max(start, taken + 1), min(end, last + 1))


def trace_path(save: str, rank: int) -> Path:
    """The trace of a rank."""
    return Path(save) / "profile" / f"rank_{rank:02d}.json.gz"
