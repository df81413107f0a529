"""Answer the questions of a JSONL file, or take the answers of one, and score them.

    python tools/evaluate_qa.py --load RUN --data medquad_test.jsonl --output answers.jsonl --html answers.html
    python tools/evaluate_qa.py --load RUN --data medquad_test.jsonl --greedy-only --json > RUN/scores.json
    python tools/evaluate_qa.py --predictions answers.jsonl

Every line of --data is {"question": ..., "answer": ...}, as tools/preprocess_data.py writes it for
held-out pairs. Every question is answered twice, greedily and by one sample of a fixed seed (as
YuyuanQA's page draws, at temperature 0.7 from the likeliest 0.6), and both are scored. Printed: BLEU-1 to
BLEU-4, exact match, token F1 and chrF, each under its protocol, and some answers; --json names
the scored weights too: the card of an export needs that. --predictions needs no model: its
lines are those that --output writes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import flag_of
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.data.medquad import read_qa_jsonl
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate.answers import (
    Answered,
    Systems,
    read_predictions,
    score_systems,
    spread,
    write_predictions,
)
from megatron_yuyuan.evaluate.answers_page import answers_page
from megatron_yuyuan.evaluate.arguments import add_sampling_arguments, describe_sampling, sampling
from megatron_yuyuan.evaluate.scores import Scores, report, signatures

SAMPLES = 3
"""Questions whose answers are printed."""


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, answer or read answers, score, report. Raises ConfigError, DataError,
    UnsafeError."""
    options, begun = _parse(args), time.perf_counter()
    with AtomicFiles() as files:  # opened first: nobody waits for answers that cannot be written
        output = files.open(options.output) if options.output else None
        html = files.open(options.html) if options.html else None
        if options.predictions:
            systems, scored = read_predictions(options.predictions), None
        else:
            systems, scored = ask(options)
        if output:
            write_predictions(output, systems)
        if html:
            html.write(answers_page(f"Answers of {'; '.join(systems)}", systems).encode())
    scores = score_systems(systems)
    if options.json:
        print(json.dumps({"scored": scored} | figures(scores), indent=2, ensure_ascii=False))
        return
    print(report(scores))
    show(systems)
    seconds, questions = time.perf_counter() - begun, len(next(iter(systems.values())))
    print(f"\n{questions} questions in {seconds:.1f} s")
    for path in filter(None, (options.output, options.html)):
        print(f"written {Path(path).absolute()}")


def ask(options: argparse.Namespace) -> tuple[dict[str, list[Answered]], dict[str, str]]:
    """What the model of --load says to the questions of --data, by system: greedy and, but for
    --greedy-only, sampled; and which weights it has."""
    pairs = spread(list(read_qa_jsonl(options.data)), options.limit)
    if not pairs:
        raise DataError(
            f"no question in {options.data}",
            "there is nothing to score",
            "a JSONL file of question and answer",
        )
    from megatron_yuyuan.checkpoint.hf_start import HF_PREFIX
    from megatron_yuyuan.checkpoint.identity import identity
    from megatron_yuyuan.checkpoint.model import load_model  # torch: after --help and a wrong path
    from megatron_yuyuan.evaluate.generate import answer_all
    from megatron_yuyuan.evaluate.sampling import Sampling

    chosen = sampling(options)
    del chosen["max_new_tokens"]
    Sampling(**chosen)  # refuses a value before anything is loaded or asked
    loaded = load_model(options.load, options.ckpt_step or None, options.device)
    name, systems = Path(options.load.removeprefix(HF_PREFIX)).absolute().name, {}
    for decoding in decodings(options):
        questions, at_once = [pair.question for pair in pairs], options.batch_size
        answers = answer_all(loaded, questions, batch_size=at_once, **sampling(decoding))
        systems[f"{name}, {describe_sampling(decoding)}"] = [
            Answered(pair.question, pair.answer, text)
            for pair, text in zip(pairs, answers, strict=True)
        ]
    return systems, identity(loaded.path)


def decodings(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of every decoding that is scored: greedy first."""
    greedy = argparse.Namespace(**vars(options) | {"temperature": 0.0})
    return [greedy] if options.greedy_only else [greedy, options]


def figures(scores: dict[str, Scores]) -> dict:
    """The protocols, and the scores of every system under the same names."""
    return {
        "signatures": signatures(),
        "systems": {system: asdict(of) for system, of in scores.items()},
    }


def show(systems: Systems) -> None:
    """The first questions with what was said to them."""
    for answers in list(zip(*systems.values(), strict=True))[:SAMPLES]:
        print(f"\nquestion:  {answers[0].question}\nreference: {_short(answers[0].reference)}")
        for answered in answers:
            print(f"answer:    {_short(answered.answer)}")


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--load", metavar="DIR", help="run directory, or a Hugging Face GPT-2")
    source.add_argument(
        "--predictions", metavar="FILE.jsonl", help="answers that are scored as they are"
    )
    parser.add_argument("--data", metavar="FILE.jsonl", help="questions and their answers")
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        metavar="N",
        help="pairs, spread evenly over --data; 0: all (default: 100)",
    )
    parser.add_argument("--output", metavar="FILE.jsonl", help="where every answer goes")
    parser.add_argument("--html", metavar="FILE.html", help="where they go as a page to read")
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON object")
    parser.add_argument(
        "--ckpt-step", type=int, default=0, metavar="N", help="iteration of the run; 0 the latest"
    )
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the model lives"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="questions asked at once (default: 16)",
    )
    parser.add_argument(
        "--greedy-only",
        action="store_true",
        help="no sample: half the time, the greedy answers alone",
    )
    add_sampling_arguments(parser, temperature=0.7, top_p=0.6)
    options = parser.parse_args(args)
    _check(parser, options)
    return options


def _check(parser: ArgumentParser, options: argparse.Namespace) -> None:
    """End the command where flags do not go together."""
    if options.limit < 0:
        parser.error("--limit is a number of pairs, 0 for all")
    if options.batch_size < 1:
        parser.error("--batch-size is a number of questions, 1 at least")
    if not options.temperature and not options.greedy_only:
        parser.error(
            "--temperature 0 draws nothing: --greedy-only asks for the greedy answers alone"
        )
    if options.load and not options.data:
        parser.error("--load needs --data, the questions that are asked")
    for name in ("temperature", "top_k", "top_p", "seed"):
        if options.greedy_only and getattr(options, name) != parser.get_default(name):
            flag = flag_of(name)
            parser.error(f"{flag} is of the sample, which --greedy-only leaves out")
    of_asking = ("data", "limit", "ckpt_step", "device", "batch_size", "greedy_only")
    for name in (*of_asking, *sampling(options)):
        if options.predictions and getattr(options, name) != parser.get_default(name):
            parser.error(f"{flag_of(name)} is for --load: nothing is asked with --predictions")


if __name__ == "__main__":
    run_command(main)
