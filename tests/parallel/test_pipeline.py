"""Every schedule, any number of micro batches, any division of the layers: the same result."""

import gc
import weakref
from functools import partial

import pytest
import torch
from tiny import TINY, Layout, RandomText, build_trainer, largest_difference
from trajectory import five_steps

from megatron_yuyuan.checkpoint.dcp import load_tensors, save_checkpoint
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.parallel import pipeline
from megatron_yuyuan.parallel.stages import runs_as

V_SHAPED = "ZBVZeroBubble"
SCHEDULES = ("1F1B", "Interleaved1F1B", "InterleavedZeroBubble", V_SHAPED)


@pytest.fixture(scope="module")
def alone(ranks):
    """Five steps of one rank, by global batch size."""
    return {size: ranks.run(1, five_steps, TINY.replace(global_batch_size=size)) for size in (8, 7)}


def compare(found, expected) -> None:
    difference, name = largest_difference(found[0], expected[0])
    assert difference <= 1e-5, name
    assert found[1] == pytest.approx(expected[1], rel=1e-5)


def pipelines_that_stay(config) -> int:
    """Of those for other batch sizes, when the size has changed; Python's collector of circles is off."""
    trainer, made = build_trainer(config), []
    gc.collect()
    gc.disable()
    for size in (4, 8, 4):
        trainer._use_batches_of(size)
        made.append(weakref.ref(trainer.pipeline))
    gc.enable()
    return sum(pipeline() is not None for pipeline in made)


@pytest.mark.parametrize("schedule", ["1F1B", "Interleaved1F1B"])
def test_the_buffers_of_another_batch_size_are_given_back(ranks, schedule):
    config = TINY.replace(pipeline_model_parallel_size=2, pipeline_schedule=schedule)
    assert ranks.run(2, pipelines_that_stay, config) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("micro", [8, pytest.param(4, marks=pytest.mark.slow), 1])
def test_any_number_of_micro_batches(ranks, alone, schedule, micro):
    config = TINY.replace(
        pipeline_model_parallel_size=2, pipeline_schedule=schedule, micro_batch_size=micro
    )
    compare(ranks.run(2, five_steps, config), alone[8])


def refusal_by_an_older_torch(config) -> str:
    """What a start says under a torch that divides no backward."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError) as refused:
        patch.setattr(pipeline, "DIVIDES_BACKWARD", False)
        build_trainer(config)
    return refused.value.what


@pytest.mark.parametrize("schedule", SCHEDULES[2:])
def test_a_torch_that_divides_no_backward_is_refused(ranks, schedule):
    config = TINY.replace(pipeline_model_parallel_size=2, pipeline_schedule=schedule)
    said = ranks.run(2, refusal_by_an_older_torch, config)
    assert said == f"pipeline_schedule={schedule} with torch {torch.__version__}"


def test_a_number_that_a_schedule_refuses_runs_in_gpipes_order(ranks, alone):
    config = TINY.replace(
        pipeline_model_parallel_size=2, pipeline_schedule="Interleaved1F1B", global_batch_size=7
    )
    assert runs_as(config.parallel, 7) == "LoopedBFS"
    compare(ranks.run(2, five_steps, config), alone[7])


@pytest.mark.parametrize(
    ("schedule", "layout"),
    [("1F1B", (5, 2, 1)), ("Interleaved1F1B", (1, 2, 1, 2, 1, 1)), (V_SHAPED, (2, 1, 1, 1, 2, 1))],
)
def test_uneven_stages(ranks, alone, schedule, layout):
    config = TINY.replace(
        pipeline_model_parallel_size=3, pipeline_schedule=schedule, pipeline_layout=layout
    )
    compare(ranks.run(3, five_steps, config), alone[8])


def saved_and_loaded(first, second, directory) -> tuple[list[float], bool]:
    """Two steps at a layout, saved; loaded at another of as many ranks, and two more. Their losses,
    and whether the embedding's copies on this rank are the same."""
    trainer, samples = build_trainer(first), RandomText()
    losses = [trainer.step(samples)["lm_loss"] for _ in range(2)]
    path = save_checkpoint(directory, 2, trainer.state.tensors(), {})
    trainer = build_trainer(second)
    trainer.state.fill(partial(load_tensors, path))
    trainer.state.continue_after(2, 2 * first.training.global_batch_size, 2)
    losses += [trainer.step(samples)["lm_loss"] for _ in range(2)]
    copies = [s.wte.weight.to_local() for s in trainer.state.stages if s.wte is not None]
    return losses, all(torch.equal(copy, copies[0]) for copy in copies)


@pytest.mark.parametrize(
    ("before", "after"), [(V_SHAPED, V_SHAPED), ("1F1B", V_SHAPED), (V_SHAPED, "Interleaved1F1B")]
)
def test_a_checkpoint_of_one_schedule_continues_under_another(
    ranks, alone, before, after, tmp_path
):
    first, second = (
        Layout(pipeline=2).of(TINY).replace(pipeline_schedule=schedule)
        for schedule in (before, after)
    )
    losses, tied = ranks.run(2, saved_and_loaded, first, second, str(tmp_path))
    assert losses == pytest.approx(alone[8][1][0:8:2], rel=1e-6)
    assert tied
