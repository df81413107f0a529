"""Answer the questions of a JSONL file and score the answers.

    python tools/evaluate_qa.py --load RUN --data medquad_test.jsonl --limit 100 --output answers.jsonl

Every line of --data is {"question": ..., "answer": ...}, as tools/preprocess_data.py writes it for
held-out pairs. Printed: BLEU-1 to BLEU-4 with their protocol, exact match, some answers. --output
gets question, reference and answer of every pair.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.medquad import read_qa_jsonl
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.arguments import (
    add_model_arguments,
    add_sampling_arguments,
    describe_sampling,
    sampling,
)

SAMPLES = 3
"""Answers that are printed."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, answer, score, report. Raises ConfigError, DataError, UnsafeError."""
    options = _parse(args)
    pairs = spread(list(read_qa_jsonl(options.data)), options.limit)
    if not pairs:
        raise DataError(
            f"no question in {options.data}",
            "there is nothing to score",
            "a JSONL file of question and answer",
        )
    from megatron_yuyuan.checkpoint.model import load_model  # torch: after --help and a wrong path
    from megatron_yuyuan.evaluate.bleu import bleu_table, score
    from megatron_yuyuan.evaluate.generate import answer

    loaded = load_model(options.load, options.ckpt_step or None, options.device)
    begun, answers = time.perf_counter(), []
    with AtomicFiles() if options.output else nullcontext() as files:
        stream = files.open(options.output) if files else None
        for pair in pairs:
            answers.append(answer(loaded, pair.question, **sampling(options)))
            if stream:
                record = {
                    "question": pair.question,
                    "reference": pair.answer,
                    "answer": answers[-1],
                }
                stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    seconds = time.perf_counter() - begun

    scores = score(answers, [pair.answer for pair in pairs])
    print(bleu_table({Path(options.load).absolute().name: scores}, describe_sampling(options)))
    print(f"\nexact match: {scores.exact_match:.4f}")
    for pair, text in list(zip(pairs, answers, strict=True))[:SAMPLES]:
        print(
            f"\nquestion:  {pair.question}\nreference: {_short(pair.answer)}\nanswer:    {_short(text)}"
        )
    print(f"\n{len(pairs)} questions in {seconds:.1f} s")
    if options.output:
        print(f"written {Path(options.output).absolute()}")


def spread(pairs: list, limit: int) -> list:
    """`limit` of the pairs (0: all), evenly over the list: MedQuAD's files stand source by source."""
    if not limit or len(pairs) <= limit:
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--data", required=True, metavar="FILE.jsonl", help="questions and their answers"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        metavar="N",
        help="pairs, spread evenly over the file; 0: all (default: 100)",
    )
    parser.add_argument(
        "--output", default="", metavar="FILE.jsonl", help="where every answer goes"
    )
    add_sampling_arguments(parser)
    options = parser.parse_args(args)
    if options.limit < 0:
        parser.error("--limit is a number of pairs, 0 for all")
    return options


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


if __name__ == "__main__":
    run_command(main)
