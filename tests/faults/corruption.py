"""Damage, one at a time, to every file that a run reads or writes; and what becomes of it.

    python tests/faults/corruption.py [PORTION]     prints the table of docs/reliability.md

PORTION: every so many of the cases (1: all). The places are drawn with fixed seeds.
"""

import hashlib
import random
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

FLIPS, CUTS = 24, 6
"""Of each file."""
VERDICTS = ("refused", "fell back", "full check", "harmless", "silent")
"""refused: status 2 and three lines. fell back: the whole checkpoint before it, with a warning. full check:
tools/check_data.py alone sees it. harmless: what is read is equal to the last byte. silent: none of these."""


class Damage(NamedTuple):
    """One file of a folder, changed."""

    file: str
    kind: str
    place: int = 0
    """A bit (flip), a length in bytes (cut), or the number of the other file (swapped)."""

    def __str__(self) -> str:
        return f"{self.file}-{self.kind}-{self.place}".replace(" ", "_")


@dataclass(frozen=True)
class Subject:
    """Something that is read, and how."""

    name: str
    folder: Path
    files: tuple[str, ...]
    """Those that are damaged."""
    read: Callable[[Path], tuple[bool, object]]
    """(whether a warning named a fault, what was read) of a folder. Raises YuyuanError."""
    others: tuple[Path, ...] = ()
    """Files to be swapped in, each of the same name as one of `files`."""
    older: object = None
    """What `read` gives of the checkpoint before."""
    check: Callable[[Path], object] | None = None
    """The full check. Raises YuyuanError."""


def damages(subject: Subject) -> Iterator[Damage]:
    """Flips, cuts, and every file emptied, lengthened, deleted and swapped."""
    for file in subject.files:
        size = (subject.folder / file).stat().st_size
        draw = random.Random(zlib.crc32(f"{subject.name}/{file}".encode()))
        for place in sorted(draw.sample(range(8 * size), min(FLIPS, 8 * size))):
            yield Damage(file, "flipped", place)
        for length in sorted(draw.sample(range(1, size), min(CUTS, size - 1))):
            yield Damage(file, "cut", length)
        yield from (Damage(file, kind) for kind in ("emptied", "lengthened", "deleted"))
        for number, other in enumerate(subject.others):
            if other.name == Path(file).name:
                yield Damage(file, "swapped", number)


def inflict(subject: Subject, damage: Damage, folder: Path) -> None:
    """Change the file of a copy of the subject's folder."""
    path = folder / damage.file
    content = bytearray(path.read_bytes())
    if damage.kind == "deleted":
        path.unlink()
        return
    if damage.kind == "flipped":
        content[damage.place // 8] ^= 1 << damage.place % 8
    elif damage.kind == "lengthened":
        content += b"\0" * 8
    elif damage.kind == "swapped":
        content = subject.others[damage.place].read_bytes()
    else:
        content = content[: damage.place]
    path.write_bytes(content)


def verdict(subject: Subject, damage: Damage, folder: Path, expected: object) -> str:
    """What becomes of one damage, in a copy of the subject's folder that is as before afterwards."""
    from megatron_yuyuan.errors import YuyuanError

    inflict(subject, damage, folder)
    try:
        warned, found = subject.read(folder)
        if found == expected:
            return "harmless"
        if warned and found == subject.older:
            return "fell back"
        if subject.check:
            subject.check(folder)
        return "silent"
    except YuyuanError as error:
        if error.status != 2 or str(error).count("\n") != 2:
            return "silent"
        return "full check" if "found" in locals() else "refused"
    finally:
        shutil.copyfile(subject.folder / damage.file, folder / damage.file)


def matrix(subject: Subject, scratch: Path, portion: int = 1) -> dict[Damage, str]:
    """Damage -> verdict, of every `portion`-th damage."""
    folder = Path(shutil.copytree(subject.folder, scratch / "copy"))
    warned, expected = subject.read(folder)
    assert not warned
    cases = list(damages(subject))[::portion]
    found = {damage: verdict(subject, damage, folder, expected) for damage in cases}
    assert subject.read(folder) == (False, expected)  # every damage was mended
    shutil.rmtree(folder)
    return found


# What is read


def subjects(folder: Path) -> list[Subject]:
    """Shards, a run and an export of it, made in a folder."""
    from commands import prepare

    data = prepare(folder / "data")
    run = make_run(folder / "run", data / "tokenizer")
    return [
        text_shard(data, folder / "other"),
        question_shard(data),
        checkpoint(run),
        model(run),
        export(run, folder / "export"),
    ]


def text_shard(data: Path, folder: Path) -> Subject:
    """A shard of texts as training opens it; swapped with the files of the questions."""
    return shard(data, "text_text_document", "qa_train_qa_document", folder)


def question_shard(data: Path) -> Subject:
    return shard(
        data, "qa_train_qa_document", "qa_test_qa_document", data.parent / "other_questions"
    )


def shard(data: Path, name: str, other: str, folder: Path) -> Subject:
    """One shard, opened as training does, its files swapped with those of another."""
    from megatron_yuyuan.data.data_card import last_token, verify
    from megatron_yuyuan.data.indexed_dataset import IndexedDataset
    from megatron_yuyuan.data.template import TEMPLATE
    from megatron_yuyuan.data.tokenizer import read_tokenizer

    suffixes = (".bin", ".idx", ".meta.json")
    shutil.copytree(data, own := folder / "own", ignore=shutil.ignore_patterns("qa_*", "text_*"))
    (folder / "swapped").mkdir()
    for suffix in suffixes:
        shutil.copy(data / f"{name}{suffix}", own)
        shutil.copy(data / f"{other}{suffix}", folder / "swapped" / f"{name}{suffix}")
    tokenizer = read_tokenizer(own / "tokenizer")

    def read(folder: Path) -> tuple[bool, object]:
        opened = IndexedDataset(folder / name)
        opened.check_vocabulary(tokenizer.fingerprint, tokenizer.vocab_size)
        template = opened.meta.get("template", TEMPLATE.to_dict())  # as training takes it
        arrays = (opened._tokens, opened.sequence_lengths, opened.document_indices)
        return False, (*(array.tobytes() for array in arrays), template)

    def check(folder: Path) -> None:
        opened = IndexedDataset(folder / name)
        verify(opened, tokenizer.vocab_size, last_token(opened))

    files = tuple(f"{name}{suffix}" for suffix in suffixes)
    others = tuple((folder / "swapped" / file) for file in files)
    title = "shard of texts" if name.startswith("text") else "shard of questions"
    return Subject(title, own, files, read, others, check=check)


def make_run(folder: Path, tokenizer_folder: Path) -> Path:
    """A run directory with checkpoints 1 and 3, moments and all, that differ in every tensor."""
    from tiny_run import tiny_gpt2

    from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
    from megatron_yuyuan.data.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(tokenizer_folder)
    config, model = tiny_gpt2(tokenizer, hidden_size=16, num_layers=1)
    tokenizer.save(folder / "tokenizer")
    for iteration in (1, 3):
        document = describe_run(config, tokenizer, 20 * iteration, iteration)
        kinds = ("model", "exp_avg", "exp_avg_sq")
        tensors = {f"{k}.{n}": t * iteration for k in kinds for n, t in model.state_dict().items()}
        save_checkpoint(folder, iteration, tensors, document)
    return folder


def of_run(run: Path) -> tuple[str, ...]:
    """Every file of the newest checkpoint, and of the tokenizer."""
    found = [*(run / "iter_0000003").iterdir(), *(run / "tokenizer").iterdir()]
    return tuple(sorted(str(path.relative_to(run)) for path in found))


def checkpoint(run: Path, strict: bool = False) -> Subject:
    """A run that is continued; swapped with the files of the checkpoint before."""
    import torch

    from megatron_yuyuan.checkpoint.stored import StoredTensors
    from megatron_yuyuan.config import Config
    from megatron_yuyuan.origin import starting_point
    from megatron_yuyuan.resolve import run_tokenizer
    from megatron_yuyuan.run import fill_or_fall_back
    from megatron_yuyuan.watch.saved import TRACKER

    shapes = StoredTensors(run / "iter_0000003").shapes

    class State:
        """What stands in for the state of a job."""

        def fill(self, load: Callable, with_moments: bool) -> None:
            self.tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
            load(self.tensors)

    def read(folder: Path) -> tuple[bool, object]:
        config = Config().replace(save=str(folder), strict=strict, train_iters=9)
        origin, state = starting_point(config), State()
        tokenizer = run_tokenizer(config, origin)
        origin = fill_or_fall_back(state, origin, replaced(config, origin.state))
        place = origin.state["iteration"], origin.state["consumed_samples"]
        return bool(origin.passed_over), (*place, digest_of(state.tensors), tokenizer.fingerprint)

    others = tuple(path for path in (run / "iter_0000001").iterdir())
    whole = Path(tempfile.mkdtemp(dir=run.parent)) / "older"
    shutil.copytree(run, whole, ignore=shutil.ignore_patterns("iter_0000003", TRACKER))
    (_, older), name = read(whole), "checkpoint, with --strict" if strict else "checkpoint"
    return Subject(name, run, (*of_run(run), TRACKER), read, others, older)


def replaced(config, state: dict):
    """A resolved configuration: the one that was saved, with the directories of this one."""
    from megatron_yuyuan.config_toml import from_dict

    saved, checkpoint = from_dict(state["config"]), config.checkpoint
    return saved.replace(save=checkpoint.save, strict=checkpoint.strict)


def digest_of(tensors: dict) -> str:
    """sha256 over names and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


def of_model(folder: Path) -> tuple[bool, object]:
    """What evaluation, generation and conversion open."""
    from megatron_yuyuan.checkpoint.model import open_model

    opened = open_model(folder)
    weights = {name: opened.weights[name] for name in opened.weights}
    numbers = (opened.state["iteration"], opened.tokenizer.fingerprint, opened.template)
    return False, (digest_of(weights), opened.config, *numbers)


def model(run: Path) -> Subject:
    others = tuple((run / "iter_0000001").iterdir())
    return Subject("model that is used", run, of_run(run), of_model, others)


def export(run: Path, folder: Path) -> Subject:
    """A Hugging Face directory of several shards; swapped with the files of an export of the checkpoint
    before."""
    from megatron_yuyuan.checkpoint.hf import export_directory
    from megatron_yuyuan.checkpoint.model import open_model

    for iteration in (1, 3):
        export_directory(open_model(run, iteration), folder / str(iteration), shard_bytes=30_000)
    newest = folder / "3"
    files = tuple(sorted(path.name for path in newest.iterdir() if path.name != "README.md"))
    others = tuple((folder / "1").iterdir())
    return Subject("export", newest, files, of_model, others)


def table(found: dict[str, dict[Damage, str]]) -> str:
    """The table of docs/reliability.md: a row for each subject, and one for each kind of damage."""
    rows = {name: Counter(cases.values()) for name, cases in found.items()}
    lines = ["| | cases | " + " | ".join(VERDICTS) + " |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    whole = Counter(verdict for cases in found.values() for verdict in cases.values())
    for name, counted in (rows | {"**all**": whole}).items():
        cells = [counted.total(), *(counted[verdict] for verdict in VERDICTS)]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    portion = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = subjects(folder)
        found = {subject.name: matrix(subject, folder, portion) for subject in made}
    print(table(found))
    for name, cases in found.items():
        for damage, ended in cases.items():
            if ended == "silent":
                print(f"silent: {name}: {damage}")


if __name__ == "__main__":
    main()
