"""The promise: the layout changes speed, never results."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, all_layouts, build_trainer, largest_difference
from trajectory import whole_gradients

from megatron_yuyuan.data.loader import Borders, read_batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.parallel.tensor import TensorAxis

DROPOUT = TINY.replace(hidden_dropout=0.1, attention_dropout=0.1)


def trajectory(config, steps: int = 3):
    """(gradients, loss and norm of step 1), losses and norms of `steps` more, and the validation
    loss."""
    trainer, samples = build_trainer(config), RandomText()
    loss, norm = trainer.gradients(samples)
    gradients = whole_gradients(trainer)
    taken = [trainer.step(samples) for _ in range(steps)]
    figures = [loss, norm] + [step[key] for step in taken for key in ("lm_loss", "grad_norm")]
    return gradients, [*figures, trainer.evaluate(RandomText(length=13))["validation_loss"]]


def undivided_gradients(config):
    """The same first step on the plain model with plain autograd: no mesh, no pipeline, no FSDP."""
    model = GPT2(config.model, config.training.seed)
    init_weights(model, config.training.seed)
    batch = read_batch(RandomText(), 0, config.training.global_batch_size, 0, 1, "cpu")
    total, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
    (total / count).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.stack([g.double().norm() for g in gradients.values()]).norm().item()
    return gradients, [(total / count).item(), norm]


@pytest.fixture(scope="module")
def alone(ranks):
    """The trajectory of one rank, with and without dropout."""
    return {config: ranks.run(1, trajectory, config) for config in (TINY, DROPOUT)}


@pytest.mark.parametrize("config", [TINY, DROPOUT], ids=["plain", "dropout"])
def test_one_rank_takes_the_step_of_the_undivided_model(alone, config):
    gradients, figures = undivided_gradients(config)
    assert figures == pytest.approx(alone[config][1][:2], rel=1e-5)
    difference, name = largest_difference(alone[config][0], gradients)
    assert difference <= 1e-5, name


IN_SHORT = [*all_layouts(2), Layout(3), Layout(1, 2, 2), Layout(2, 1, 2, True)]
LONGER = [
    pytest.param(layout, marks=pytest.mark.slow)
    for layout in all_layouts(4, 8)
    if layout not in IN_SHORT
]


@pytest.mark.parametrize("layout", [*IN_SHORT, *LONGER], ids=str)
def test_any_layout_takes_the_steps_one_process_takes(ranks, alone, layout):
    """Every gradient of the first step, too. test_options.py has losses and norms on 8 ranks."""
    config = DROPOUT if layout.ranks == 4 else TINY
    expected_gradients, expected = alone[config]
    gradients, figures = ranks.run(layout.ranks, trajectory, layout.of(config))
    difference, name = largest_difference(gradients, expected_gradients)
    assert difference <= 1e-5, name
    assert figures == pytest.approx(expected, rel=1e-5)
    assert abs(expected[2 * 3] / expected[0] - 1) > 1e-2  # not vacuous: the loss moves


def test_dropout_really_drops(alone):
    assert abs(alone[DROPOUT][1][0] / alone[TINY][1][0] - 1) > 1e-3


@pytest.mark.parametrize(
    ("data", "micro"),
    [(1, 4), (2, 2), (4, 1), (4, 4)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in ((1, 1), (1, 2), (2, 1), (2, 4), (4, 2))
    ],
)
def test_unequal_loss_masks_weigh_tokens_not_micro_batches(ranks, alone, data, micro):
    config = (
        TINY.replace(micro_batch_size=micro)
        if micro * data <= 8
        else TINY.replace(micro_batch_size=micro, global_batch_size=16)
    )
    expected = (
        alone[TINY][1]
        if config.training.global_batch_size == 8
        else ranks.run(1, trajectory, TINY.replace(global_batch_size=16))[1]
    )
    assert ranks.run(data, trajectory, config)[1] == pytest.approx(expected, rel=1e-5)


def mean_of_means(config) -> float:
    samples = RandomText()
    trainer = build_trainer(config.replace(global_batch_size=1))
    losses = []
    for number in range(8):
        trainer.state.consumed_samples = number
        losses.append(trainer.gradients(samples)[0])
    return sum(losses) / len(losses)


def test_a_mean_of_means_would_be_seen(ranks, alone):
    assert abs(ranks.run(1, mean_of_means, TINY) / alone[TINY][1][0] - 1) > 1e-3


def test_fewer_micro_batches_than_stages(ranks, alone):
    config = Layout(pipeline=4).of(TINY).replace(micro_batch_size=4)
    assert ranks.run(4, trajectory, config)[1] == pytest.approx(alone[TINY][1], rel=1e-5)


BORDERS = Borders(eod=5, reset_position_ids=True, reset_attention_mask=True, eod_mask_loss=True)


class Documents(RandomText):
    """The same, one token in eight the end of a document."""

    def __getitem__(self, number: int):
        tokens, labels = super().__getitem__(number)
        return np.where(tokens % 8 == 5, 5, tokens), labels


def divided(config, borders):
    """Gradients, loss and norm of the first step, and the validation loss, over `Documents`."""
    trainer = build_trainer(config)
    trainer.borders = borders
    loss, norm = trainer.gradients(Documents())
    gradients = whole_gradients(trainer)
    evaluation = trainer.evaluate(Documents(length=13))
    return gradients, [loss, norm, evaluation["validation_loss"]]


@pytest.mark.parametrize("layout", [Layout(2, 1, 2, True), Layout(1, 2, 2)], ids=str)
def test_documents_are_divided_alike_in_any_layout(ranks, layout):
    expected_gradients, expected = ranks.run(1, divided, DROPOUT, BORDERS)
    gradients, figures = ranks.run(4, divided, layout.of(DROPOUT), BORDERS)
    difference, name = largest_difference(gradients, expected_gradients)
    assert difference <= 1e-5, name
    assert figures == pytest.approx(expected, rel=1e-5)
    plain = ranks.run(1, divided, DROPOUT, None)[1]
    assert all(abs(mine / other - 1) > 1e-4 for mine, other in zip(expected, plain, strict=True))


# The errors that torch's parallel pieces make silently: each is made on purpose, and must be seen.


def without_partial(config):
    TensorAxis.local, kept = lambda axis, whole: whole.to_local(), TensorAxis.local
    try:
        loss, norm = build_trainer(config).gradients(RandomText())
        return loss, norm
    finally:
        TensorAxis.local = kept


def test_a_missing_partial_gradient_would_be_seen(ranks, alone):
    layout = Layout(tensor=2, sequence_parallel=True)
    loss, norm = ranks.run(2, without_partial, layout.of(TINY))
    assert loss == pytest.approx(alone[TINY][1][0], rel=1e-5)  # the loss does not show it
    assert abs(norm / alone[TINY][1][1] - 1) > 1e-3


def untied(config):
    from megatron_yuyuan.train import trainer

    trainer.sum_tied_gradients, kept = lambda stages, mesh: None, trainer.sum_tied_gradients
    try:
        return trajectory(config, steps=1)
    finally:
        trainer.sum_tied_gradients = kept


def test_an_embedding_left_untied_would_be_seen(ranks, alone):
    gradients, figures = ranks.run(2, untied, Layout(pipeline=2).of(TINY))
    assert abs(figures[1] / alone[TINY][1][1] - 1) > 1e-3
    assert largest_difference(gradients, alone[TINY][0])[1] == "wte.weight"


def tied_copies(config):
    trainer, samples = build_trainer(config), RandomText()
    for _ in range(3):
        trainer.step(samples)
    model, group = trainer.state.stages[0], trainer.mesh.tied_group
    mine = model.wte.weight.full_tensor()
    largest = mine.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return bool((largest == mine).all())


def test_the_two_copies_of_the_embedding_stay_equal(ranks):
    assert ranks.run(4, tied_copies, Layout(pipeline=2, data=2).of(TINY))


def evaluation(config, samples: int):
    return build_trainer(config).evaluate(RandomText(length=samples))


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(pipeline=2), Layout(data=2), Layout(2, 2, 2, True)], ids=str
)
def test_an_indivisible_evaluation_counts_each_sample_once(ranks, layout):
    figures = ranks.run(layout.ranks, evaluation, layout.of(TINY), 13)
    model = GPT2(TINY.model)
    init_weights(model, TINY.training.seed)
    batch = read_batch(RandomText(length=13), 0, 13, 0, 1, "cpu")
    with torch.no_grad():
        total, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
    assert figures["tokens"] == count.item()
    assert figures["validation_loss"] == pytest.approx((total / count).item(), rel=1e-5)


def collectives_of_a_step(config) -> dict[str, int]:
    """How often FSDP reduces and gathers in the second step."""
    counts = {"reduce_scatter": 0, "all_gather": 0}

    def counted(function, kind):
        def call(*arguments, **options):
            counts[kind] += 1
            return function(*arguments, **options)

        return call

    trainer, samples = build_trainer(config), RandomText()
    trainer.step(samples)
    names = [
        (n, k)
        for k in counts
        for n in (f"{k}_single", f"{k}_tensor", f"{k}_into_tensor")
        if hasattr(dist, n)
    ]
    kept = {name: getattr(dist, name) for name, _ in names}
    try:
        for name, kind in names:
            setattr(dist, name, counted(kept[name], kind))
        trainer.step(samples)
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
    return counts


@pytest.mark.parametrize("layout", [Layout(data=2), Layout(pipeline=2, data=2)], ids=str)
def test_gradients_are_reduced_and_parameters_gathered_once_per_step(ranks, layout):
    units = TINY.model.num_layers // layout.pipeline + 1
    counts = ranks.run(layout.ranks, collectives_of_a_step, layout.of(TINY))
    assert counts == {"reduce_scatter": units, "all_gather": units}


BF16_BOUND = 3e-3


def losses(config):
    trainer, samples = build_trainer(config), RandomText()
    return [trainer.step(samples)["lm_loss"] for _ in range(3)]


def test_bf16_follows_float32_within_the_spread_of_its_rounding(ranks, alone):
    """Summed in another order, bf16 rounds otherwise: the bound is a few times the difference between
    two layouts, and far below what a step changes."""
    bf16, frozen = TINY.replace(bf16=True), TINY.replace(bf16=True, lr=0.0)
    float32 = alone[TINY][1][2:8:2]
    one = ranks.run(1, losses, bf16)
    eight = ranks.run(8, losses, Layout(2, 2, 2).of(bf16))
    assert one == pytest.approx(float32, rel=BF16_BOUND)
    assert eight == pytest.approx(float32, rel=BF16_BOUND)
    assert ranks.run(1, losses, frozen) != pytest.approx(float32, rel=BF16_BOUND)
