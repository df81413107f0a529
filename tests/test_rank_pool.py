"""What a test is told when ranks fail."""

import multiprocessing
import pickle

import pytest
import rank_pool


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
