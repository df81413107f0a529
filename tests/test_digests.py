"""Digests of a run's state: equal where every bit is, on any layout; another where any bit is."""

import json

import pytest
import torch
from commands import train_flags
from faults.kills import read_digests
from pretraining import pretrained
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.checkpoint.ranks import Ranks
from megatron_yuyuan.digests import DIGESTS, PORTION, _scattered, state_digests, tensor_sums
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import find_checkpoint

SMALL = TINY.replace(num_layers=2)
LAYOUTS = [
    Layout(1, 1, 1),
    Layout(1, 2, 1),
    Layout(2, 1, 1),
    Layout(1, 1, 2, True),
    Layout(1, 2, 2),
    Layout(2, 2, 1),
]


def fresh(layout: Layout) -> dict[str, str]:
    """Of a state before its first step, all moments there."""
    state = build_trainer(layout.of(SMALL)).state
    state.continue_after(0, 0, 0)
    return state_digests(state, seed=7)


def test_no_layout_shows_in_a_digest(ranks):
    found = [ranks.run(layout.ranks, fresh, layout) for layout in LAYOUTS]
    assert all(digests == found[0] for digests in found)
    assert len(set(found[0].values())) == 4


def changed(layout: Layout) -> list[dict[str, str]]:
    """Before and after: one bit of the last rank's part of a matrix and of a moment, a counter."""
    state = build_trainer(layout.of(SMALL)).state
    state.continue_after(0, 0, 0)
    last, found = Ranks().rank == Ranks().size - 1, [state_digests(state, 7)]
    tensors = state.tensors()
    for name in ("model.h.1.mlp.c_fc.weight", "exp_avg_sq.h.1.mlp.c_fc.weight"):
        if last:
            bits = tensors[name].to_local().view(torch.int32)
            bits.view(-1)[-1] ^= 1
        found.append(state_digests(state, 7))
    state.consumed_samples += 1
    return [*found, state_digests(state, 7), state_digests(state, 8)]


@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(1, 2, 1), Layout(1, 1, 2)], ids=str)
def test_one_bit_on_one_rank_shows_in_its_part_alone(ranks, layout):
    found = ranks.run(layout.ranks, changed, layout)
    for before, after, part in zip(
        found, found[1:], ("model", "moments", "rest", "rest"), strict=False
    ):
        assert {name for name in before if before[name] != after[name]} == {part, "sha256"}


def test_a_copy_that_differs_shows(ranks):
    """Of a bias that both tensor ranks hold whole."""

    assert ranks.run(2, a_copy_differs)


def a_copy_differs() -> bool:
    tensors = build_trainer(Layout(tensor=2).of(SMALL)).state.tensors()
    before, name = tensor_sums(tensors), "model.h.0.mlp.c_proj.bias"
    if Ranks().rank == 1:
        tensors[name].to_local().view(torch.int32).view(-1)[0] ^= 1
    after = tensor_sums(tensors)
    return [n for n in before if before[n] != after[n]] == [name]


def test_a_sum_is_its_formula():
    """Over several portions, for every size of an element, and for shapes of 0 to 3 dimensions."""
    torch.manual_seed(0)
    for shape in ((), (5,), (3, 4), (2, 3, 4), (0, 4)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensor = torch.randn(shape).to(dtype)
            integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
            bits = tensor.view(integers).flatten().tolist()
            expected = sum((2 * splitmix(i) + 1) * b for i, b in enumerate(bits)) % 2**64
            assert tensor_sums({"a": tensor}) == {"a": expected}
    large = torch.arange(PORTION + 4096, dtype=torch.int32).reshape(-1, 64)
    factors = 2 * _scattered(torch.arange(large.numel())) + 1
    whole = int((factors * large.flatten()).sum()) % 2**64
    assert tensor_sums({"a": large}) == {"a": whole}


def splitmix(number: int) -> int:
    """The finalizer as it is published, on whole numbers of 64 bits."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ number >> shift) * factor % 2**64
    return number ^ number >> 31


def test_elements_that_are_exchanged_show():
    assert tensor_sums({"a": torch.tensor([1.0, 2.0])}) != tensor_sums(
        {"a": torch.tensor([2.0, 1.0])}
    )
    assert tensor_sums({"a": torch.tensor([0.0])}) != tensor_sums({"a": torch.tensor([-0.0])})


def test_a_run_continued_on_another_layout_starts_from_the_same_digest(ranks, prepared, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ("--log-digests", "--eval-iters", 0, "--train-iters", 4, "--lr-decay-iters", 9)
    ranks.run(2, pretrained, train_flags(prepared, first, *flags))
    goes_on = ("--load", first, "--train-iters", 5, "--pipeline-model-parallel-size", 2)
    ranks.run(2, pretrained, train_flags(prepared, second, *flags, *goes_on))
    assert find_checkpoint(first).name == "iter_0000004"
    before, after = read_digests(first / DIGESTS), read_digests(second / DIGESTS)
    assert (sorted(before), sorted(after)) == ([0, 1, 2, 3, 4], [4, 5])
    assert before[4] == after[4] and before[3] != before[4] != after[5]
    line = json.loads((first / DIGESTS).read_text().splitlines()[0])
    assert {"event", "schema", "iteration", "model", "moments", "rest", "sha256"} == set(line)


def test_digests_need_a_directory():
    config = SMALL.replace(log_digests=True)
    with pytest.raises(ConfigError, match="log_digests without save"):
        validate(config, 1)
    validate(config.replace(save="run"), 1)


def test_a_step_is_another_state(ranks):
    assert ranks.run(1, digests_of_two_steps) == 3


def digests_of_two_steps() -> int:
    trainer = build_trainer(SMALL)
    found = {state_digests(trainer.state, 7)["sha256"]}
    for _ in range(2):
        trainer.step(RandomText())
        found.add(state_digests(trainer.state, 7)["sha256"])
    return len(found)
