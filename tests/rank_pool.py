"""Processes that play the ranks of a job, forked from one server that has imported torch already.

Starting eight torch processes costs many seconds, forking them a fraction of one. Each call gets
fresh processes and a process group of its own, because torch keeps names of groups that are gone.
"""

import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

CALL_LIMIT = 120.0
"""Seconds a call may take before its processes are killed and the test fails: a hang is a
failure."""
LOST_CONNECTION = ("Connection closed by peer", "Connection reset")
"""What a rank says when another one has gone: a consequence, not the cause."""
CAUSE_LIMIT = 2.0
"""Seconds to wait, after a rank has lost a connection, for the failure that broke it."""
NOT_BY_GLOO = re.compile(
    r"ProcessGroupGloo::\S+.*|.*gloo.*(?:does not support|CPU|Bad address).*", re.IGNORECASE
)
"""What a rank says that shares a GPU with others, of a collective that gloo has for the CPU alone."""


class RankPool:
    """Runs a function of a test file on several ranks."""

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pytest", "megatron_yuyuan.run"])

    def run(self, ranks: int, function, *arguments):
        """Call `function(*arguments)` on every rank of a fresh gloo process group; return rank 0's
        result.

        The function must stand at the top level of its file. An exception on any rank is raised
        here, with that rank's traceback. With more ranks than GPUs (`--device cuda`) they share them, over
        gloo; the test is skipped where gloo has not the collective for CUDA, or this torch not the schedule.
        """
        place = (function.__code__.co_filename, function.__name__)
        with tempfile.TemporaryDirectory() as directory:
            processes, pipes = [], []
            for rank in range(ranks):
                ours, theirs = self._context.Pipe(duplex=False)
                job = (theirs, rank, ranks, f"{directory}/store", place, arguments)
                processes.append(self._context.Process(target=_work, args=job, daemon=True))
                processes[-1].start()
                theirs.close()
                pipes.append(ours)
            try:
                return _collect(pipes)
            except RuntimeError as error:
                skip_without_gloo(str(error), ranks)
                skip_without_schedule(str(error))
                raise
            finally:
                for process in processes:
                    process.kill()
                    process.join()


def skip_without_gloo(failure: str, ranks: int) -> None:
    """Skip the test if ranks that share a GPU failed for want of one of gloo's collectives."""
    import pytest
    import torch

    missing = NOT_BY_GLOO.search(failure)
    if missing and _on_cuda() and ranks > torch.cuda.device_count():
        pytest.skip(f"{ranks} ranks share a GPU, and gloo says: {missing.group().strip()}")


def skip_without_schedule(failure: str) -> None:
    """Skip the test if it needs a backward in two parts and this torch is too old for one."""
    import pytest

    from megatron_yuyuan.parallel.pipeline import DIVIDES_BACKWARD

    if not DIVIDES_BACKWARD and "it cannot cut the backward of this model in two" in failure:
        pytest.skip("zero-bubble schedules need torch 2.13")


def _on_cuda() -> bool:
    return os.environ.get("YUYUAN_TEST_DEVICE") == "cuda"


def _collect(pipes: list):
    """Wait for every rank's answer; raise the first error, or rather its cause. Returns rank 0's
    answer."""
    answers, failures, deadline = {}, {}, time.monotonic() + CALL_LIMIT
    while len(answers) + len(failures) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in answers | failures}
        ready = multiprocessing.connection.wait(
            list(waiting), timeout=max(0.0, deadline - time.monotonic())
        )
        if not ready and not failures:
            raise RuntimeError(
                f"no answer from ranks {sorted(waiting.values())} in {CALL_LIMIT:.0f} s"
            )
        for pipe in ready:
            try:
                failed, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                failed, value = True, "died without an answer"
            (failures if failed else answers)[waiting[pipe]] = value
        if not ready or any(map(_is_cause, failures.values())):
            break
        if failures:
            deadline = min(deadline, time.monotonic() + CAUSE_LIMIT)
    if failures:
        rank = next((r for r in failures if _is_cause(failures[r])), next(iter(failures)))
        raise RuntimeError(f"rank {rank}: {failures[rank]}")
    return answers[0]


def _is_cause(failure: str) -> bool:
    return not any(sign in failure for sign in LOST_CONNECTION)


def _work(
    pipe, rank: int, ranks: int, store: str, place: tuple[str, str], arguments: tuple
) -> None:
    import torch
    import torch.distributed as dist
    from torch.utils._pytree import tree_map_only

    torch.set_num_threads(1)
    file, name = place
    gpus, backend = torch.cuda.device_count() if _on_cuda() else 0, "gloo"
    if gpus:
        backend = f"cpu:gloo,cuda:{'nccl' if ranks <= gpus else 'gloo'}"
    place_of_rank = str(rank % gpus if gpus else rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=place_of_rank)
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        specification = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        dist.init_process_group(
            backend, store=dist.FileStore(store, ranks), rank=rank, world_size=ranks
        )
        value = tree_map_only(torch.Tensor, torch.Tensor.cpu, getattr(module, name)(*arguments))
        dist.barrier()  # nobody leaves while another still needs its connections
        pipe.send_bytes(pickle.dumps((False, value)))
    except BaseException:  # whatever it was, the test must see it
        pipe.send_bytes(pickle.dumps((True, traceback.format_exc())))
