r"""The results of tools/gpu_check.sh as a section of docs/performance.md.

    python tools/benchmark/gpu_report.py FOLDER [--page docs/performance.md]

FOLDER holds machine.json, kernels.json, training.json, peers.json, those of them that were measured. The section
stands between two comments; what was between them is replaced, and a page without them gets it at its end.
Without --page it is printed. Results of the CPU's dry mode are printed only.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_yuyuan.cli import ArgumentParser, run_command
from megatron_yuyuan.data.files import AtomicFiles
from megatron_yuyuan.errors import DataError

BEGIN, END = "<!-- gpu_check: begin -->", "<!-- gpu_check: end -->"
STAGES = ("machine", "kernels", "training", "peers")
OUTCOMES = ("tests", "failures", "errors", "skipped")
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
Stage = dict[str, dict]
"""`about` and `rows` of a stage's JSON."""


def main(args: Sequence[str] | None = None) -> None:
    """Print the section, or put it into a page."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--page", type=Path, metavar="FILE.md")
    options = parser.parse_args(args)
    stages = read(options.folder)
    section = "\n".join(written(stages, tests_of(options.folder)))
    if options.page is None:
        print(section)
        return
    before = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
    if any(stage["about"]["device"] == "cpu" for stage in stages.values()):
        raise DataError(
            f"{options.folder} holds results of a CPU",
            f"{options.page} says what a GPU does",
            "tools/gpu_check.sh on a machine with one",
        )
    with AtomicFiles() as files:
        files.open(options.page).write(inserted(before, section, options.page).encode())


def read(folder: Path) -> dict[str, Stage]:
    """The stages that were measured. Raises DataError where there is none."""
    paths = {stage: folder / f"{stage}.json" for stage in STAGES}
    found = {s: json.loads(p.read_text(encoding="utf-8")) for s, p in paths.items() if p.exists()}
    if not found:
        raise DataError(
            f"{folder} holds no results",
            f"none of {', '.join(STAGES)} is there",
            "tools/gpu_check.sh",
        )
    return found


def tests_of(folder: Path) -> str:
    """What pytest's JUnit reports say, in one line: those of the whole suite, or else that of the first
    stage. Empty without one."""
    reports = sorted(folder.glob("suite-*.xml")) or sorted(folder.glob("tests.xml"))
    counts: Counter[str] = Counter()
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            counts.update({name: int(suite.attrib[name]) for name in OUTCOMES})
    return ", ".join(f"{counts[name]} {name}" for name in OUTCOMES) if reports else ""


def inserted(page: str, section: str, path: Path) -> str:
    """The page with the section between its two comments. Raises DataError where one is missing."""
    block = f"{BEGIN}\n{section}\n{END}"
    if (page.count(BEGIN), page.count(END)) == (0, 0):
        return f"{page.rstrip()}\n\n{block}\n".lstrip()
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended) or BEGIN in rest or END in after:
        raise DataError(
            f"{path} does not hold `{BEGIN}` and then `{END}`, once each",
            "the section between them is what is replaced",
            "both comments, or none of them",
        )
    return before + block + after


def written(stages: dict[str, Stage], tests: str) -> Iterator[str]:
    """The lines of the section."""
    about = next(iter(stages.values()))["about"]
    yield "## On a GPU\n"
    versions = ("python", "torch", "cuda", "cudnn", "transformers", "megatron-core", "apex")
    named = ", ".join(f"{name} {about[name]}" for name in versions if about.get(name))
    yield f"{about['date']}, {about['device']} ({about['clocks']}); {named}. `tools/gpu_check.sh`; in the same run"
    for name, stage in stages.items():
        copy, matmul = (stage["about"][f"{k}_per_second"] for k in ("copy_bytes", "matmul_flops"))
        yield f"- {name}: copy {copy / 1e12:.2f} TB/s, bfloat16 product of 8192 {matmul / 1e12:.0f} TFLOP/s"
    if tests:
        yield f"- tests: {tests}"
    tables = {"machine": machine, "kernels": kernels, "training": steps, "peers": steps}
    for name, stage in stages.items():
        yield from ("", f"### {HEADINGS[name]}", "", *tables[name](stage["rows"]))
        yield from missing(stage["rows"])


HEADINGS = {
    "machine": "Ceilings, attention, one step",
    "kernels": "Kernels",
    "training": "Training steps",
    "peers": "Beside others",
}


def table(head: str, rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown. head: `name | name | ...`."""
    yield f"| {head} |"
    yield "|---" * (head.count(" | ") + 1) + "|"
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def measured(rows: Stage, beginning: str = "") -> Iterator[tuple[str, dict]]:
    """(name less its beginning, figures) of the rows that have figures."""
    for name, row in rows.items():
        if name.startswith(beginning) and "not_measured" not in row:
            yield name.removeprefix(beginning), row


def missing(rows: Stage) -> Iterator[str]:
    """Why rows have no figures."""
    lines = [
        f"- {name}: {row['not_measured']}" for name, row in rows.items() if "not_measured" in row
    ]
    yield from ("", "Not measured:", "", *lines) if lines else ()


def machine(rows: Stage) -> Iterator[str]:
    products = (
        (name, f"{r['flops_per_second'] / 1e12:.0f}") for name, r in measured(rows, "matmul, ")
    )
    yield from table("product | TFLOP/s", products)
    yield ""
    heads = "SDPA at B 8, N 32, T 1024, D 96 | forward ms | backward ms | drop rate"
    bodies = (
        (name, *(f"{1e3 * r[d]:.3f}" for d in ("forward", "backward")), dropped(r))
        for name, r in measured(rows, "attention, ")
        if "forward" in r
    )
    yield from table(heads, bodies)
    yield ""
    for name in ("attention, torch's own choice", "five steps", "synchronisations"):
        if name in rows and "not_measured" not in rows[name]:
            yield f"- {name}: {json.dumps(rows[name])}"


def dropped(row: dict) -> str:
    """The measured drop rate, and whether it is the one that was asked for."""
    if "drop_rate" not in row:
        return ""
    return f"{row['drop_rate']:.4f}" + ("" if row["drops_as_asked"] else ", **not as asked**")


def kernels(rows: Stage) -> Iterator[str]:
    def cells(name: str, row: dict, direction: str) -> tuple[str, ...]:
        speed = row[direction]
        error = "" if "error" not in row else f"{row['error']:.1e}"
        error += "" if row.get("agrees", True) else ", **wrong**"
        rate = f"{speed['bytes_per_second'] / 1e9:.0f}"
        return (
            name,
            direction,
            f"{1e6 * speed['seconds']:.1f}",
            rate,
            f"{speed['share_of_copy']:.0%}",
            error,
        )

    directions = ("forward", "backward", "norm", "norm+step")
    yield from table(
        "kernel, by | | µs | GB/s | of copy | error",
        (cells(name, r, d) for name, r in measured(rows) for d in directions if d in r),
    )


def steps(rows: Stage) -> Iterator[str]:
    def cells(name: str, row: dict) -> tuple[str, ...]:
        mfu, predicted = row["mfu"], row["predicted_bytes"]
        return (
            name,
            f"{row['tokens_per_second']:.0f}",
            f"{row['tflops']:.0f}",
            f"{row['tflops_megatron_formula']:.0f}",
            f"{mfu:.1%}" if mfu else "",
            f"{row['share_of_measured_matmul']:.1%}",
            f"{row['memory_bytes'] / 2**30:.1f}",
            f"{predicted / 2**30:.1f} ({predicted / row['memory_bytes'] - 1:+.1%})"
            if predicted
            else "",
            f"{row['losses'][-1]:.4f}",
        )

    heads = "model, by | tokens/s | TFLOP/s | by Megatron's formula | MFU | of measured matmul"
    heads += " | GiB | predicted | loss"
    own = ((name, row) for name, row in measured(rows) if "tokens_per_second" in row)
    yield from table(heads, (cells(*named) for named in own))
    if "shares" in rows.get("profile", {}):
        shares = ", ".join(f"{kind} {part:.1%}" for kind, part in rows["profile"]["shares"].items())
        yield from ("", f"Of the time of one step ({rows['profile']['trace']}): {shares}.")


if __name__ == "__main__":
    run_command(main)
