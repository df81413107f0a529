"""Predicted memory is that of real steps: within 5 % of the bytes of all tensors that live on a rank."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from commands import ROOT
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import load_toml
from megatron_yuyuan.model import loss as loss_module
from megatron_yuyuan.model.recomputation import Recomputation
from megatron_yuyuan.planner import sizes as sizes_module
from megatron_yuyuan.planner.dry_run import PARTS, RankReport, dry_run
from megatron_yuyuan.planner.live_memory import LiveMemory
from megatron_yuyuan.planner.memory import Memory, predict_memory, recomputed_runs
from megatron_yuyuan.planner.sizes import Sizes

BOUND = 0.05
WIDE = TINY.replace(
    num_layers=4,
    hidden_size=192,
    vocab_size=900,
    seq_length=128,
    max_position_embeddings=128,
    micro_batch_size=2,
    global_batch_size=8,
    device="cpu",
)
"""Wide enough that statistics and single numbers are no part of the agreement."""
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "attention_dropout": 0.1}
CASES = {
    "briefly": (Layout(data=2), {"data_parallel_sharding_strategy": "optim_grads_params"}),
    "full": (Layout(), FULL),
    "selective": (Layout(tensor=2), SELECTIVE),
}
"""Two more, in `test_dry_run.py`: a pipeline, and tensor, sequence and data parallelism."""
FURTHER = {
    "tensor": (Layout(tensor=2), {}),
    "optim": (Layout(data=2), {"data_parallel_sharding_strategy": "optim"}),
    "no_shard": (Layout(data=2), {"data_parallel_sharding_strategy": "no_shard"}),
    "three axes": (Layout(2, 2, 2, True), {}),
    "interleaved": (Layout(2), {"pipeline_schedule": "Interleaved1F1B"}),
    "sequence, bf16": (Layout(tensor=2, sequence_parallel=True), {"bf16": True}),
    "dropout, bf16": (Layout(2), {"bf16": True, "hidden_dropout": 0.1}),
    "interleaved, briefly": (
        Layout(2, 2),
        {
            "pipeline_schedule": "Interleaved1F1B",
            "num_layers": 8,
            "data_parallel_sharding_strategy": "optim_grads_params",
        },
    ),
    "zero bubble": (Layout(2), {"pipeline_schedule": "InterleavedZeroBubble"}),
    "there and back": (Layout(2), {"pipeline_schedule": "ZBVZeroBubble"}),
    "hybrid": (Layout(data=4), {"num_distributed_optimizer_instances": 2}),
    "blocks": (Layout(2), FULL | {"recompute_method": "block"}),
    "uneven": (Layout(2), {"pipeline_layout": (1, 3)}),
}


def configured(layout: Layout, changes: dict) -> Config:
    return WIDE.replace(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence_parallel,
        **changes,
    )


def peaks(config: Config) -> list[int]:
    """For every rank, the most bytes of tensors that lived in a step: the least of three after the first,
    since a thread of gloo that has done its part may hold its tensors a moment longer."""
    steps = []
    with LiveMemory() as live:
        trainer, samples = build_trainer(config), RandomText(config)
        trainer.step(samples)
        for _ in range(3):
            live.peak = 0
            trainer.step(samples)
            steps.append(live.peak)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, min(steps))
    return everyone


def compare(ranks, case: tuple[Layout, dict]) -> None:
    layout, changes = case
    config = configured(layout, changes)
    measured = ranks.run(layout.ranks, peaks, config)
    for number in sorted({0, layout.ranks - 1}):
        predicted = predict_memory(config, layout.ranks, number * layout.pipeline // layout.ranks)
        assert predicted.total == pytest.approx(measured[number], rel=BOUND)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_takes_the_memory_that_is_predicted(ranks, case):
    compare(ranks, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FURTHER.values(), ids=FURTHER)
def test_a_step_of_further_layouts_takes_the_memory_that_is_predicted(ranks, case):
    compare(ranks, case)


def by_part(predicted: Memory) -> dict[str, int]:
    """In the parts of a dry run."""
    parts = dict(vars(predicted))
    other = sum(parts.pop(name) for name in ("gradients", "received", "loss", "working"))
    return parts | {"other": other}


def agrees(predicted: dict[str, int], report: RankReport) -> bool:
    return all(predicted[part] == pytest.approx(report.at_peak[part], rel=BOUND) for part in PARTS)


ALONE = WIDE.replace(global_batch_size=4)


@pytest.fixture(scope="module")
def alone() -> RankReport:
    return dry_run(ALONE, 1, 0)


@pytest.mark.parametrize("part", PARTS)
def test_an_error_of_a_tenth_in_any_part_would_be_seen(alone, part):
    predicted = by_part(predict_memory(ALONE, 1))
    assert agrees(predicted, alone)
    assert not agrees(predicted | {part: int(1.1 * predicted[part])}, alone)


def test_each_block_keeps_a_mask_of_its_documents(alone):
    config = ALONE.replace(reset_attention_mask=True)
    report, mask = dry_run(config, 1, 0), 4 * 2 * 128 * 128
    assert report.activations - alone.activations == 4 * mask
    assert Sizes(config, 1).block - Sizes(ALONE, 1).block == mask
    assert agrees(by_part(predict_memory(config, 1)), report)


def test_the_second_chunk_of_a_loss_finds_the_gradient_of_the_first(monkeypatch):
    config = ALONE.replace(
        num_layers=1, hidden_size=64, vocab_size=4000, micro_batch_size=4, bf16=True
    )
    in_one_piece = by_part(predict_memory(config, 1))
    for module in (loss_module, sizes_module):  # 256 of 512 tokens
        monkeypatch.setattr(module, "LOGITS_AT_A_TIME", 256 * config.model.padded_vocab_size)
    report = dry_run(config, 1, 0)
    assert agrees(by_part(predict_memory(config, 1)), report)
    assert not agrees(in_one_piece, report)


def test_the_34_bytes_of_korthikanti_and_others():
    """Activations of a layer with 16 bits and dropout: s b h (34 + 5 a s / h), less what fused attention
    and a mask that is drawn again do not keep: 5 a s / h + 2 bytes, and statistics."""
    config = WIDE.replace(bf16=True, hidden_dropout=0.1, hidden_size=1024, device="cpu")
    sizes = Sizes(config, 1)
    elements = sizes.tokens * 1024
    assert sizes.block == pytest.approx(34 * elements, rel=1e-2)
    drawn_again = Sizes(config.replace(device="cuda"), 1)
    assert drawn_again.block == pytest.approx(32 * elements, rel=2e-2)
    divided = config.replace(tensor_model_parallel_size=4, sequence_parallel=True)
    assert Sizes(divided, 4).block == pytest.approx(34 * elements / 4, rel=1e-2)


def test_a_job_of_32_ranks_is_predicted_at_once(repository):
    config = Config()
    for name in ("yuyuan_3.5b", "yuyuan_3.5b_32xA100"):
        config = config.replace(**load_toml(repository / "examples" / "configs" / f"{name}.toml"))
    config = config.replace(pipeline_model_parallel_size=2)
    first, last = (predict_memory(config, 32, rank) for rank in range(2))
    model_ranks = 2 * config.parallel.tensor_model_parallel_size
    whole = 4 * config.model.num_parameters // model_ranks
    assert first.weights + last.weights == pytest.approx(2 * whole / (32 // model_ranks), rel=0.1)
    assert first.moments == 2 * first.weights
    assert last.loss > 0 == first.loss


@pytest.mark.parametrize("method", ["uniform", "block"])
def test_runs_of_blocks_are_those_of_the_model(method):
    parallel = WIDE.replace(
        **FULL | {"recompute_method": method, "recompute_num_layers": 3}
    ).parallel
    for layers in (2, 3, 7):
        runs = Recomputation("full", method, 3).runs([torch.nn.Identity()] * layers)
        assert recomputed_runs(layers, parallel) == [(len(run), again) for run, again in runs]


def test_a_prediction_imports_no_torch():
    code = "import sys, megatron_yuyuan.planner.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def one_kept_matrix() -> tuple[int, int, int]:
    """Bytes that live: before, while two of three products of ones are kept, and after."""
    with LiveMemory() as live:
        before = live.now.total()
        kept = [torch.ones(10, 10) @ torch.ones(10, 10) for _ in range(2)]
        torch.ones(10, 10).add_(1)
        during = live.now.total()
        del kept
    return before, during, live.now.total()


def test_a_tensor_counts_as_long_as_it_lives():
    assert one_kept_matrix() == (0, 2 * 400, 0)
