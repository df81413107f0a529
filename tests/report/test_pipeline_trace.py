"""The timeline of a pipeline: from traces that training really writes, and from one known by hand."""

import gzip
import json

import pytest
from report.runs import CONFIG, synthetic_run, trace_events
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.report.pipeline_trace import (
    length,
    measured_bubble,
    read_timeline,
    theoretical_bubble,
)
from megatron_yuyuan.train.profile import choose_trainer


def test_the_bubble_of_a_known_step(tmp_path):
    timeline = read_timeline(synthetic_run(tmp_path / "run"), CONFIG)
    assert list(timeline) == [0, 1]
    assert length(timeline) == 15_000_000
    assert measured_bubble(timeline) == pytest.approx(1 / 5)
    schedule, share = theoretical_bubble(timeline, CONFIG)
    assert (schedule, float(share)) == ("1F1B", pytest.approx(1 / 5))
    first = timeline[1][0]
    assert (first.kind, first.stage, first.micro_batch) == ("forward", 1, 0)
    assert first.start == 1_000_000  # counted from the other rank's, in the second step


def on_cuda(rank: int) -> list[dict]:
    """The same steps where the host runs ahead: 0.1 ms for every action, in which another thread launches two
    kernels; a third waits for another rank."""
    found: list[dict] = []
    for number, action in enumerate(trace_events(rank)[2:]):
        begun, half = 100 * number, action["dur"] // 2
        found.append(action | {"ts": begun, "dur": 90})
        for i, name in enumerate(("gemm", "gelu", "ncclKernel_SendRecv")):
            tie = {"args": {"correlation": 3 * number + i}, "ph": "X", "tid": 2}
            launch = {
                "name": "cudaLaunchKernel",
                "cat": "cuda_runtime",
                "ts": begun + 10 + i,
                "dur": 1,
            }
            when = {"ts": action["ts"] + 500 + half * i, "dur": half if i < 2 else 9000}
            found += [tie | launch, tie | when | {"name": name, "cat": "kernel"}]
    return found


def test_on_cuda_an_action_is_the_time_of_its_kernels(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    expected = read_timeline(directory, CONFIG)
    for rank in (0, 1):
        trace = {"baseTimeNanoseconds": 10**18, "traceEvents": on_cuda(rank)}
        path = directory / "profile" / f"rank_0{rank}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(trace).encode()))
    timeline = read_timeline(directory, CONFIG)
    assert timeline == expected
    assert measured_bubble(timeline) == pytest.approx(1 / 5)


def test_there_is_no_timeline_without_traces_or_of_one_stage(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    assert not read_timeline(directory, CONFIG.replace(pipeline_model_parallel_size=1))
    assert not read_timeline(tmp_path, CONFIG)


def traced(config) -> None:
    trainer = choose_trainer(config, build_trainer(config).state, None)
    for _ in range(2):
        trainer.step(RandomText())
    trainer.close()


@pytest.mark.parametrize(
    ("schedule", "kinds"),
    [
        ("1F1B", {"forward": 4, "backward": 4}),
        pytest.param(
            *("ZBVZeroBubble", {"forward": 8, "backward": 8, "weights": 8}), marks=pytest.mark.slow
        ),
    ],
    ids=["1F1B", "ZBVZeroBubble"],
)
def test_training_names_every_action_of_its_schedule(ranks, tmp_path, schedule, kinds):
    config = Layout(pipeline=2).of(TINY.replace(pipeline_schedule=schedule, save=str(tmp_path)))
    config = config.replace(
        micro_batch_size=2, profile=True, profile_step_start=1, profile_step_end=3
    )
    ranks.run(2, traced, config)
    timeline = read_timeline(tmp_path, config)
    assert list(timeline) == [0, 1]
    for actions in timeline.values():
        count = {kind: sum(a.kind == kind for a in actions) for kind in kinds}
        assert {k: v for k, v in count.items() if v} == count
        assert count["forward"] == kinds["forward"]
        assert sum(count.values()) == len(actions)
        assert {a.micro_batch for a in actions} == {0, 1, 2, 3}
    assert 0 < measured_bubble(timeline) < 1
