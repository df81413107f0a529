"""From what a person named to the samples of a run: shards opened and checked, divided, blended.

Everything but the introduction happens before a process group exists.
"""

from typing import Protocol, runtime_checkable

from megatron_yuyuan.config import Config, flag_of
from megatron_yuyuan.data.blend import BlendedDataset, blend, parse_blend
from megatron_yuyuan.data.gpt_dataset import GPTDataset, split_documents
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import Borders, Dataset
from megatron_yuyuan.data.packing import PackedQADataset
from megatron_yuyuan.data.qa_dataset import Pairs, QADataset, show_sample
from megatron_yuyuan.data.question_file import SUFFIXES as QUESTION_FILES
from megatron_yuyuan.data.question_file import QuestionFile
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel import mesh as mesh_module


@runtime_checkable
class OfShard(Dataset, Protocol):
    """A data set that is no blend."""

    shard: Pairs
    """What it reads."""


def text_datasets(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None]:
    """Training and validation windows of data_path, or of train_data_path and valid_data_path."""
    data, seed = config.data, config.training.seed
    if data.packing or data.loss_on_prompt:
        raise ConfigError(
            f"{'packing' if data.packing else 'loss_on_prompt'} is given",
            "windows of texts are full, and have no prompt",
            "finetune_qa.py, or leave it out",
        )

    def windows(shard: IndexedDataset, seed: int | None, documents: range | None = None):
        return GPTDataset(shard, data.seq_length, seed, documents)

    def opened(prefix: str) -> IndexedDataset:
        shard = open_shard(prefix, config, tokenizer)
        if shard.meta.get("kind", "text") != "text":
            raise ConfigError(
                f"{shard.prefix} holds questions and answers",
                "pretraining reads texts, and would learn every prompt too",
                f"finetune_qa.py --train-data-path {shard.prefix}",
            )
        return shard

    if not (data.data_path or data.train_data_path):
        raise _no_shard("data_path")
    if not data.data_path:
        return samples_of_parts(config, windows, opened, seed, None)
    if data.train_data_path or data.valid_data_path:
        raise ConfigError(
            "data_path and train_data_path or valid_data_path are given",
            "either the shards are divided by split, or each part has its own",
            "leave one of them out",
        )
    shards, weights = open_shards(config, "data_path", opened)
    parts = [(shard, *split_documents(shard.num_documents, data.split)) for shard in shards]
    training = [windows(shard, seed, train) for shard, train, _, _ in parts]
    held_out = [windows(shard, None, valid) if valid else None for shard, _, valid, _ in parts]
    return blend(training, weights, seed), blend(held_out, weights, None)


def question_datasets(config: Config, tokenizer: Tokenizer) -> tuple[Dataset, Dataset | None]:
    """Training and validation pairs of train_data_path and valid_data_path: shards, or JSONL files."""
    if config.data.data_path:
        raise ConfigError(
            "data_path is given",
            "questions are divided when they are preprocessed, by groups that share an answer's topic",
            "--train-data-path PREFIX_train_qa_document --valid-data-path PREFIX_valid_qa_document",
        )
    data, seed = config.data, config.training.seed
    kind = PackedQADataset if data.packing else QADataset

    def pairs(shard: Pairs, seed: int):
        return kind(shard, data.seq_length, tokenizer.eod, seed, data.loss_on_prompt)

    def opened(path: str) -> Pairs:
        is_file = path.endswith(QUESTION_FILES)
        return QuestionFile(path, tokenizer) if is_file else open_shard(path, config, tokenizer)

    return samples_of_parts(config, pairs, opened, seed, seed)


def samples_of_parts(
    config: Config, make, opened, training_seed: int, validation_seed: int | None
) -> tuple[Dataset, Dataset | None]:
    """The samples that make(shard, seed) finds in train_data_path and, if given, valid_data_path."""

    def samples(field: str, seed: int | None) -> Dataset:
        shards, weights = open_shards(config, field, opened)
        return blend([make(shard, seed) for shard in shards], weights, seed)

    training_set = samples("train_data_path", training_seed)
    valid = config.data.valid_data_path
    return training_set, samples("valid_data_path", validation_seed) if valid else None


def open_shards(config: Config, field: str, opened) -> tuple[list, list[float] | None]:
    """What opened(path) gives of the shards that a flag names, and their weights. Raises ConfigError."""
    words = getattr(config.data, field)
    if not words:
        raise _no_shard(field)
    prefixes, weights = parse_blend(words, flag_of(field))
    return [opened(prefix) for prefix in prefixes], weights


def _no_shard(field: str) -> ConfigError:
    """The error for a run that is not told what it learns from."""
    remedy = f"{flag_of(field)} PREFIX as tools/preprocess_data.py printed it"
    return ConfigError(f"{field}: no shard", "a run reads token shards", remedy)


def open_shard(prefix: str, config: Config, tokenizer: Tokenizer) -> IndexedDataset:
    """A shard, checked against the tokenizer. Raises ConfigError and DataError."""
    shard, place = IndexedDataset(prefix), (mesh_module.rank(), mesh_module.world_size())
    shard.check_vocabulary(tokenizer.fingerprint, tokenizer.vocab_size, *place)
    if borders(config, tokenizer) and not shard.meta.get("append_eod", True):
        raise ConfigError(
            f"{shard.prefix} has no end of text between its documents",
            "packing, reset_position_ids, reset_attention_mask and eod_mask_loss look for it",
            "tools/preprocess_data.py --append-eod, or leave them out",
        )
    return shard


def borders(config: Config, tokenizer: Tokenizer) -> Borders | None:
    """What happens at the borders of documents, if anything. Packed pairs know nothing of each other."""
    data = config.data
    flags = (data.reset_position_ids or data.packing, data.divides_attention, data.eod_mask_loss)
    return Borders(tokenizer.eod, *flags) if any(flags) else None


def introduce_shards(
    training_set: Dataset, validation_set: Dataset | None, samples: int, log: Log
) -> None:
    """Say how often a run of `samples` samples reads each shard of a blend, what becomes of questions
    and answers, and which shards nothing vouches for."""
    parts = shares(training_set)
    for dataset, share in parts if len(parts) > 1 else []:
        epochs = samples * share / len(dataset)
        log.line(f"blend: {share:.2%} from {dataset.shard.prefix}, {epochs:.2f} epochs of it")
    held = shares(validation_set) if validation_set else []
    for what, read in (("questions", parts), ("questions for validation", held)):
        for dataset, _ in read:
            if isinstance(dataset, QADataset):
                log.line(f"{what}: {dataset.shard.prefix}: {dataset.describe()}")
    learned = {dataset.shard.prefix for dataset, _ in parts if isinstance(dataset, QADataset)}
    for prefix in sorted(learned & {dataset.shard.prefix for dataset, _ in held}):
        log.line(f"warning: {prefix} is learned, and its loss is no validation")
    shards = {part.shard.prefix: part.shard for part, _ in [*parts, *held]}
    for prefix in (prefix for prefix, shard in shards.items() if not shard.meta):
        log.line(
            f"warning: {prefix} has no .meta.json; its ids fit the vocabulary, but nothing says that "
            "this tokenizer made them"
        )


def asks_questions(training_set: Dataset) -> bool:
    """Whether its samples are questions and answers."""
    return any(isinstance(part, QADataset) for part, _ in shares(training_set))


def introduce_example(training_set: Dataset, tokenizer: Tokenizer, log: Log) -> None:
    """Show what a finetuning learns: its first sample, decoded."""
    if asks_questions(training_set):
        shown = show_sample(*training_set[0], tokenizer)
        log.line(f"example, what stands in [[ ]] is not learned: {shown}")


def fingerprints(dataset: Dataset) -> list[str]:
    """The fingerprints of all shards that the dataset reads, in their order."""
    return [part.shard.fingerprint for part, _ in shares(dataset)]


def shares(dataset: Dataset) -> list[tuple[OfShard, float]]:
    """The data sets that a blend reads, or the only one, each with its share of the samples."""
    if not isinstance(dataset, BlendedDataset):
        assert isinstance(dataset, OfShard)
        return [(dataset, 1.0)]
    counts = [count / dataset.block for count in dataset.counts]
    return list(zip(dataset.datasets, counts, strict=True))
