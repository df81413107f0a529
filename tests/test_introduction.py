"""What is said before the first step is true: who holds what, how many bytes, how long."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan import introduction
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.introduction import (
    bytes_by_pipeline_rank,
    contents,
    draw_grid,
    draw_memory,
    exchanged_schedules,
    introduce_plan,
    introduce_state,
    predicted,
    resharded,
)
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel.stages import StagePlan
from megatron_yuyuan.train.state import named_parameters


def numbered(pipeline: int, data: int, tensor: int) -> list:
    return torch.arange(pipeline * data * tensor).view(pipeline, data, tensor).tolist()


def test_what_the_pipeline_ranks_hold():
    one_each = StagePlan((range(4), range(4, 5), range(5, 9)), (0, 1, 2))
    assert contents(one_each) == ["embeddings, layers 0-3", "layer 4", "layers 5-8, head"]
    there_and_back = StagePlan((range(2), range(2, 4), range(4, 6), range(6, 8)), (0, 1, 1, 0))
    assert contents(there_and_back) == [
        "embeddings, layers 0-1; layers 6-7, head",
        "layers 2-3; layers 4-5",
    ]
    assert contents(StagePlan((range(2),), (0,))) == ["embeddings, layers 0-1, head"]


def test_the_grid_has_every_rank_in_its_place():
    assert draw_grid(numbered(2, 2, 2), ["embeddings, layers 0-3", "layers 4-7, head"]) == [
        "                       | data 0 | data 1",
        "embeddings, layers 0-3 |   0  1 |   2  3",
        "layers 4-7, head       |   4  5 |   6  7",
    ]
    assert draw_grid(numbered(1, 1, 1), ["all"]) == ["    | data 0", "all |      0"]


def test_a_checkpoint_of_another_layout_is_said_to_be_laid_out_anew():
    saved = {"config": TINY.replace(pipeline_model_parallel_size=2).to_dict(), "ranks": 2}
    now_divided = TINY.replace(tensor_model_parallel_size=4).parallel
    before, now = "pipeline 2 x data 1 x tensor 1", "pipeline 1 x data 2 x tensor 4"
    assert resharded(saved, now_divided, 8) == f", resharded {before} -> {now}"
    assert resharded({"config": saved["config"]}, now_divided, 8) == ""  # of before
    assert resharded(saved, from_dict(saved["config"]).parallel, 2) == ""


def test_a_schedule_that_does_not_take_a_number_of_micro_batches_is_named():
    interleaved = TINY.replace(
        pipeline_model_parallel_size=4, pipeline_schedule="Interleaved1F1B", global_batch_size=12
    )
    assert exchanged_schedules(interleaved, data=1) == []
    [line] = exchanged_schedules(interleaved.replace(rampup_batch_size=(8, 1, 100)), data=1)
    assert line.startswith("pipeline: Interleaved1F1B cannot take 9 or 11 micro batches on 4 ranks")
    [line] = exchanged_schedules(TINY.replace(pipeline_model_parallel_size=4), data=4)
    assert line.startswith("pipeline: 1F1B cannot take 2 micro batches on 4 ranks")
    assert exchanged_schedules(TINY, data=8) == []


def test_a_large_job_is_drawn_by_its_first_data_rank():
    assert draw_grid(numbered(2, 4, 4), ["a", "b"])[1] == (
        "a |  0   1   2   3 |  4   5   6   7 |  8   9  10  11 | 12  13  14  15"
    )
    assert draw_grid(numbered(2, 8, 4), ["a", "b"]) == [
        "  |    data 0 of 8",
        "a |  0   1   2   3",
        "b | 32  33  34  35",
    ]


def test_the_memory_table_has_a_row_for_every_pipeline_rank():
    mebibyte = 2**20
    small = {"parameters": 262144, "weights": mebibyte, "gradients": mebibyte}
    large = {"parameters": 3 * 2**28, "weights": 3 * 2**30, "gradients": 3 * 2**30}
    first, second = small | {"moments": 2 * mebibyte}, large | {"moments": 6 * 2**30}
    assert draw_memory([first]) == [
        "at rest on a rank, MiB  parameters  weights  gradients  moments  together",
        "  pipeline 0               262,144     1.00       1.00     2.00      4.00",
    ]
    assert draw_memory([first, second])[0].startswith("at rest on a rank, GiB ")
    assert draw_memory([first, second])[2].split()[-4:] == ["3.00", "3.00", "6.00", "12.00"]


class Kept(Log):
    """Keeps its lines."""

    def __init__(self):
        super().__init__(None, False)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


class Shard(RandomText):
    """Random tokens that have a name, as a shard has."""

    shard = SimpleNamespace(prefix="random", meta={})


def introduced(config):
    """(lines, bytes as announced, bytes of the tensors that lie on the ranks after a step)."""
    trainer, log = build_trainer(config), Kept()
    introduce_plan(config, trainer.mesh, Shard(), None, log)
    introduce_state(config, trainer.state, log)
    announced = bytes_by_pipeline_rank(trainer.state)
    trainer.step(RandomText())
    weights = [parameter for _, parameter in named_parameters(trainer.state.stages)]
    moments = [m for p in weights for m in trainer.state.optimizer.state[p].values() if m.dim()]
    lying = {
        "weights": sum(p.to_local().nbytes for p in weights),
        "gradients": sum(p.grad.to_local().nbytes for p in weights),
        "moments": sum(m.to_local().nbytes for m in moments),
    }
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (trainer.mesh.rank("pipeline"), lying))
    return log.lines, announced, everyone


@pytest.mark.parametrize("strategy", ["no_shard", "optim"])
def test_the_bytes_announced_are_those_that_lie_there_after_a_step(ranks, strategy):
    config = TINY.replace(data_parallel_sharding_strategy=strategy, save="runs/x", profile=True)
    layout = Layout(2, 2, 1)
    lines, announced, everyone = ranks.run(4, introduced, layout.of(config.replace(bf16=True)))
    assert len(announced) == 2
    for pipeline, held in enumerate(announced):
        for what in ("weights", "gradients", "moments"):
            assert held[what] == max(lying[what] for p, lying in everyone if p == pipeline)
    on_a_data_rank = sum(held["parameters"] for held in announced)
    whole = on_a_data_rank * (1 if strategy == "no_shard" else 2)
    assert whole - 128 * 32 == config.model.num_parameters  # less the copy of the tied embedding
    assert "  layers 4-7, head       |      2 |      3" in lines
    assert any("5 steps of 8 samples are 0.62 epochs, 640 tokens" in line for line in lines)
    assert any(line.endswith("the ETA is measured") for line in lines)
    assert lines[-1] == "profile: nothing, this run has none of its iterations"


class OneDevice:
    device = torch.device("cuda", 0)


def test_hours_are_predicted_from_a_stated_assumption(monkeypatch):
    monkeypatch.setattr(introduction, "peak_tflops", lambda device, training: 312.0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 32)
    flops = 10 * 3600 * 0.4 * 32 * 312e12  # ten hours
    said = predicted(flops, TINY, OneDevice)
    assert said.startswith("10.0 h at an assumed 40% of 32 x 312 TFLOP/s, without evaluations")
    monkeypatch.setattr(introduction, "peak_tflops", lambda device, training: None)
    assert predicted(flops, TINY, OneDevice).startswith("hours unknown before the first steps")
