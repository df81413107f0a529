"""Which layers stand where, and how long ranks wait for each other."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from torch import nn
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.flops import block_flops, head_flops
from megatron_yuyuan.parallel.stages import (
    balanced,
    bubble_fraction,
    plan_stages,
    runs_as,
    stage_ranks,
)

YUYUAN = Config().replace(
    num_layers=30, hidden_size=3072, num_attention_heads=32, vocab_size=50257, seq_length=1024
)


def pipeline(size: int, schedule: str = "1F1B", config: Config = YUYUAN, **more) -> Config:
    return config.replace(pipeline_model_parallel_size=size, pipeline_schedule=schedule, **more)


def test_each_schedule_places_its_stages():
    assert stage_ranks(pipeline(3).parallel) == (0, 1, 2)
    assert stage_ranks(pipeline(3, "Interleaved1F1B").parallel) == (0, 1, 2, 0, 1, 2)
    assert stage_ranks(pipeline(3, "ZBVZeroBubble").parallel) == (0, 1, 2, 2, 1, 0)
    assert stage_ranks(pipeline(1, "ZBVZeroBubble").parallel) == (0,)
    three = pipeline(2, "InterleavedZeroBubble", num_virtual_stages_per_pipeline_rank=3)
    assert stage_ranks(three.parallel) == (0, 1, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("size", "layers"), [(4, [8, 8, 8, 6]), (8, [4, 4, 4, 4, 4, 4, 4, 2]), (30, [1] * 30)]
)
def test_thirty_layers_are_balanced_with_the_head(size, layers):
    assert [len(run) for run in plan_stages(pipeline(size)).layers] == layers


def cost(counts: list[int], config: Config) -> list[int]:
    """Operations of each stage, without the embedding."""
    model, tokens = config.model, config.data.seq_length
    costs = [n * block_flops(model, tokens) for n in counts]
    costs[-1] += head_flops(model, tokens)
    return costs


@pytest.mark.parametrize("vocabulary", [128, 50257, 500_000])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_other_division_has_a_cheaper_dearest_stage(size, vocabulary):
    config = pipeline(size, config=YUYUAN.replace(num_layers=9, vocab_size=vocabulary))
    found = max(cost(balanced(config, tuple(range(size))), config))

    def divisions(layers: int, stages: int):
        if stages == 1:
            yield (layers,)
        for first in range(1, layers - stages + 2 if stages > 1 else 1):
            yield from ((first, *rest) for rest in divisions(layers - first, stages - 1))

    assert found == min(max(cost(list(counts), config)) for counts in divisions(9, size))


def test_a_rank_that_holds_both_ends_gets_fewer_layers():
    plan = plan_stages(pipeline(4, "ZBVZeroBubble"))
    layers = [sum(len(plan.layers[s]) for s in plan.of_rank(rank)) for rank in range(4)]
    assert sum(layers) == 30
    assert layers[0] == min(layers)
    assert plan.of_rank(0) == [0, 7]


def test_a_layout_that_is_given_is_taken():
    plan = plan_stages(pipeline(4, pipeline_layout=(9, 9, 9, 3)))
    assert plan.layers == (range(9), range(9, 18), range(18, 27), range(27, 30))


# How long ranks wait, by the tables that torch's schedules execute.

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
UNITS = {"F": 1, "B": 2, "I": 1, "W": 1}
"""Time of an action: a backward is twice a forward, half for its input and half for the weights."""


class RecordingStage(SimpleNamespace):
    """What a schedule of one stage a rank asks of it, written down. (The table that torch's 1F1B
    gives for drawing begins the last rank with micro batch 1, so it is not used.)"""

    def __getattr__(self, name):
        return lambda *_, **__: []

    def forward_one_chunk(self, micro_batch, *_, **__):
        self.actions.append(("F", self.stage_index, micro_batch))

    def backward_one_chunk(self, micro_batch, *_, **__):
        self.actions.append(("B", self.stage_index, micro_batch))


def stub(stage: int, ranks: int, stages: int) -> RecordingStage:
    return RecordingStage(
        stage_index=stage, num_stages=stages, group_size=ranks, group_rank=stage % ranks,
        is_first=stage == 0, is_last=stage == stages - 1, submod=nn.Module(), actions=[],
    )  # fmt: skip


def actions(schedule: str, ranks: int, virtual: int, micro_batches: int) -> dict[int, list]:
    """Rank -> what it computes in order: (F, B, I or W; stage; micro batch)."""
    kind, stages = get_schedule_class(schedule), ranks * virtual
    if issubclass(kind, PipelineScheduleMulti):
        second = stages - 1 if schedule == "ZBVZeroBubble" else ranks
        mine = [
            stub(stage, ranks, stages) for stage in (0, second, *range(2 * ranks, stages, ranks))
        ]
        table = kind(mine[:virtual], micro_batches, loss_fn=print).pipeline_order
        return {
            rank: [
                (KINDS[a.computation_type.name], a.stage_index, a.microbatch_index)
                for a in row
                if a is not None and a.computation_type.name in KINDS
            ]
            for rank, row in table.items()
        }
    stages = [stub(rank, ranks, ranks) for rank in range(ranks)]
    for stage in stages:
        one = kind(stage, micro_batches, loss_fn=print)
        one._initialize_stage = one._maybe_compute_loss = one._update_losses = lambda *_: None
        one._step_microbatches([()] * micro_batches, [{}] * micro_batches, [0] * micro_batches)
    return {stage.stage_index: stage.actions for stage in stages}


def played(table: dict[int, list], stages: int) -> tuple[int, dict[int, int]]:
    """(time until the last action ends, largest number of forwards a rank keeps for a backward)."""
    ended, clock, alive = {}, dict.fromkeys(table, 0), dict.fromkeys(table, 0)
    waiting, most = {rank: list(row) for rank, row in table.items()}, dict.fromkeys(table, 0)
    while left := sum(map(len, waiting.values())):
        for rank, row in waiting.items():
            while row:
                kind, stage, micro = row[0]
                needs = [("F", stage - 1, micro)] if kind == "F" and stage else []
                if kind in "BI":
                    needs = [("F", stage, micro), ("B", stage + 1, micro)][
                        : 1 + (stage < stages - 1)
                    ]
                if any(need not in ended for need in needs):
                    break
                start = max([clock[rank], *(ended[need] for need in needs)])
                clock[rank] = start + UNITS[kind]
                ended["B" if kind == "I" else kind, stage, micro] = clock[rank]
                alive[rank] += {"F": 1, "B": -1, "I": 0, "W": -1}[kind]
                most[rank] = max(most[rank], alive[rank])
                row.pop(0)
        assert sum(map(len, waiting.values())) < left, "every rank waits for another"
    return max(clock.values()), most


SCHEDULES = [
    *(("GPipe", 1), ("1F1B", 1), ("Interleaved1F1B", 2), ("Interleaved1F1B", 3)),
    *(("InterleavedZeroBubble", 2), ("InterleavedZeroBubble", 3), ("ZBVZeroBubble", 2)),
]


@pytest.mark.parametrize(("schedule", "virtual"), SCHEDULES)
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (2, 8), (4, 8), (4, 16), (8, 16)])
def test_ranks_idle_as_the_formula_says(schedule, virtual, ranks, micro_batches):
    table = actions(schedule, ranks, virtual, micro_batches)
    length, _ = played(table, ranks * virtual)
    busy = 3 * virtual * micro_batches
    assert all(sum(UNITS[kind] for kind, _, _ in row) == busy for row in table.values())
    assert 1 - Fraction(busy, length) == bubble_fraction(schedule, ranks, virtual, micro_batches)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zero_bubble_idles_less_than_interleaved_and_that_less_than_1f1b(ranks):
    one, interleaved, zero = (
        bubble_fraction(schedule, ranks, virtual, 2 * ranks)
        for schedule, virtual in (("1F1B", 1), ("Interleaved1F1B", 2), ("ZBVZeroBubble", 2))
    )
    assert zero < interleaved < one


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_1f1b_holds_a_micro_batch_per_stage_where_gpipe_holds_all(ranks):
    held = {
        schedule: played(actions(schedule, ranks, 1, 3 * ranks), ranks)[1]
        for schedule in ("1F1B", "GPipe")
    }
    assert held["1F1B"] == {rank: ranks - rank for rank in range(ranks)}
    assert set(held["GPipe"].values()) == {3 * ranks}


@pytest.mark.parametrize(("schedule", "virtual"), SCHEDULES[1:])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_number_of_micro_batches_has_a_schedule(schedule, virtual, ranks):
    """What runs_as names can be built and played to its end; what it replaces, torch refuses."""
    parallel = pipeline(ranks, schedule, num_virtual_stages_per_pipeline_rank=virtual).parallel
    for micro_batches in range(1, 3 * ranks + 2):
        name = runs_as(parallel, micro_batches)
        table = actions(name, ranks, virtual, micro_batches)
        assert {rank: len(row) > 0 for rank, row in table.items()} == dict.fromkeys(table, True)
        played(table, ranks * virtual)
        if name != schedule:
            with pytest.raises(ValueError, match="microbatches"):
                actions(schedule, ranks, virtual, micro_batches)
