"""`--dry-run`: everything that a command names is checked, nothing is started, and what the job would
hold, compute and exchange is said, from one step of the real code on tensors without memory.

What is named is opened as the run would open it: checkpoint, tokenizer, shards. What is not named, as on
a laptop that has none of them, is said to be unchecked.
"""

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.introduction import introduce_data, introduce_layout, table
from megatron_yuyuan.log import Log
from megatron_yuyuan.origin import Origin, starting_point
from megatron_yuyuan.parallel import mesh as mesh_module
from megatron_yuyuan.planner.clusters import RESERVED_GIB
from megatron_yuyuan.planner.dry_run import PARTS, RankReport, count_a_step, fake_rank
from megatron_yuyuan.planner.fitting import fitting
from megatron_yuyuan.planner.memory import predict_memory
from megatron_yuyuan.resolve import (
    Samples,
    compare_with_checkpoint,
    open_samples,
    resolve,
    run_tokenizer,
)
from megatron_yuyuan.samples import fingerprints
from megatron_yuyuan.validation import validate
from megatron_yuyuan.writers import require_extras

GIB = 2**30


def rehearse(config: Config, samples: Samples) -> None:
    """Say what a job would take. Raises YuyuanError for what its run would refuse, and ConfigError where
    its fullest rank does not fit into gpu_memory_gib. Of several processes the first alone does it."""
    if mesh_module.rank() != 0:
        return
    log, ranks = Log(None, True), config.parallel.dry_run_ranks or mesh_module.world_size()
    config, data = checked(config, samples, ranks, log)
    pipeline = config.parallel.pipeline_model_parallel_size
    reports: list[RankReport] = []
    for pipeline_rank in range(pipeline):
        with fake_rank(config, ranks, pipeline_rank * ranks // pipeline) as mesh:
            if not reports:
                introduce_layout(config, mesh, log)
                if data is not None:
                    introduce_data(config, *data, log)
            reports.append(count_a_step(config, mesh))
    for line in [*draw_memory(reports), *draw_exchanges(reports)]:
        log.line(line)
    require_memory(config, ranks, reports, log)


def checked(
    config: Config, samples: Samples, ranks: int, log: Log
) -> tuple[Config, tuple[Dataset, Dataset | None] | None]:
    """The configuration as the run would resolve it, and its training and validation set if named.
    Raises what the run would raise before its process group exists."""
    origin = named_origin(config, log)
    tokenizer = named_tokenizer(config, origin, log)
    tokens = tokenizer.vocab_size if tokenizer else config.model.vocab_size
    config = resolve(config, tokens, origin, ranks)
    validate(config, ranks)
    require_extras(config.logging)
    if tokenizer is None or not _names_data(config):
        log.line("data: none is named, none is checked")
        return config, None
    config, training_set, validation_set = open_samples(config, tokenizer, samples)
    compare_with_checkpoint(config, origin, ranks, fingerprints(training_set))
    return config, (training_set, validation_set)


def named_origin(config: Config, log: Log) -> Origin | None:
    """What the run starts from. A finetuning without one has the shape of its configuration."""
    checkpoint = config.checkpoint
    if checkpoint.finetune and not (checkpoint.load or checkpoint.save):
        log.line("load: no checkpoint is named, none is checked")
        return None
    return starting_point(config)


def named_tokenizer(config: Config, origin: Origin | None, log: Log) -> Tokenizer | None:
    """The run's tokenizer; None where none is needed, since the vocabulary's size is given."""
    data = config.data
    named = data.tokenizer_model or data.vocab_file or data.merge_file
    if named or _names_data(config) or origin or not config.model.vocab_size:
        return run_tokenizer(config, origin)
    log.line("tokenizer: none is named, none is checked")
    return None


def _names_data(config: Config) -> bool:
    data = config.data
    return bool(data.data_path or data.train_data_path or data.valid_data_path)


def draw_memory(reports: list[RankReport]) -> list[str]:
    """One row per pipeline rank: what lives on it at the worst moment of a step, and what it computes."""
    rows = [["most on a rank, GiB", "parameters", *PARTS, "together", "TFLOP a step"]]
    for report in reports:
        sizes = [*report.at_peak.values(), report.peak]
        drawn = [f"{size / GIB:,.2f}" for size in sizes]
        name = f"  pipeline {report.place['pipeline']}"
        rows.append([name, f"{report.parameters:,}", *drawn, f"{report.flops / 1e12:,.2f}"])
    return table(rows, "  ")


def draw_exchanges(reports: list[RankReport]) -> list[str]:
    """One row per axis and kind of exchange: how often in a step, and how much, of the pipeline rank that
    exchanges most."""
    rows = [["a rank exchanges in a step", "how often", "GiB"]]
    for what in sorted({what for report in reports for what in report.exchanged}):
        most = max((report.exchanged.get(what, (0, 0)) for report in reports), key=lambda x: x[1])
        rows.append([f"  {' '.join(what)}", f"{most[0]:,}", f"{most[1] / GIB:,.3f}"])
    return table(rows, "  ")


def require_memory(config: Config, ranks: int, reports: list[RankReport], log: Log) -> None:
    """Raises ConfigError where the tensors of a rank, and what a GPU is assumed to need beside them, do
    not fit into gpu_memory_gib.

    A fake rank computes the loss in the small chunks of a CPU: where the planner's formulas, which know
    those of a GPU, come to more, that counts.
    """
    limit = config.parallel.gpu_memory_gib
    if not limit:
        return
    held = [report.peak for report in reports]
    if config.parallel.means_fused_kernels:
        stages = [report.place["pipeline"] for report in reports]
        held = [
            max(h, predict_memory(config, ranks, s).total)
            for h, s in zip(held, stages, strict=True)
        ]
    taken = max(held) / GIB
    fullest = reports[held.index(max(held))]
    source = (
        "" if fullest.peak == max(held) else " (with the loss in a GPU's chunks, by the planner)"
    )
    if taken + RESERVED_GIB > limit:
        others = fitting(config, ranks, (limit - RESERVED_GIB) * GIB)
        raise ConfigError(
            f"a rank of pipeline rank {fullest.place['pipeline']} holds {taken:.2f} GiB of tensors{source}, with "
            f"{RESERVED_GIB:g} assumed beside them {taken + RESERVED_GIB:.2f}: more than gpu_memory_gib={limit:g}",
            "it would run out of memory in its first step",
            ", or ".join(others) or "more ranks, or a smaller model",
        )
    log.line(
        f"fits: {taken:.1f} GiB{source} and {RESERVED_GIB:g} assumed beside tensors, of {limit:g}"
    )
