"""Processes that play the ranks of a job: started once per test session, sent functions.

Starting eight torch processes costs many seconds, a function call milliseconds. Each call gets a process group of its
own over the first `ranks` workers.
"""

import importlib.util
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from pathlib import Path

CALL_LIMIT = 120.0
"""Seconds a call may take before its workers are killed and the test fails: a hang is a failure."""


class RankPool:
    """Worker processes that run a function of a test file on several ranks."""

    def __init__(self):
        self._context = multiprocessing.get_context("spawn")
        self._workers: list = []

    def run(self, ranks: int, function, *arguments):
        """Call `function(*arguments)` on every rank of a fresh process group; return rank 0's result.

        The function must stand at the top level of its file. An exception on any rank is raised here, with that
        rank's traceback.
        """
        while len(self._workers) < ranks:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, ours))
        with tempfile.TemporaryDirectory() as directory:
            place = (function.__code__.co_filename, function.__name__)
            for rank, (_, pipe) in enumerate(self._workers[:ranks]):
                pipe.send_bytes(pickle.dumps((rank, ranks, f"{directory}/store", place, arguments)))
            return self._collect(ranks)

    def _collect(self, ranks: int):
        results, deadline = {}, time.monotonic() + CALL_LIMIT
        while len(results) < ranks:
            for rank, (process, pipe) in enumerate(self._workers[:ranks]):
                if rank in results or not pipe.poll(0.01):
                    if rank not in results and not process.is_alive():
                        self._fail(f"rank {rank} died with exit code {process.exitcode}")
                    continue
                failed, value = pickle.loads(pipe.recv_bytes())
                if failed:
                    self._fail(f"rank {rank}:\n{value}")
                results[rank] = value
            if time.monotonic() > deadline:
                self._fail(f"no answer from ranks {sorted(set(range(ranks)) - results.keys())} in {CALL_LIMIT:.0f} s")
        return results[0]

    def _fail(self, message: str):
        self.close()
        raise RuntimeError(message)

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
        for process, _ in self._workers:
            process.join()
        self._workers = []


def _work(pipe) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    modules: dict = {}
    while True:
        rank, ranks, store, (file, name), arguments = pickle.loads(pipe.recv_bytes())
        try:
            if file not in modules:
                specification = importlib.util.spec_from_file_location(f"job_{Path(file).stem}", file)
                modules[file] = importlib.util.module_from_spec(specification)
                specification.loader.exec_module(modules[file])
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
            dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
            value = getattr(modules[file], name)(*arguments)
            dist.destroy_process_group()
            pipe.send_bytes(pickle.dumps((False, value)))
        except BaseException:  # whatever it was, the test must see it
            pipe.send_bytes(pickle.dumps((True, traceback.format_exc())))
