"""Fetch what tools/preprocess_data.py reads: PubMed's citations, MedQuAD's questions.

    python tools/download_data.py pubmed-baseline --output-dir data/pubmed --files 1-3
    python tools/download_data.py pubmed-updates --output-dir data/pubmed --files 1275-
    python tools/download_data.py medquad --output-dir data
    -> data/pubmed/pubmed26n0001.xml.gz and .md5 ..., data/MedQuAD/*/*.xml

Every file is compared with its published md5, MedQuAD with the git tree of one commit; what does
not match is refused. The same command goes on where an interrupted one stopped, and fetches nothing
that is there. PubMed's baseline of 2026 is 1,274 files, tens of gigabytes in all.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data import medquad_archive as medquad
from megatron_yuyuan.data.download import Client, download_with_md5, pubmed_names
from megatron_yuyuan.errors import ConfigError

SOURCES = {
    "pubmed-baseline": "https://ftp.ncbi.nlm.nih.gov/pubmed/baseline/",
    "pubmed-updates": "https://ftp.ncbi.nlm.nih.gov/pubmed/updatefiles/",
    "medquad": "https://github.com/abachaa/MedQuAD/archive/",
}
REDIRECTED_TO = {"medquad": {"codeload.github.com"}}
"""Hosts to which a source sends its readers."""
MOST_JOBS = 8


def main(args: Sequence[str] | None = None) -> None:
    """Read the command line, fetch, say what is there. Raises ConfigError, DataError,
    UnsafeError."""
    options = _parse(args)
    url = (options.base_url or SOURCES[options.dataset]).rstrip("/") + "/"
    redirected_to = set() if options.base_url else REDIRECTED_TO.get(options.dataset, set())
    client = Client({urlsplit(url).netloc} | redirected_to)
    if options.dataset == "medquad":
        _download_medquad(client, url, Path(options.output_dir) / "MedQuAD")
    else:
        _download_pubmed(client, url, options)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=tuple(SOURCES), help="what is fetched")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="where it is put")
    parser.add_argument(
        "--files",
        type=_number_range,
        default=None,
        metavar="FIRST-LAST",
        help="numbers of PubMed's files: 7, 1-3, 1275- (default: all that are listed)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help=f"files at a time, at most {MOST_JOBS}: the servers are shared (default: 2)",
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="a mirror of the source: https, or http on this machine"
    )
    options = parser.parse_args(args)
    if not 1 <= options.jobs <= MOST_JOBS:
        raise ConfigError(
            f"jobs={options.jobs} is not 1 to {MOST_JOBS}",
            "the servers are shared, and refuse those who open many connections",
            "--jobs 2",
        )
    if options.files and options.dataset == "medquad":
        raise ConfigError(
            "--files is given, and medquad is one archive",
            "it numbers the files of PubMed",
            "leave it out",
        )
    return options


def _number_range(text: str) -> tuple[int, int]:
    """`7`, `1-3` or `1275-` as (first, last)."""
    match = re.fullmatch(r"(\d+)(-(\d*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 7, 1-3 or 1275-")
    first, rest, last = match.groups()
    return int(first), int(last or 9999) if rest else int(first)


def _download_pubmed(client: Client, url: str, options: argparse.Namespace) -> None:
    names = pubmed_names(client.read(url), *(options.files or (1, 9999)))
    folder, fetched = Path(options.output_dir), 0
    done: Iterable[tuple[str, bool]] = download_with_md5(client, url, names, folder, options.jobs)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        done = track(done, "files", len(names), console=Console(stderr=True))
    for number, (name, is_new) in enumerate(done, start=1):
        fetched += is_new
        size = (folder / name).stat().st_size / 1e6
        state = "fetched" if is_new else "was there"
        print(
            f"{name}: {size:.1f} MB, md5 as published, {state} ({number}/{len(names)})", flush=True
        )
    print(f"{len(names)} files in {folder.absolute()}, {fetched} fetched now")


def _download_medquad(client: Client, url: str, folder: Path) -> None:
    if medquad.is_unpacked(folder, medquad.COMMIT):
        print(f"{folder.absolute()} was there")
        return
    archive = client.read(f"{url}{medquad.COMMIT}.tar.gz")
    number = medquad.unpack_medquad(archive, folder, medquad.COMMIT, medquad.TREE)
    print(f"{number} files in {folder.absolute()}: commit {medquad.COMMIT}, content verified")


if __name__ == "__main__":
    run_command(main)
