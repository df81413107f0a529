"""What the ranks of a run must decide alike."""

import torch.distributed as dist
from tiny import TINY

from megatron_yuyuan import run
from megatron_yuyuan.errors import ConfigErrors
from megatron_yuyuan.kernels import Kernels, reference
from megatron_yuyuan.parallel import mesh as mesh_module

OTHERS = Kernels(layer_norm=lambda *arguments: reference.layer_norm(*arguments))


def kernels_of_ranks(built_on: tuple[int, ...]) -> tuple[bool, str]:
    """Whether this rank takes the built kernels, and what is said, if those ranks could build them."""
    mesh = mesh_module.start(TINY.parallel)
    mine = OTHERS if dist.get_rank() in built_on else Kernels()
    run.choose = lambda name, device: (mine, "built" if mine is OTHERS else "reference, because")
    kernels, said = run.choose_alike("auto", mesh)
    taken = mesh.all_agree(kernels == OTHERS)
    assert taken or mesh.all_agree(kernels == Kernels()), "the ranks differ"
    return taken, said


def test_auto_takes_the_same_kernels_on_every_rank(ranks):
    assert ranks.run(2, kernels_of_ranks, (0, 1)) == (True, "built")
    taken, said = ranks.run(2, kernels_of_ranks, (0,))
    assert not taken and said.startswith("reference, because not every rank")
    assert ranks.run(2, kernels_of_ranks, (1,)) == (False, "reference, because")


def test_ranks_that_were_given_different_things_are_refused_with_all_of_them(ranks):
    said = ranks.run(4, started_with, ("1", "1", "2", "2"), ("a", "a", "a", "b"))
    assert said[0].startswith("seed is 1 on rank 0, 2 on rank 2 (") and said[0].endswith(
        ") and on 1 more"
    )
    assert said[1].startswith("the tokenizer is a on rank 0, b on rank 3 (")
    assert ranks.run(2, started_with, ("1", "1"), ("a", "a")) == []


def started_with(seeds: tuple[str, ...], tokenizers: tuple[str, ...]) -> list[str]:
    """What is said on every rank of a start with these values, by rank."""
    rank, said = dist.get_rank(), list[str]()
    try:
        mesh_module.start(
            TINY.parallel, alike={"seed": seeds[rank], "the tokenizer": tokenizers[rank]}
        )
    except ConfigErrors as errors:
        said = [error.what for error in errors.problems]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    assert everyone == [said] * len(everyone)
    return said
