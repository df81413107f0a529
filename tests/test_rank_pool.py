"""What a test is told when ranks fail."""

import multiprocessing
import pickle

import pytest
import rank_pool
import torch


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        ([(True, "Connection closed by peer"), (True, "ValueError: the cause")], "rank 1: ValueE"),
        ([(True, "ValueError: the cause"), (True, "Connection reset by peer")], "rank 0: ValueE"),
        ([(False, 7), (True, "Connection reset by peer")], "rank 1: Connection reset"),
        ([(True, "Connection reset by peer"), None], "rank 0: Connection reset"),
    ],
)
def test_the_cause_is_raised_rather_than_a_lost_connection(said, raised, monkeypatch):
    monkeypatch.setattr(rank_pool, "CAUSE_LIMIT", 0.1)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in said]
    for (_, theirs), message in zip(pipes, said, strict=True):
        if message is not None:
            theirs.send_bytes(pickle.dumps(message))
    with pytest.raises(RuntimeError, match=raised):
        rank_pool._collect([ours for ours, _ in pipes])


def test_silent_ranks_are_named(monkeypatch):
    monkeypatch.setattr(rank_pool, "CALL_LIMIT", 0.1)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    pipes[0][1].send_bytes(pickle.dumps((False, 7)))
    with pytest.raises(RuntimeError, match=r"no answer from ranks \[1\]"):
        rank_pool._collect([ours for ours, _ in pipes])


UNSUPPORTED = (
    "rank 1: Traceback ...\nRuntimeError: ProcessGroupGloo::alltoall: unsupported device type cuda",
    "rank 1: Traceback ...\nRuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "
    "writev [127.0.0.1]:4711: Bad address",
)
"""What a collective says, and what sending does, which hands the system a pointer into the GPU."""


@pytest.mark.parametrize(
    ("device", "gpus", "skips"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 0, False)]
)
@pytest.mark.parametrize("said", UNSUPPORTED, ids=["collective", "send"])
def test_what_gloo_has_not_for_cuda_skips_ranks_that_share_a_gpu(
    monkeypatch, device, gpus, skips, said
):
    monkeypatch.setenv("YUYUAN_TEST_DEVICE", device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    rank_pool.skip_without_gloo("rank 0: ValueError: another cause", 2)
    if not skips:
        rank_pool.skip_without_gloo(said, 2)
        return
    with pytest.raises(pytest.skip.Exception, match=r"2 ranks share a GPU, and gloo says: .*"):
        rank_pool.skip_without_gloo(said, 2)
