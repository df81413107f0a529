"""Training steps that others measured and published, as configurations of ours.

Each source is taken at its layout: tensor, pipeline, stages a rank, micro batch, recomputation,
sharding. Where a source gives TFLOP/s, its own formula turns them into seconds.
"""

from dataclasses import dataclass

from megatron_yuyuan.config import Config
from megatron_yuyuan.planner.clusters import GPUS, Cluster

FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
NARAYANAN = "Narayanan et al. 2021, arXiv:2104.04473, table 1"
KORTHIKANTI = "Korthikanti et al. 2022, arXiv:2205.05198, table 5"
CORE = "Megatron-LM, images/model_table.png (2024)"
BIOMEDLM = "model card of stanford-crfm/BioMedLM"
NEOX = "Black et al. 2022, arXiv:2204.06745; gpt-neox, configs/20B.yml"


@dataclass(frozen=True)
class Row:
    """One published step."""

    name: str
    source: str
    published: str
    """The figure as the source has it."""
    seconds: float
    """Of a step, by that figure."""
    config: Config
    cluster: Cluster
    fits: str = ""
    """The rate that it was used to find."""

    @property
    def whole_run(self) -> bool:
        """Whether the time is that of a run of days, with all that stopped it, over its steps."""
        return self.source in (BIOMEDLM, NEOX)


def _shape(shape: tuple[int, int, int], length: int, vocabulary: int) -> Config:
    """A configuration of so many layers, of a width, with heads."""
    layers, width, heads = shape
    return Config().replace(
        num_layers=layers, hidden_size=width, num_attention_heads=heads, vocab_size=vocabulary,
        seq_length=length, max_position_embeddings=length, train_iters=1, bf16=True,
    )  # fmt: skip


def _recomputed(granularity: str) -> dict:
    method = ("uniform", 1) if granularity == "full" else ("none", 0)
    names = ("recompute_granularity", "recompute_method", "recompute_num_layers")
    return dict(zip(names, (granularity, *method), strict=True))


def _interleaved(stages: int) -> dict:
    if stages == 1:
        return {}
    return {"pipeline_schedule": "Interleaved1F1B", "num_virtual_stages_per_pipeline_rank": stages}


MPT = {
    "MPT-1B": (24, 2048, 16),
    "MPT-3B": (32, 2560, 20),
    "MPT-7B": (32, 4096, 32),
    "MPT-13B": (40, 5120, 40),
    "MPT-30B": (48, 7168, 56),
}
"""Layers, width and heads: llm-foundry, scripts/train/yamls/pretrain. No dropout, vocabulary 50368, FSDP FULL_SHARD."""


def _mpt(name, gpu, gpus, length, micro, accumulated, rate, again="none", fits="") -> Row:
    """Tokens per second and GPU as published; `micro` samples, `accumulated` times a step."""
    samples = micro * accumulated * gpus
    config = _shape(MPT[name], length, 50368).replace(
        micro_batch_size=micro, global_batch_size=samples, **_recomputed(again),
        data_parallel_sharding_strategy="optim_grads_params",
    )  # fmt: skip
    seconds, cluster = samples * length / (rate * gpus), Cluster(GPUS[gpu], gpus)
    return Row(name, FOUNDRY, f"{rate:,} tokens/s/GPU", seconds, config, cluster, fits)


def _narayanan(name, shape, tensor, pipeline, stages, gpus, samples, micro, tflops) -> Row:
    """TFLOP/s by 96 B T L C^2 (1 + T/6C + V/16LC), the paper's equation 3: the full recomputation counts.

    Micro batches and stages a rank: Megatron-LM, examples/academic_paper_scripts/sc21/run_table_1.sh.
    Dropout 0.1 and unfused attention were the program's defaults.
    """
    (layers, width, _), length, vocabulary = shape, 2048, 51200
    config = _shape(shape, length, vocabulary).replace(
        tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline,
        micro_batch_size=micro, global_batch_size=samples, attention_impl="fused_softmax",
        hidden_dropout=0.1, attention_dropout=0.1, data_parallel_sharding_strategy="no_shard",
        **_recomputed("full"), **_interleaved(stages),
    )  # fmt: skip
    more = 1 + length / (6 * width) + vocabulary / (16 * layers * width)
    flops = 96 * samples * length * layers * width**2 * more
    cluster = Cluster(GPUS["a100-80g"], gpus)
    seconds = flops / (1e12 * tflops * gpus)
    return Row(name, NARAYANAN, f"{tflops} TFLOP/s", seconds, config, cluster)


def _korthikanti(name, shape, pipeline, stages, samples, micro, seconds, again) -> Row:
    """Seconds of an iteration at tensor 8 without data ranks; selective recomputation with sequence
    parallelism ("present work"), full without."""
    config = _shape(shape, 2048, 51200).replace(
        tensor_model_parallel_size=8, pipeline_model_parallel_size=pipeline,
        micro_batch_size=micro, global_batch_size=samples, attention_impl="fused_softmax",
        hidden_dropout=0.1, attention_dropout=0.1, sequence_parallel=again == "selective",
        **_recomputed(again), **_interleaved(stages),
    )  # fmt: skip
    cluster = Cluster(GPUS["a100-80g"], 8 * pipeline)
    return Row(name, KORTHIKANTI, f"{seconds} s", seconds, config, cluster)


def _core(name, shape, tensor, gpus, tflops) -> Row:
    """TFLOP/s by 72 B T L C^2 (1 + T/6C + V/12LC); 192 samples of 4096 tokens a step. Micro batches are not
    published, 2 is assumed; rows with a pipeline, whose stages are not published either, are left out."""
    (layers, width, _), length, vocabulary, samples = shape, 4096, 131072, 192
    config = _shape(shape, length, vocabulary).replace(
        tensor_model_parallel_size=tensor, sequence_parallel=tensor > 1, micro_batch_size=2,
        global_batch_size=samples,
    )  # fmt: skip
    more = 1 + length / (6 * width) + vocabulary / (12 * layers * width)
    flops = 72 * samples * length * layers * width**2 * more
    seconds, cluster = flops / (1e12 * tflops * gpus), Cluster(GPUS["h100-80g"], gpus)
    return Row(name, CORE, f"{tflops} TFLOP/s", seconds, config, cluster)


def _biomedlm() -> Row:
    """300 billion tokens in 6.25 days. The layout is known as FSDP alone, micro batches are not."""
    config = _shape((32, 2560, 20), 1024, 28896).replace(
        micro_batch_size=8, global_batch_size=1024, hidden_dropout=0.1,
        data_parallel_sharding_strategy="optim_grads_params",
    )  # fmt: skip
    seconds = 6.25 * 86400 / (300e9 / 1024**2)
    cluster = Cluster(GPUS["a100-40g"], 128)
    return Row("BioMedLM 2.7B", BIOMEDLM, "6.25 days", seconds, config, cluster)


def _neox() -> Row:
    """1,830 hours for 150,000 steps, on nodes with four 200 Gb/s adapters."""
    config = _shape((44, 6144, 64), 2048, 50432).replace(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=4, micro_batch_size=4,
        global_batch_size=1536, attention_impl="fused_softmax", **_recomputed("full"),
    )  # fmt: skip
    cluster = Cluster(GPUS["a100-40g"], 96, inter_node_gb_per_second=100.0)
    return Row("GPT-NeoX-20B", NEOX, "1,830 hours", 1830 * 3600 / 150_000, config, cluster)


B22, B175, B530, B1008 = (48, 6144, 64), (96, 12288, 96), (105, 20480, 128), (128, 25600, 160)
ROWS = [
    _mpt("MPT-3B", "a100-80g", 8, 1024, 20, 6, 11580, fits="matmul"),
    _mpt("MPT-3B", "a100-80g", 8, 65536, 1, 2, 1767, "full", fits="flash"),
    _mpt("MPT-3B", "h100-80g", 8, 1024, 20, 6, 27046, fits="matmul"),
    _mpt("MPT-3B", "h100-80g", 8, 65536, 1, 2, 3262, "full", fits="flash"),
    _narayanan("GPT 3.6B", (30, 3072, 32), 2, 1, 1, 64, 512, 16, 138),
    _narayanan("GPT 1.7B", (24, 2304, 24), 1, 1, 1, 32, 512, 16, 137),
    _narayanan("GPT 7.5B", (36, 4096, 32), 4, 1, 1, 128, 512, 16, 142),
    _narayanan("GPT 18B", (40, 6144, 48), 8, 1, 1, 256, 1024, 8, 135),
    _narayanan("GPT 39B", (48, 8192, 64), 8, 2, 1, 512, 1536, 4, 138),
    _narayanan("GPT 76B", (60, 10240, 80), 8, 4, 3, 1024, 1792, 2, 140),
    _narayanan("GPT 145B", (80, 12288, 96), 8, 8, 2, 1536, 2304, 2, 148),
    _narayanan("GPT 310B", (96, 16384, 128), 8, 16, 2, 1920, 2160, 1, 155),
    _narayanan("GPT 530B", (105, 20480, 128), 8, 35, 3, 2520, 2520, 1, 163),
    _narayanan("GPT 1T", (128, 25600, 160), 8, 64, 1, 3072, 3072, 1, 163),
    _korthikanti("GPT 22B", B22, 1, 1, 4, 4, 1.42, "full"),
    _korthikanti("GPT 22B", B22, 1, 1, 4, 4, 1.10, "selective"),
    _korthikanti("GPT 175B", B175, 8, 3, 64, 1, 18.13, "full"),
    _korthikanti("GPT 175B", B175, 8, 3, 64, 1, 13.75, "selective"),
    _korthikanti("GPT 530B", B530, 35, 3, 280, 1, 49.05, "full"),
    _korthikanti("GPT 530B", B530, 35, 3, 280, 1, 37.83, "selective"),
    _korthikanti("GPT 1T", B1008, 64, 1, 512, 1, 94.42, "full"),
    _korthikanti("GPT 1T", B1008, 64, 1, 512, 1, 71.49, "selective"),
    _mpt("MPT-1B", "a100-80g", 8, 2048, 14, 4, 20513),
    _mpt("MPT-3B", "a100-80g", 8, 2048, 10, 2, 10811),
    _mpt("MPT-3B", "a100-80g", 8, 8192, 3, 6, 7695),
    _mpt("MPT-7B", "a100-80g", 8, 2048, 6, 2, 4641),
    _mpt("MPT-7B", "a100-80g", 8, 1024, 64, 2, 4357, "full"),
    _mpt("MPT-13B", "a100-80g", 8, 2048, 2, 3, 2262),
    _mpt("MPT-3B", "a100-40g", 8, 1024, 10, 8, 10731),
    _mpt("MPT-3B", "a100-40g", 32, 2048, 6, 1, 9914),
    _mpt("MPT-3B", "a100-40g", 128, 2048, 6, 1, 9538),
    _mpt("MPT-7B", "a100-40g", 32, 2048, 18, 1, 3725, "full"),
    _mpt("MPT-7B", "a100-40g", 128, 2048, 18, 1, 3623, "full"),
    _mpt("MPT-1B", "h100-80g", 8, 1024, 18, 4, 48910),
    _mpt("MPT-3B", "h100-80g", 16, 2048, 10, 3, 24142),
    _mpt("MPT-3B", "h100-80g", 64, 2048, 6, 3, 22525),
    _mpt("MPT-7B", "h100-80g", 8, 2048, 6, 1, 10643),
    _mpt("MPT-7B", "h100-80g", 8, 1024, 64, 2, 10203, "full"),
    _mpt("MPT-13B", "h100-80g", 64, 2048, 2, 1, 4800),
    _mpt("MPT-30B", "h100-80g", 32, 2048, 14, 3, 2308, "full"),
    _core("GPT 1.7B", (24, 2048, 16), 1, 48, 408.8),
    _core("GPT 7.1B", (30, 4096, 32), 2, 96, 465.9),
    _core("GPT 16B", (32, 6144, 48), 4, 192, 489.1),
    _core("GPT 32B", (48, 7168, 56), 8, 384, 459.6),
    _biomedlm(),
    _neox(),
]  # fmt: skip
