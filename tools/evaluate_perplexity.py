"""Perplexity of a model on shards of texts, or of questions and answers.

    python tools/evaluate_perplexity.py --load RUN --data-path data/medquad_test_qa_document
    python tools/evaluate_perplexity.py --load hf:DIR --data-path data/pubmed_text_document --part valid --stride 512

Every token of a text but its first, and every token of an answer, is predicted once: see
megatron_yuyuan/evaluate/perplexity.py. Perplexities of different tokenizers cannot be compared.
"""

import argparse
import json
import time
from collections.abc import Sequence

from megatron_yuyuan.cli import ArgumentParser, add_config_argument, run_command
from megatron_yuyuan.data.gpt_dataset import split_documents
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.medquad import SPLITS
from megatron_yuyuan.data.template import TEMPLATE, QuestionTemplate
from megatron_yuyuan.errors import ConfigError, DataError
from megatron_yuyuan.evaluate.arguments import add_model_arguments

COLUMNS = {"tokens": ",", "windows": ",", "loss": ".6f", "perplexity": ".4f"}
"""What is printed of a shard, and how."""


def main(args: Sequence[str] | None = None) -> None:
    """Open the model, read every shard, print a table. Raises ConfigError, DataError, UnsafeError."""
    options, begun = _parse(args), time.perf_counter()
    shards = {prefix: IndexedDataset(prefix) for prefix in options.data_path}
    from megatron_yuyuan.checkpoint.model import load_model  # torch: after --help and a wrong path
    from megatron_yuyuan.evaluate.perplexity import Windows, perplexity
    from megatron_yuyuan.model.gpt2 import GPT2

    loaded = load_model(options.load, options.ckpt_step or None, options.device)
    model = loaded.model
    assert isinstance(model, GPT2)  # load_model divides nothing
    length = window_length(options.seq_length, model.config.max_position_embeddings)
    stride, windows = options.stride or length, {}
    for prefix, shard in shards.items():
        shard.check_vocabulary(loaded.tokenizer.fingerprint, loaded.tokenizer.vocab_size)
        check_template(shard, loaded.template)
        windows[prefix] = Windows(shard, length, stride, part_of(shard, options))
    found = {
        prefix: {"windows": len(of)} | perplexity(model, of, options.micro_batch_size)
        for prefix, of in windows.items()
    }
    if len(found) > 1:
        found["all"] = together(list(found.values()))
    if options.json:
        print(json.dumps({"seq_length": length, "stride": stride, "shards": found}, indent=2))
        return
    print(f"{options.load}, windows of {length} tokens, stride {stride}; part: {options.part}\n")
    print(table(found))
    print(f"\n{time.perf_counter() - begun:.1f} s")


def window_length(asked: int, positions: int) -> int:
    """Tokens of a window: as asked, or (0) as many as the model has positions. Raises ConfigError."""
    if asked > positions:
        raise ConfigError(
            f"seq_length={asked}, the model has {positions} positions",
            "every token of a window needs one",
            f"--seq-length {positions} or less",
        )
    return asked or positions


def check_template(shard: IndexedDataset, template: QuestionTemplate) -> None:
    """Refuse pairs that were put into words otherwise than those of the training. Raises DataError."""
    made_with = QuestionTemplate.from_dict(shard.meta.get("template", TEMPLATE.to_dict()))
    if made_with != template:
        raise DataError(
            f"{shard.prefix} was made with the template {made_with}",
            f"the model was trained on {template}",
            "preprocess the questions again",
        )


def part_of(shard: IndexedDataset, options: argparse.Namespace) -> range:
    """The documents of the shard that are read. Raises ConfigError."""
    if options.part == "all":
        return range(shard.num_documents)
    parts = split_documents(shard.num_documents, options.split)
    return dict(zip(SPLITS, parts, strict=True))[options.part]


def together(found: list[dict]) -> dict:
    """The figures of several shards as those of one."""
    from megatron_yuyuan.evaluate.perplexity import per_token

    tokens = sum(of["tokens"] for of in found)
    loss = sum(of["loss"] * of["tokens"] for of in found)
    return {"windows": sum(of["windows"] for of in found)} | per_token(loss, tokens)


def table(found: dict[str, dict]) -> str:
    """One row a shard, in Markdown."""
    lines = [f"| shard | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for prefix, figures in found.items():
        cells = [format(figures[name], form) for name, form in COLUMNS.items()]
        lines.append(f"| {prefix} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--data-path", nargs="+", required=True, metavar="PREFIX", help="shards, each by itself"
    )
    parser.add_argument(
        "--part",
        choices=("all", *SPLITS),
        help="documents of each shard, as --split divides them in training; without it all of them",
    )
    add_config_argument(parser, "split")
    parser.add_argument(
        "--seq-length",
        type=int,
        default=0,
        metavar="N",
        help="tokens of a window; 0 (default): the positions of the model",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=0,
        metavar="N",
        help="tokens from window to window; 0 (default): --seq-length, disjoint windows",
    )
    parser.add_argument(
        "--micro-batch-size",
        type=int,
        default=8,
        metavar="N",
        help="windows at a time; changes the time alone (default: 8)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON object")
    options = parser.parse_args(args)
    if options.seq_length < 0 or options.stride < 0 or options.micro_batch_size < 1:
        parser.error("--seq-length and --stride are 0 or more, --micro-batch-size 1 or more")
    if options.part is None and options.split != parser.get_default("split"):
        parser.error("--split divides the documents for --part train, valid or test")
    options.part = options.part or "all"
    return options


if __name__ == "__main__":
    run_command(main)
