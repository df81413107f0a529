"""What a run says before its first step: the model, where each part of it stands, what it takes, what
is read, and how long that may last."""

import math

import torch.distributed as dist

from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.kernels.adamw import local
from megatron_yuyuan.log import Log
from megatron_yuyuan.model.lora import factor_shapes
from megatron_yuyuan.parallel.gathering import all_gather_object
from megatron_yuyuan.parallel.mesh import Mesh
from megatron_yuyuan.parallel.stages import StagePlan, plan_stages, runs_as
from megatron_yuyuan.samples import introduce_shards
from megatron_yuyuan.train.profile import profiled_iterations
from megatron_yuyuan.train.schedule import highest_learning_rate, train_iterations
from megatron_yuyuan.train.state import TrainState, named_parameters
from megatron_yuyuan.train.throughput import peak_tflops, samples_left, training_flops

ASSUMED_MFU = 0.4
"""Share of the devices' peak by which hours are predicted: an assumption, and said to be one."""
RANKS_DRAWN = 32
"""A larger job is drawn by its first data rank alone."""


def introduce_plan(
    config: Config, mesh: Mesh, training_set: Dataset, validation_set: Dataset | None, log: Log
) -> None:
    """Say what is about to happen, before anything is built."""
    introduce_layout(config, mesh, log)
    introduce_data(config, training_set, validation_set, log)


def introduce_layout(config: Config, mesh: Mesh, log: Log) -> None:
    """Say what is trained, and where each part of it stands."""
    model = config.model
    log.line(
        f"model: {model.num_parameters:,} parameters, vocabulary {model.vocab_size} padded to "
        f"{model.padded_vocab_size}"
    )
    if model.lora_rank:
        learned = sum(map(math.prod, factor_shapes(model).values()))
        log.line(
            f"LoRA: {learned:,} parameters learned, {learned / model.num_parameters:.2%} of as many frozen: "
            f"rank {model.lora_rank}, scale {model.lora_scale:g}, {' '.join(model.lora_target_modules)}"
        )
    log.line(f"layout: {mesh.describe()}")
    ranks = mesh.axes.mesh.view(mesh.size("pipeline"), mesh.size("data"), -1).tolist()
    for line in draw_grid(ranks, contents(plan_stages(config))):
        log.line(f"  {line}")
    for line in exchanged_schedules(config, mesh.size("data")):
        log.line(line)
    if not config.is_layout_free:
        log.line("attention dropout: by torch's generator; another layout would drop other weights")


def introduce_data(
    config: Config, training_set: Dataset, validation_set: Dataset | None, log: Log
) -> None:
    """Say what is read, for how long, and what is saved where."""
    training = config.training
    steps, size = train_iterations(training), f"{training.global_batch_size} samples"
    total = training.train_samples or steps * training.global_batch_size
    if training.rampup_batch_size:
        size = f"{training.rampup_batch_size[0]} to {size}"
    length = config.data.seq_length
    log.line(
        f"data: {len(training_set):,} samples of {length} tokens; {steps} steps of {size} are "
        f"{total / len(training_set):.2f} epochs, {total * length:,} tokens; validation on "
        f"{f'{len(validation_set):,} samples' if validation_set else 'nothing'}"
    )
    highest = highest_learning_rate(training, config.optimizer)
    if highest < config.optimizer.lr / 2:
        log.line(
            f"warning: the learning rate of these {steps} steps is {highest:g} at most, and lr is "
            f"{config.optimizer.lr:g}: they end before its warm-up, or at its end"
        )
    introduce_shards(training_set, validation_set, total, log)
    place, interval = config.checkpoint.save, config.checkpoint.save_interval
    often = f"every {interval} steps and at the end" if interval else "at the end"
    log.line(f"saving: {f'{often} to {place}' if place else 'nothing, there is no --save'}")


def resharded(saved: dict, parallel: ParallelConfig, ranks: int) -> str:
    """`, resharded pipeline 2 x data 1 x tensor 1 -> pipeline 1 x data 1 x tensor 2`: of a checkpoint that
    another layout has saved; empty of one of the same. saved: its state.json; nothing is said of an older one,
    which does not know its number of ranks."""
    if "ranks" not in saved:
        return ""
    before = from_dict(saved["config"]).parallel.axes(saved["ranks"])
    now = parallel.axes(ranks)
    return f", resharded {before} -> {now}" if before != now else ""


def introduce_state(config: Config, state: TrainState, log: Log) -> None:
    """Say what the state takes on the ranks, and how long the steps that are left may last. Every
    rank must take part."""
    for line in draw_memory(bytes_by_pipeline_rank(state)):
        log.line(line)
    flops = samples_left(config.training, state)
    flops *= training_flops(config.model, config.data.seq_length)
    if flops:
        log.line(f"time: {flops:.3g} FLOP to compute, {predicted(flops, config, state.mesh)}")
    if config.logging.profile:
        traced = profiled_iterations(config, state.iteration)
        place = f"{config.checkpoint.save}/profile"
        span = f"iterations {traced.start} to {traced.stop - 1}, to {place}"
        log.line(f"profile: {span if traced else 'nothing, this run has none of its iterations'}")


def exchanged_schedules(config: Config, data: int) -> list[str]:
    """A line if there are numbers of micro batches, of any batch of the run, that pipeline_schedule
    does not take."""
    parallel, training = config.parallel, config.training
    schedule, pipeline = parallel.pipeline_schedule, parallel.pipeline_model_parallel_size
    sizes = {training.global_batch_size}
    if training.rampup_batch_size:
        start, increment, _ = training.rampup_batch_size
        sizes.update(range(start, training.global_batch_size, increment))
    counts = sorted({size // data // training.micro_batch_size for size in sizes})
    others = [str(count) for count in counts if runs_as(parallel, count) != schedule]
    if pipeline == 1 or not others:
        return []
    return [
        f"pipeline: {schedule} cannot take {' or '.join(others)} micro batches on {pipeline} ranks; they run "
        "in GPipe's order, with the same result"
    ]


def contents(plan: StagePlan) -> list[str]:
    """What each pipeline rank holds: `embeddings, layers 0-3; layers 8-11`."""
    held: list[list[str]] = [[] for _ in range(max(plan.ranks) + 1)]
    for stage, (layers, rank) in enumerate(zip(plan.layers, plan.ranks, strict=True)):
        one = len(layers) == 1
        parts = [f"layer {layers[0]}" if one else f"layers {layers[0]}-{layers[-1]}"]
        if stage == 0:
            parts.insert(0, "embeddings")
        if stage == len(plan) - 1:
            parts.append("head")
        held[rank].append(", ".join(parts))
    return ["; ".join(stages) for stages in held]


def draw_grid(ranks: list[list[list[int]]], contents: list[str]) -> list[str]:
    """Rank numbers by [pipeline][data][tensor] as a table: a row per pipeline rank with what it holds,
    a block of columns per data rank, in it a column per tensor rank.

                               | data 0 | data 1
        embeddings, layers 0-3 | 0  1   | 2  3
        layers 4-7, head       | 4  5   | 6  7
    """
    data, last = len(ranks[0]), ranks[-1][-1][-1]
    drawn = data if last < RANKS_DRAWN else 1
    heads = [f"data {d}" for d in range(drawn)] if drawn == data else [f"data 0 of {data}"]
    cell = len(str(last))
    rows = [
        [what, *("  ".join(f"{rank:{cell}d}" for rank in block) for block in row[:drawn])]
        for what, row in zip(contents, ranks, strict=True)
    ]
    return table([["", *heads], *rows], " | ")


def bytes_by_pipeline_rank(state: TrainState) -> list[dict[str, int]]:
    """For each pipeline rank, of its rank that holds most: parameters, and bytes of the weights, the
    gradients and the moments as they lie between two steps.

    Counted from the local tensors. A gradient and each of AdamW's two moments are divided as their
    weight is, whatever is gathered during a step; frozen weights have none.
    """
    parameters = [parameter for _, parameter in named_parameters(state.stages)]
    held = [local(parameter) for parameter in parameters]
    count, weights = sum(t.numel() for t in held), sum(t.nbytes for t in held)
    learned = sum(local(p).nbytes for p in parameters if p.requires_grad)
    mine = {"parameters": count, "weights": weights, "gradients": learned, "moments": 2 * learned}
    largest: dict[int, dict[str, int]] = {}
    for pipeline, held in all_gather_object((state.mesh.rank("pipeline"), mine)):
        largest[pipeline] = max(held, largest.get(pipeline, held), key=lambda h: h["parameters"])
    return [largest[pipeline] for pipeline in sorted(largest)]


def draw_memory(held: list[dict[str, int]]) -> list[str]:
    """One row per pipeline rank: parameters, and bytes between steps."""
    names = ["weights", "gradients", "moments"]
    largest = max(sum(of_rank[name] for name in names) for of_rank in held)
    unit, size = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    rows = [[f"at rest on a rank, {unit}", "parameters", *names, "together"]]
    for pipeline, of_rank in enumerate(held):
        sizes = [of_rank[name] for name in names]
        drawn = [f"{taken / size:,.2f}" for taken in (*sizes, sum(sizes))]
        rows.append([f"  pipeline {pipeline}", f"{of_rank['parameters']:,}", *drawn])
    return table(rows, "  ")


def table(rows: list[list[str]], between: str) -> list[str]:
    """Lines with the columns of a table under each other; the first is flush left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        between.join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def predicted(flops: float, config: Config, mesh: Mesh) -> str:
    """How long so many FLOPs may last on all devices, and what that rests on."""
    peak = peak_tflops(mesh.device, config.training)
    if peak is None:
        return "hours unknown before the first steps: the ETA is measured"
    hours = flops / (ASSUMED_MFU * peak * 1e12 * dist.get_world_size()) / 3600
    return (
        f"{hours:,.1f} h at an assumed {ASSUMED_MFU:.0%} of {dist.get_world_size()} x {peak:g} TFLOP/s, "
        "without evaluations and checkpoints; the ETA is measured"
    )
