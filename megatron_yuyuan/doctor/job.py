"""The job that a training command describes: the same steps as at its start, `run.py`'s own functions,
each with its line."""

from megatron_yuyuan.checkpoint.manifest import verify_sizes
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.loader import Dataset
from megatron_yuyuan.doctor.findings import OK, WARNING, Finding, of_error
from megatron_yuyuan.errors import YuyuanError
from megatron_yuyuan.origin import Origin, starting_point
from megatron_yuyuan.resolve import (
    Samples,
    compare_with_checkpoint,
    open_samples,
    resolve,
    run_tokenizer,
)
from megatron_yuyuan.samples import fingerprints, shares
from megatron_yuyuan.validation import validate
from megatron_yuyuan.watch.saved import MANIFEST
from megatron_yuyuan.writers import require_extras


class Job:
    """A command on its way from flags to a run."""

    def __init__(self, config: Config, samples: Samples):
        self.config, self.findings = config, list[Finding]()
        self.is_valid = False
        """The model has a shape, and its layout fits the ranks."""
        self._samples, self._at = samples, ""

    def examine(self, ranks: int) -> None:
        """Go on until something is wrong."""
        try:
            self._examine(ranks)
        except YuyuanError as error:
            self.findings += of_error(self._at, error)

    def _examine(self, ranks: int) -> None:
        self._at = "checkpoint"
        origin = starting_point(self.config)
        if origin is not None and (origin.path / MANIFEST).exists():  # one of ours
            verify_sizes(origin.path)
        self._found(describe_origin(origin, self.config))
        for fault in origin.passed_over if origin is not None else ():
            why, remedy = "an earlier one is taken", "a copy of it; --strict, to stop there"
            self.findings.append(Finding("checkpoint", WARNING, fault, why, remedy))
        self._at = "tokenizer"
        tokenizer = run_tokenizer(self.config, origin)
        self._found(f"{tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}")
        self._at = "configuration"
        self.config = resolve(self.config, tokenizer.vocab_size, origin, ranks)
        validate(self.config, ranks)
        self.is_valid = True
        require_extras(self.config.logging)
        self._found(describe_layout(self.config, ranks))
        self._at = "shards"
        self.config, training_set, validation_set = open_samples(
            self.config, tokenizer, self._samples
        )
        self.findings += shard_findings(training_set, validation_set)
        self._at = "changes"
        data = fingerprints(training_set)
        self._say_changes(compare_with_checkpoint(self.config, origin, ranks, data))

    def _found(self, said: str) -> None:
        self.findings.append(Finding(self._at, OK, said))

    def _say_changes(self, overridden: list[str]) -> None:
        """What --override lets pass."""
        if overridden:
            why, remedy = "the run goes on otherwise than it began", "the settings as they were"
            found = Finding("changes", WARNING, "; ".join(overridden), why, remedy)
            self.findings.append(found)


def describe_origin(origin: Origin | None, config: Config) -> str:
    """Where the run starts from, and at which layout that was saved."""
    if origin is None:
        return "none: the run begins with fresh weights"
    if origin.weights_only:
        return f"the weights of {origin.path} begin a new run"
    state, parallel = origin.state, origin.state["config"]["parallel"]
    here = config.parallel
    saved = (parallel["tensor_model_parallel_size"], parallel["pipeline_model_parallel_size"])
    layout = f"saved at tensor {saved[0]} x pipeline {saved[1]}"
    if saved != (here.tensor_model_parallel_size, here.pipeline_model_parallel_size):
        layout += ", divided anew now"
    return (
        f"continues {origin.path}: iteration {state['iteration']:,}, {state['consumed_samples']:,} "
        f"samples read; {layout}"
    )


def describe_layout(config: Config, ranks: int) -> str:
    """The model and how it lies on the ranks."""
    return (
        f"{config.model.num_parameters:,} parameters on {ranks} ranks: {config.parallel.axes(ranks)}; "
        f"{config.training.global_batch_size} samples a step"
    )


def shard_findings(training_set: Dataset, validation_set: Dataset | None) -> list[Finding]:
    """One for each shard that is read, as far as it is looked at when it is opened."""
    parts = [*shares(training_set), *(shares(validation_set) if validation_set else ())]
    shards = {part.shard.prefix: part.shard for part, _ in parts}
    return [shard_finding(shard) for shard in shards.values()]


def shard_finding(shard) -> Finding:
    """Its size, and whether anything vouches for it."""
    said = f"{shard.prefix}: {shard.num_documents:,} documents"
    if not isinstance(shard, IndexedDataset):  # a JSONL file, read whole
        return Finding("shards", OK, said)
    said += f", {shard.num_tokens:,} tokens"
    if not shard.meta:
        why = "its ids fit the vocabulary, but nothing says that this tokenizer made them"
        remedy = "tools/preprocess_data.py, which notes it; or go on if you know"
        return Finding("shards", WARNING, f"{said}, no .meta.json", why, remedy)
    return Finding("shards", OK, f"{said}, by this tokenizer; every byte: tools/check_data.py")
