"""Bytes that are drawn to reach new lines (atheris, libFuzzer), for what reads a file. By hand, not in a run of
the tests:

    pip install atheris
    python tests/faults/coverage_fuzzing.py shard|pubmed|medquad|jats|jsonl|metadata|state|toml|flags \\
        [-max_total_time=SECONDS] [any of libFuzzer's options]

It begins with the sample files and stops at the first outcome that is neither what was read nor a documented
error; libFuzzer writes the bytes to ./crash-*. What it finds becomes an example in test_fuzzing.py.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import torch

sys.path[:0] = [str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["megatron_yuyuan"]):
    from faults.test_fuzzing import GOLDEN, XML, outcome, sealed, walk
    from tiny_run import save_run

    from megatron_yuyuan.checkpoint.dcp import load_tensors, read_run
    from megatron_yuyuan.checkpoint.model import open_model
    from megatron_yuyuan.cli import parse_config
    from megatron_yuyuan.config_toml import load_toml
    from megatron_yuyuan.data.jsonl import read_jsonl_texts
    from megatron_yuyuan.data.medquad import read_qa_jsonl


class Reader:
    """What is fuzzed: `read` of a folder into which the bytes were written as `file`."""

    def __init__(self, folder: Path, file: str, seed: bytes, read: Callable[[], object]):
        self.path, self.seed, self.read = folder / file, seed, read

    def __call__(self, content: bytes) -> None:
        self.path.write_bytes(content)
        outcome(self.read)


def reader(name: str, folder: Path) -> Reader:
    """The reader of a kind of file, its other files in place."""
    if name == "shard":
        for end in (".idx", ".bin"):  # without the .meta.json, whose sha256 would hide all else
            shutil.copy(GOLDEN / f"text_text_document{end}", folder / f"shard{end}")
        seed = (folder / "shard.idx").read_bytes()
        return Reader(folder, "shard.idx", seed, lambda: walk(folder / "shard"))
    if name in XML:
        read, seed = XML[name]
        return Reader(folder, "in.xml", seed, lambda: list(read(folder / "in.xml")))
    if name == "jsonl":
        path, seed = (
            folder / "in.jsonl",
            b'{"text": "Gout.", "question": "What?", "answer": "\\u00e9"}\n',
        )

        def read_both() -> None:
            outcome(lambda: list(read_qa_jsonl(path)))
            list(read_jsonl_texts(path, "text", notice=lambda *_: None))

        return Reader(folder, "in.jsonl", seed, read_both)
    if name in ("metadata", "state"):
        save_run(folder / "run", ["Gout is a disease."] * 4, hidden_size=8, num_layers=1)
        checkpoint = folder / "run" / "iter_0000003"
        file = {"metadata": ".metadata", "state": "state.json"}[name]

        def open_checkpoint() -> None:
            outcome(lambda: read_run(sealed(checkpoint)))
            outcome(lambda: load_tensors(checkpoint, {"model.ln_f.bias": torch.empty(8)}))
            dict(open_model(folder / "run").weights)

        return Reader(checkpoint, file, (checkpoint / file).read_bytes(), open_checkpoint)
    if name == "toml":
        seed = (Path(__file__).parents[2] / "examples/configs/tiny.toml").read_bytes()
        return Reader(folder, "in.toml", seed, lambda: load_toml(folder / "in.toml"))
    if name == "flags":
        words = folder / "words"

        def parse() -> None:
            given = words.read_bytes().decode("utf-8", "surrogateescape").split("\n")
            parse_config("", [w for w in given if not w.startswith(("-h", "--h", "--print"))])

        return Reader(folder, "words", b"--hidden-size\n12\n--lr=1e-4\n--bf16", parse)
    raise SystemExit(__doc__)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fuzzing_") as scratch:
        folder = Path(scratch)
        one_input = reader(sys.argv[1] if len(sys.argv) > 1 else "", folder)
        (folder / "corpus").mkdir()
        (folder / "corpus" / "seed").write_bytes(one_input.seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], str(folder / "corpus")], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
