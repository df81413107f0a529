"""README.md of an exported model: what it is, how it was trained and what it scored as far as its run
knows, how to ask it, its limits."""

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_yuyuan.checkpoint import hf_start, megatron_start
from megatron_yuyuan.checkpoint.identity import identity, named, run_directory
from megatron_yuyuan.checkpoint.model import LoadedModel, StoredModel
from megatron_yuyuan.checkpoint.reading import reading
from megatron_yuyuan.config import Config
from megatron_yuyuan.config_toml import from_dict
from megatron_yuyuan.data.blend import parse_blend
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.log import duration, read_metrics

SCORES = "scores.json"
"""In the run's directory: what `tools/evaluate_qa.py --load RUN --json` printed."""
FOREIGN = {
    hf_start.HF_PREFIX: "the Hugging Face directory",
    megatron_start.MEGATRON_PREFIX: "the Megatron-core checkpoint",
}
"""How --load begins -> what it names."""

CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, medical, question-answering]
---

# {name}

A GPT-2 ({parameters:,} parameters: {layers} layers, width {width}, {heads} heads, {positions} positions, {vocabulary}
tokens) of megatron_yuyuan, which trains medical language models on PubMed and finetunes them on MedQuAD. These files
are in Hugging Face's format; the weights are {dtype}.

## Training

{training}

## Scores

{scores}

## Use

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{name}")
generator({example!r}, max_new_tokens={new_tokens}, do_sample=False)
```

Prompt and answer together have room for {positions} tokens.

A question is asked with the prompt `{prompt}`; the answer follows as `{answer}` and ends with `{end_of_text}`. A model
that was only pretrained continues text and does not know this prompt.

## Limits

**Not medical advice.** The model writes what is likely, not what is true: it invents facts, doses and sources, and
repeats the errors and biases of its training texts. Do not use it to diagnose or treat anyone. It was trained on
English text. State the license of your weights and training data before you publish them.
"""


def model_card(source: StoredModel | LoadedModel, name: str, dtype: str = "float32") -> str:
    """Markdown with the YAML head that the Hugging Face Hub reads; `name` is the directory's. Raises
    DataError: the run's scores cannot be read."""
    config, run = source.config, run_directory(source.path)
    padding = (config.padded_vocab_size - config.vocab_size) * config.hidden_size
    return CARD.format(
        name=name,
        dtype=dtype,
        parameters=config.num_parameters - padding,
        layers=config.num_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        positions=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        training="\n".join(_training(source.state, run)),
        scores=_stated(source.path),
        prompt=source.template.prompt,
        answer=source.template.answer,
        end_of_text=source.tokenizer.end_of_text,
        new_tokens=min(64, config.max_position_embeddings // 2),
        example=source.template.prompt_text("What is gout?"),
    )


def _training(state: dict, run: Path) -> Iterator[str]:
    """Lines of a list: what is known of the run."""
    if not state["iteration"]:
        yield "These weights were imported; how they were trained is not known here."
        return
    config, samples = from_dict(state["config"]), state["consumed_samples"]
    start = _start(state.get("began_with"))
    if config.model.lora_rank:
        start += (
            f"; learned was LoRA of rank {config.model.lora_rank} beside them, which is merged here"
        )
    length = config.data.seq_length
    yield f"- start: {start}"
    yield f"- data: {_data(config)}"
    yield (
        f"- {state['iteration']:,} iterations, {samples:,} samples, each of {length:,} tokens with its "
        f"padding ({samples * length:,} tokens at most)"
    )
    yield f"- AdamW, highest learning rate {config.optimizer.lr:g}, seed {config.training.seed}"
    yield f"- layout: {_layout(config, state.get('ranks', 0))}"
    yield from _measured(run / "metrics.jsonl", state["iteration"])


def _start(load: str | None) -> str:
    """What the first weights came from, by its name: folders belong to the machine. load: None where an
    older checkpoint does not say."""
    if load is None:
        return "not known"
    for prefix, what in FOREIGN.items():
        if load.startswith(prefix):
            return f"the weights of {what} {Path(load.removeprefix(prefix)).name}"
    return f"the weights of the run {Path(load).name}" if load else "fresh weights"


def _data(config: Config) -> str:
    """The shards by their names, with their weights where they have some."""
    words = config.data.data_path or config.data.train_data_path
    prefixes, weights = parse_blend(words, "data_path")
    names = [Path(prefix).name for prefix in prefixes]
    if weights:
        names = [f"{name} (weight {w:g})" for name, w in zip(names, weights, strict=True)]
    return ", ".join(names) or "not known"


def _layout(config: Config, ranks: int) -> str:
    """As at the checkpoint. ranks: 0 where an older checkpoint does not say."""
    parallel = config.parallel
    if not ranks:
        tensor, pipeline = (
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
        )
        return f"pipeline {pipeline} x tensor {tensor}"
    return f"{parallel.axes(ranks)}, {ranks} ranks in all" if ranks > 1 else "one rank"


def _measured(path: Path, iteration: int) -> Iterator[str]:
    """What the run's metrics say of its steps up to the checkpoint; nothing where there are none."""
    if not path.exists():
        return
    with reading(path):
        steps, found = read_metrics(path, "step"), read_metrics(path, "evaluation")
    steps = [step for step in steps if step["iteration"] <= iteration]
    losses = [step["lm_loss"] for step in steps if step["lm_loss"] is not None]  # None: not finite
    if losses:
        taken = duration(sum(step["seconds"] for step in steps))
        yield f"- training steps took {taken}; loss of the last {losses[-1]:.4f}"
    if found := [each for each in found if each["iteration"] <= iteration]:
        yield f"- validation loss {found[-1]['validation_loss']:.4f}"


def why_no_scores(path: Path) -> str:
    """Why the card of these weights states no score; empty where it does. Raises DataError: scores.json
    beside them cannot be read."""
    scores = run_directory(path) / SCORES
    if not scores.exists():
        return "not measured: this model has no scores.json beside it"
    scored = _read_scores(scores).get("scored")
    if scored is None:
        return f"{SCORES} does not say which weights it scored; tools/evaluate_qa.py --load does"
    ours = identity(path)
    if scored["sha256"] != ours["sha256"]:
        return f"{SCORES} scored other weights, {named(scored)}; these are {named(ours)}"
    return ""


def _stated(path: Path) -> str:
    """Every score of these weights under the signature of its protocol, or why there is none."""
    if reason := why_no_scores(path):
        return f"None: {reason}."
    document = _read_scores(run_directory(path) / SCORES)
    rows = [
        f"| {_cell(system)} | {name} | {_shown(value)} | `{_cell(signature)}` |"
        for system, scores in document["systems"].items()
        for name, value, signature in _leaves(scores, document["signatures"])
    ]
    return "\n".join(["| system | score | value | protocol |", "|---|---|---|---|", *rows])


def _read_scores(path: Path) -> dict:
    """The document, of which every score can be shown. Raises DataError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for scores in document["systems"].values():
            for _, value, _ in _leaves(scores, document["signatures"]):
                _shown(value)
        if document.get("scored") is not None:
            named(document["scored"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read: {error!r}",
            "the model card states the scores of its run",
            "the output of tools/evaluate_qa.py --json, or remove the file",
        ) from None
    return document


def _cell(text: str) -> str:
    """Text of a table's cell: a bar in it, in code too, would end the cell."""
    return text.replace("|", "\\|")


def _leaves(scores: dict, signatures: dict) -> Iterator[tuple[str, object, str]]:
    """(name, value, signature) of every score that has a signature."""
    for name, signature in signatures.items():
        if isinstance(signature, dict):
            for kind, of_kind in signature.items():
                yield f"{name}, {kind}", scores[name][kind], of_kind
        else:
            yield name, scores[name], signature


def _shown(value) -> str:
    """One figure, or one for each order of n-grams."""
    values = value if isinstance(value, list) else [value]
    return " / ".join(f"{number:.4f}" for number in values)
