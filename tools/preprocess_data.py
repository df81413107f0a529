r"""Turn raw text or questions into token shards that pretrain_gpt.py and finetune_qa.py read.

    python tools/preprocess_data.py --input baseline/ updatefiles/ --output-prefix data/pubmed \
        --vocab-file vocab.json --merge-file merges.txt --append-eod
    -> data/pubmed_text_document.bin .idx .meta.json

    python tools/preprocess_data.py --input MedQuAD/ --output-prefix data/medquad ...
    -> data/medquad_{train,valid,test}.jsonl and data/medquad_{train,valid,test}_qa_document.bin ...

Killed and started again, it goes on from PREFIX.partial/. On many nodes, give each --task-index and
--num-tasks; when all have ended, the same command without these two writes the shard. It is the same,
byte for byte, for any number of workers, tasks and interruptions. Texts are divided into training,
validation and test by pretrain_gpt.py --split, questions here.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.config import flag_of
from megatron_yuyuan.data.decontamination import Decontaminator
from megatron_yuyuan.data.encoder import CHOICES, open_encoder
from megatron_yuyuan.data.files import AtomicFiles, hold
from megatron_yuyuan.data.indexed_dataset import IndexedDatasetWriter, dtype_for
from megatron_yuyuan.data.minhash import require_rensa
from megatron_yuyuan.data.preprocess import Preparation
from megatron_yuyuan.data.progress import Progress
from megatron_yuyuan.data.pubmed import CitationFilter
from megatron_yuyuan.data.questions import DEFAULT_SHARES, remove_empty_parts, write_questions
from megatron_yuyuan.data.scan import Recipe
from megatron_yuyuan.data.sources import (
    CITED,
    UNKNOWN,
    Source,
    add_input_arguments,
    find_sources,
    hold_questions,
)
from megatron_yuyuan.data.tokenizer import Tokenizer, add_tokenizer_arguments, named_tokenizer
from megatron_yuyuan.errors import ConfigError

FILTERS = ("keep_retracted", "keep_title_only")


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, write the shards, print a report. Raises YuyuanError."""
    options = _parse(args)
    tokenizer = named_tokenizer(options)
    sources = find_sources(options.input, options.input_format, options.skip_bad_files)
    if hold_questions(sources):
        _prepare_questions(options, sources, tokenizer)
    else:
        _prepare_texts(options, sources, tokenizer)


def _prepare_texts(options, sources: list[Source], tokenizer: Tokenizer) -> None:
    if options.split:
        raise ConfigError(
            f"--split is given, and {sources[0].path} holds texts",
            "texts are divided at training time, so one shard serves every division",
            "leave it out here, and give it to pretrain_gpt.py --split 949,50,1",
        )
    if options.json_keys != ["text"] and not any(s.format == "jsonl" for s in sources):
        raise ConfigError(
            f"json_keys: {' '.join(options.json_keys)}, and no input is JSONL",
            "only a line of JSON has keys",
            "leave it out, or --input-format jsonl",
        )
    _refuse_flags_of_citations(options, sources)
    started, is_task = time.monotonic(), options.num_tasks > 1
    # each worker is a process: the threads of the reference encoder would only stand in its way
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = open_encoder(tokenizer, options.encoder, dtype_for(tokenizer.vocab_size))
    preparations = [
        Preparation(sources, recipe, tokenizer, options.output_prefix, options.skip_bad_files)
        for recipe in _recipes(options)
    ]
    partial = Path(f"{options.output_prefix}.partial")
    with hold(partial, shared=is_task):
        plans = [preparation.plan() for preparation in preparations]
        with Progress(options.log_interval) as progress:
            for preparation, units in zip(preparations, plans, strict=True):
                own = units[options.task_index :: options.num_tasks]
                preparation.scan(own, encoder, options.workers or _cores(), progress)
        if is_task:
            print(f"task {options.task_index} of {options.num_tasks}: {len(own)} units are done")
            print("when all tasks are: the same command without --task-index and --num-tasks")
            return
        with AtomicFiles() as files:
            written = [
                preparation.write(units, files)
                for preparation, units in zip(preparations, plans, strict=True)
            ]
        shutil.rmtree(partial, ignore_errors=True)
    _print_inputs(sources, time.monotonic() - started, encoder.name)
    if options.decontaminate:
        print(f"compared  with {', '.join(options.decontaminate)}")
    for shard in written:
        _print_report(shard.report)
        _print_shard(shard.writer)
    if not options.append_eod:
        print("note: no end of text between documents; --append-eod adds it")


def _stop(*_) -> None:
    """End at once: what is written counts only when it is whole."""
    for process in multiprocessing.active_children():
        process.kill()
    message = (
        "error: stopped by SIGTERM\n  why: what is scanned is kept\n  try: the same command again\n"
    )
    os.write(2, message.encode())
    os._exit(75)


def _cores() -> int:
    """Cores that this process may use: fewer than the machine has, under SLURM."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _recipes(options) -> list[Recipe]:
    if options.near_duplicates:
        require_rensa()
    filters = {field.name: getattr(options, field.name) for field in fields(CitationFilter)}
    languages = tuple(language.lower() for language in options.languages)
    filters["languages"] = () if "any" in languages else languages
    decontaminator = (
        Decontaminator([Path(p) for p in options.decontaminate]) if options.decontaminate else None
    )
    return [
        Recipe(
            key,
            options.append_eod,
            CitationFilter(**filters),
            options.keep_duplicates,
            options.near_duplicates,
            decontaminator,
        )
        for key in options.json_keys
    ]


def _prepare_questions(options, sources: list[Source], tokenizer: Tokenizer) -> None:
    known = [
        source for source in sources if source.format != UNKNOWN
    ]  # hold_questions has found one
    defaults = [DEFAULT_SHARES[s.format] for s in known if s.format in DEFAULT_SHARES]
    started, shares = time.monotonic(), options.split or next(iter(defaults), None)
    _refuse_flags_of_texts(options, known[0])
    with AtomicFiles() as files:
        where = options.output_prefix, files, options.skip_bad_files
        shards, report = write_questions(sources, shares, tokenizer, *where)
    notes = remove_empty_parts(options.output_prefix, shards, sources)
    _print_inputs(sources, time.monotonic() - started, "reference")
    _print_report(report)
    for shard in shards:
        _print_shard(shard)
    for note in notes:
        print(f"note: {note}")


def _refuse_flags_of_citations(options, sources: list[Source]) -> None:
    """Raises ConfigError for flags that mean nothing for texts that say nothing of themselves."""
    given = [name for name in FILTERS if getattr(options, name)]
    given += ["languages"] * (options.languages != ["eng"])
    formats = {source.format for source in sources}
    if formats & set(CITED):
        given = [name for name in given if name != "keep_retracted"]
    if given and "pubmed-xml" not in formats:
        raise ConfigError(
            f"{', '.join(flag_of(name) for name in given)}: not for these texts",
            f"{sources[0].path} does not say what they choose by, as PubMed's files do",
            "leave it out",
        )


def _refuse_flags_of_texts(options, source: Source) -> None:
    """Raises ConfigError for flags that mean nothing for questions."""
    given = {
        "num_tasks": options.num_tasks > 1,
        "json_keys": options.json_keys != ["text"],
        "languages": options.languages != ["eng"],
        "encoder": options.encoder == "fast",
    }
    for name in (*FILTERS, "keep_duplicates", "near_duplicates", "decontaminate"):
        given[name] = bool(getattr(options, name))
    if flags := [flag_of(name) for name, is_given in given.items() if is_given]:
        raise ConfigError(
            f"{', '.join(flags)}: not for questions",
            f"{source.path} holds questions, which are few, and divided into parts that share nothing",
            "leave it out here",
        )


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_input_arguments(parser)
    add = parser.add_argument
    add("--json-keys", nargs="+", default=["text"], metavar="KEY",
        help="keys of a JSONL line that hold text; each makes a shard")  # fmt: skip
    add("--output-prefix", required=True, metavar="PREFIX",
        help="what the outputs' names begin with")  # fmt: skip
    add("--append-eod", action="store_true",
        help="end every document with the end-of-text token")  # fmt: skip
    add("--languages", nargs="+", default=["eng"], metavar="LANG",
        help="PubMed: keep articles in one of these languages (eng fre ...), or `any` (default: eng)")  # fmt: skip
    add("--keep-retracted", action="store_true",
        help="PubMed, PMC: keep retracted articles and notices of retraction")  # fmt: skip
    add("--keep-title-only", action="store_true",
        help="PubMed: keep records without an abstract")  # fmt: skip
    add("--keep-duplicates", action="store_true",
        help="keep exact duplicates of earlier documents")  # fmt: skip
    add("--near-duplicates", action="store_true",
        help="drop near duplicates of earlier documents too, by MinHash")  # fmt: skip
    add("--decontaminate", nargs="+", default=[], metavar="FILE",
        help="drop documents that share 13 words in a row with these evaluation files")  # fmt: skip
    add("--skip-bad-files", action="store_true",
        help="go on without files that cannot be read whole, and list them")  # fmt: skip
    add("--encoder", choices=CHOICES, default="auto",
        help="auto: gigatoken if it is installed, compared with the reference on a sample")  # fmt: skip
    add("--workers", type=int, default=0, metavar="N", help="processes; 0 means one a core")
    add("--num-tasks", type=int, metavar="N",
        help="tasks that share the reading, as in a SLURM array")  # fmt: skip
    add("--task-index", type=int, metavar="I", help="which of them this is, from 0")
    add("--split", type=_shares, metavar="TRAIN,VALID,TEST",
        help="shares of the questions (medquad-xml: 90,5,5; qa-jsonl: not divided)")  # fmt: skip
    add("--log-interval", type=int, default=100_000, metavar="N",
        help="documents between lines of progress, where stderr is no terminal; 0: none")  # fmt: skip
    add_tokenizer_arguments(parser)
    options = parser.parse_args(args)
    _refuse_values(options)
    return options


def _refuse_values(options) -> None:
    if (options.num_tasks is None) != (options.task_index is None):
        raise ConfigError(
            "one of num_tasks and task_index is given without the other",
            "a task is one of a number",
            "--num-tasks 32 --task-index 0, and so on to 31; neither for the whole",
        )
    if options.num_tasks is None:
        options.num_tasks, options.task_index = 1, 0
    for name, least in (("workers", 0), ("log_interval", 0), ("num_tasks", 1), ("task_index", 0)):
        if getattr(options, name) < least:
            raise ConfigError(
                f"{name}={getattr(options, name)} is below {least}",
                "it is a number of things",
                f"{flag_of(name)} {least} or more",
            )
    if Path(options.output_prefix).name == "" or options.output_prefix.endswith("/"):
        raise ConfigError(
            f"output_prefix={options.output_prefix} names a folder",
            "it is what the outputs' names begin with",
            f"--output-prefix {options.output_prefix.rstrip('/')}/pubmed",
        )
    keys = options.json_keys
    if len(set(keys)) < len(keys) or any("/" in key or key.startswith(".") for key in keys):
        raise ConfigError(
            f"json_keys: {' '.join(keys)}",
            "each key names a shard of its own",
            "different keys, without `/` and not beginning with `.`",
        )
    if options.task_index >= options.num_tasks:
        raise ConfigError(
            f"task_index={options.task_index} with num_tasks={options.num_tasks}",
            "tasks are counted from 0",
            f"--task-index 0 to {options.num_tasks - 1}",
        )


def _shares(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if (
        len(parts) != 3
        or not all(part.strip().isdecimal() for part in parts)
        or not sum(map(int, parts))
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole shares such as 90,5,5")
    return tuple(map(int, parts))


def _print_inputs(sources: list[Source], seconds: float, encoder: str) -> None:
    formats = ", ".join(sorted({source.format for source in sources} - {UNKNOWN}))
    print(f"read      {len(sources)} files ({formats}) in {seconds:.1f} s, encoder: {encoder}")


def _print_report(report: dict) -> None:
    """What became of the documents, one reason a line."""
    dropped = report["dropped"]
    print(f"documents {report['documents']:>12,}")
    print(f"kept      {report['kept']:>12,}")
    print(f"dropped   {sum(dropped.values()):>12,}")
    for reason, count in dropped.items():
        print(f"          {count:>12,}  {reason}")
    for what, seen in report.get("notes", {}).items():
        print(f"noted     {seen['texts']:>12,}  {what}, first in {seen['first']}")
    for bad in report["bad_files"]:
        print(f"skipped   {bad['error']}")


def _print_shard(shard: IndexedDatasetWriter) -> None:
    print(
        f"written   {Path(shard.prefix).absolute()}.bin .idx .meta.json: "
        f"{shard.num_documents} documents, {shard.num_tokens} tokens, "
        f"{shard.num_tokens / max(1, shard.num_documents):.1f} a document"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    run_command(main)
