"""A bit that flips is noticed, and the machine named on which it did."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.checkpoint.saver import build_saver
from megatron_yuyuan.errors import MachineError
from megatron_yuyuan.exit_report import exit_reported
from megatron_yuyuan.log import Log
from megatron_yuyuan.train.verification import _minority, make_deterministic
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import find_checkpoint

SMALL = TINY.replace(num_layers=2, hidden_dropout=0.1)
FIGURES = ("lm_loss", "grad_norm")


def flip(tensor: torch.Tensor, rank: int) -> None:
    """The lowest bit of the first element that a rank holds of a tensor."""
    if dist.get_rank() == rank:
        tensor.to_local().detach().view(-1).view(torch.int32)[:1] ^= 1


def message(call, *arguments) -> tuple[str, str, dict] | None:
    """What a call on every rank is refused with, the same on all of them; None where it is not."""
    refused = None
    try:
        call(*arguments)
    except MachineError as error:
        refused = (error.what, error.why, error.culprit)
    heard: list = [None] * dist.get_world_size()
    dist.all_gather_object(heard, refused)
    assert all(said == refused for said in heard)
    return refused


def with_flips(trainer, flips: dict[int, int]) -> None:
    """From now on, flip a bit of the gradient that {computation: rank} holds after it."""
    compute, count = type(trainer).gradients, iter(range(100))

    def gradients(dataset):
        figures = compute(trainer, dataset)
        if (rank := flips.get(next(count))) is not None:
            last = list(trainer.state.stages[0].parameters())[-1]
            flip(last.grad, rank)
        return figures

    trainer.gradients = gradients


def faulty_forward(trainer, rank: int) -> None:
    """Have a rank compute one block of the next forward wrongly."""

    def once(_block, _inputs, output):
        hook.remove()
        wrong = output.clone()
        wrong[..., 0] += 0.5
        return wrong if dist.get_rank() == rank else output

    hook = trainer.state.stages[0].h["0"].register_forward_hook(once)


def refusals(config, rank: int) -> dict:
    """What is said of each kind of error on a rank, and whether an update was made after all."""
    trainer, samples, said = build_trainer(config), RandomText(), {}
    trainer.step(samples)
    kept = [p.to_local().detach().clone() for p in trainer.state.stages[0].parameters()]
    for name, flips in {
        "first": {0: rank},
        "second": {1: rank},
        "always": {0: rank, 2: rank},
    }.items():
        with_flips(trainer, flips)
        said[name] = message(trainer.step, samples)
    del trainer.gradients
    faulty_forward(trainer, rank)
    said["forward"] = message(trainer.step, samples)
    now = [p.to_local() for p in trainer.state.stages[0].parameters()]
    said["updated"] = not all(map(torch.equal, now, kept))
    said["whole"] = message(trainer.step, samples)
    return said


@pytest.mark.parametrize(
    ("layout", "rank"), [(Layout(data=2), 1), (Layout(1, 2, 2), 3)], ids=["dp2", "dp2tp2"]
)
def test_a_flipped_bit_names_its_rank_and_nothing_is_updated(ranks, layout, rank):
    said = ranks.run(layout.ranks, refusals, layout.of(SMALL).replace(verify_every=2), rank)
    for name, agrees in (("first", "second"), ("second", "first")):
        what, why, culprit = said[name]
        assert what.startswith(f"iteration 2 computed again differs on rank {rank} (")
        assert f"the third time they were those of the {agrees}" in why
        assert culprit["rank"] == rank
    assert said["always"][0] == said["first"][0]
    assert said["forward"][0].startswith("iteration 2 computed again differs on rank")
    named = said["forward"][0].split("differs on ")[1]
    assert f"rank {rank} (" in named and "rank 0 (" not in named  # its tensor ranks share its loss
    assert (said["updated"], said["whole"]) == (False, None)


def three_results(config) -> tuple[str, str, dict]:
    trainer = build_trainer(config)
    with_flips(trainer, {0: 1, 1: 0})
    return message(trainer.step, RandomText())


def test_three_results_are_rather_the_programs_fault(ranks):
    what, why, _ = ranks.run(2, three_results, Layout(data=2).of(SMALL).replace(verify_every=1))
    assert "differs on rank 0 (" in what and ", rank 1 (" in what
    assert why.startswith("three computations gave three results")


def steps_with_and_without(config) -> tuple[list, list, int]:
    figures, computations = [], []
    for every in (0, 2):
        trainer = build_trainer(config.replace(verify_every=every), one_layout=True)
        with_flips(trainer, {})
        compute, taken = trainer.gradients, []

        def counted(dataset, compute=compute, taken=taken):
            taken.append(1)
            return compute(dataset)

        trainer.gradients = counted
        steps = [trainer.step(RandomText()) for _ in range(4)]
        figures.append([step[name] for step in steps for name in FIGURES])
        computations.append(len(taken))
    return *figures, computations


@pytest.mark.parametrize(
    "config",
    [
        Layout(2, 1, 2, True).of(SMALL).replace(fp16=True),
        Layout(1, 4).of(SMALL).replace(num_distributed_optimizer_instances=2, bf16=True),
        Layout(1, 2).of(SMALL).replace(attention_dropout=0.1, attention_dropout_rng="torch"),
    ],
    ids=["pp2tp2sp-fp16", "hybrid-bf16", "torch-dropout"],
)
def test_verifying_changes_nothing(ranks, config):
    validate(config, size := 2 if config.model.attention_dropout else 4)
    without, verified, computations = ranks.run(size, steps_with_and_without, config)
    assert verified == without
    assert computations == [4, 6]


def changed_copies(config, changes: list[tuple[str, int]], directory) -> list:
    """What a save says of copies that differ: (tensor, rank of the wrong one), each in a run of its own."""
    said = []
    for number, (name, rank) in enumerate([*changes, ("", 0)]):
        config = config.replace(save=str(directory / str(number)))
        trainer = build_trainer(config)
        trainer.step(RandomText())
        kind, _, name = name.partition(".")
        if kind:
            named = dict(trainer.state.stages[0].named_parameters())
            if kind == "model" and name in named:
                flip(named[name], rank)
            elif name in named:
                flip(trainer.state.moments(named[name])[kind], rank)
        tokenizer = SimpleNamespace(fingerprint="0", vocab_size=120)
        saver = build_saver(config, trainer.state, tokenizer, None, Log(None, False))
        saved = message(saver.save)
        assert (find_checkpoint(config.checkpoint.save) is None) is (saved is not None)
        said.append(saved)
    return said


WHOLE = {"data_parallel_sharding_strategy": "no_shard"}
HYBRID = {"num_distributed_optimizer_instances": 2}


@pytest.mark.parametrize(
    ("layout", "options", "changes", "named"),
    [
        (Layout(1, 2), WHOLE, [("exp_avg.ln_f.bias", 1)], ["rank 0 (.*, rank 1 (.* disagree on"]),
        (
            Layout(1, 4),
            WHOLE,
            [("model.h.1.mlp.c_fc.weight", 2), ("exp_avg_sq.wte.weight", 0)],
            ["rank 2 (.* has other bits", "rank 0 (.* has other bits"],
        ),
        (
            Layout(1, 4),
            HYBRID,
            [("model.h.0.mlp.c_fc.weight", 3)],
            ["rank 1 (.*, rank 3 (.* disagree on"],
        ),
        (Layout(tensor=4), {}, [("model.h.0.ln_1.weight", 2)], ["rank 2 (.* has other bits"]),
        (Layout(2, 1, 2), {}, [("model.wte.weight", 1)], ["rank 1 (.*, rank 3 (.* disagree on"]),
    ],
    ids=["no_shard-dp2", "no_shard-dp4", "hybrid", "tensor-4", "tied"],
)
def test_copies_that_differ_are_not_saved(ranks, tmp_path, layout, options, changes, named):
    config = layout.of(SMALL).replace(**options)
    *refused, whole = ranks.run(layout.ranks, changed_copies, config, changes, tmp_path)
    for said, ((name, _), pattern) in zip(refused, zip(changes, named, strict=True), strict=True):
        what = said[0]
        assert what.startswith("after iteration 1 ")
        first, _, second = pattern.partition(".*")
        assert first in what and all(part in what for part in second.split(".*"))
        assert name in what
    assert whole is None


def reported(config) -> None:
    trainer = build_trainer(config)
    with pytest.raises(MachineError), exit_reported(config.checkpoint, trainer.state):
        raise MachineError("a", "b", "c", {"rank": 3, "host": "node7"})


def test_exit_json_names_the_machine(ranks, tmp_path):
    ranks.run(1, reported, SMALL.replace(save=str(tmp_path)))
    report = json.loads((tmp_path / "exit.json").read_text())
    assert (report["class"], report["status"]) == ("machine", 2)
    assert (report["rank"], report["host"]) == (3, "node7")


def test_a_majority_names_the_others():
    assert _minority({0: "a", 1: "a"}) == []
    assert _minority({0: "a", 1: "b"}) == [0, 1]
    assert _minority({0: "a", 3: "b", 5: "a"}) == [3]
    assert _minority({0: "a", 1: "b", 2: "a", 3: "b"}) == [0, 1, 2, 3]


def test_a_step_that_must_repeat_has_its_sums_in_one_order(monkeypatch):
    """What torch and cuBLAS are told on CUDA; on the CPU there is nothing to tell."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        make_deterministic(torch.device("cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        make_deterministic(torch.device("cuda", 0))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert TINY.replace(deterministic_mode=True).training.is_deterministic
    assert TINY.replace(verify_every=5).training.is_deterministic
    assert not TINY.training.is_deterministic
