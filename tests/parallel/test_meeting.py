"""The ranks of an attempt find each other, and none that is dead."""

import random
import signal
import socket
import threading
import time

import pytest
import torch.distributed as dist

from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.errors import LostError
from megatron_yuyuan.parallel import meeting, mesh
from megatron_yuyuan.parallel.meeting import Meeting


def place(store, rank: int, ranks: int, timeout: float = 60.0, cause: str = "") -> Meeting:
    return Meeting(store, rank, ranks, timeout, lambda: cause)


def names(store, order: list[int]) -> list[str]:
    """The names on which the ranks agree that come in this order, one thread each."""
    found = {}

    def come(rank: int) -> None:
        found[rank] = place(store, rank, len(order)).agree()

    threads = [threading.Thread(target=come, args=(rank,), daemon=True) for rank in order]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in sorted(order)]


def test_every_attempt_agrees_on_a_name_that_none_had_before():
    store, order, seen = dist.HashStore(), list(range(4)), set()
    for attempt in range(8):
        random.Random(attempt).shuffle(order)
        [name] = set(names(store, order))
        seen.add(name)
    assert len(seen) == 8


def test_a_rank_started_again_does_not_follow_the_invitation_of_the_dead():
    store = dist.HashStore()
    [old] = set(names(store, [0, 1]))
    assert store.check([f"{old}/go"])  # what a rank of the dead attempt would have gone by
    with pytest.raises(LostError, match=r"waited 0 s for rank 0 of 2"):
        place(store, 1, 2, timeout=0.2).agree()
    with pytest.raises(LostError, match=r"waited 0 s for rank 1 of 2"):
        place(store, 0, 2, timeout=0.2).agree()


def test_a_rank_that_dies_between_coming_and_answering_is_replaced():
    store = dist.HashStore()
    store.set("here/1", "the word of a process that died")
    [name] = set(names(store, [0, 1]))
    assert store.check([f"{name}/1"])


def test_an_attempt_may_have_more_ranks_than_the_one_before():
    store = dist.HashStore()
    assert len(set(names(store, [0, 1]))) == 1
    assert len(set(names(store, [3, 1, 2, 0]))) == 1


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_rank_names_the_one_that_is_absent(rank):
    store = dist.HashStore()
    for other in (0, 1, 2):
        store.set(f"here/{other}", "came")
    with pytest.raises(LostError, match="waited 0 s for rank 3 of 4"):
        place(store, rank, 4, timeout=0.1).agree()


def test_who_is_awaited_is_said_and_then_named(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "SAY", 0.05)
    store = dist.HashStore()
    store.set("here/2", "came")
    with pytest.raises(LostError) as error:
        place(store, 0, 4, timeout=0.3).agree()
    error.match("waited 0 s for rank 1, 3 of 4\n  why: it was not started, it died")
    assert (error.value.status, error.value.kind) == (75, "rank_lost")
    assert "waiting for rank 1, 3 of 4 ... 0 s\n" in capsys.readouterr().err


def test_a_signal_ends_the_waiting():
    with pytest.raises(LostError, match="SIGTERM while the ranks were still meeting"):
        place(dist.HashStore(), 0, 2, cause=signal.SIGTERM.name).agree()


def test_a_first_host_that_does_not_answer_is_named(monkeypatch):
    parallel = ParallelConfig(device="cpu", distributed_timeout_minutes=0.01)
    with socket.socket() as silent:  # bound, so that nobody else has the port; it listens to no one
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        place = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        said = rf"rank 1 of 2 found no store at 127\.0\.0\.1:{port}"
        with pytest.raises(LostError, match=said):
            mesh.start(parallel)
