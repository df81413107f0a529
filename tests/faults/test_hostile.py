"""Hostile files at every command that opens them: status 2, class `unsafe`, and nothing of them was run.

Here whole commands are run. What each reader refuses stands beside it: pickles in tests/test_safety.py and
tests/checkpoint, entities in tests/data/test_pubmed.py, test_medquad.py and test_jats.py, archives in
test_medquad_archive.py, downloads in test_download.py, shell scripts in tests/tools/test_translate_args.py.
"""

import gzip
import hashlib
import io
import json
import pickle
import runpy
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import tokenizer_flags
from hostile import Opens
from loopback_site import serve
from tiny_run import save_run

from megatron_yuyuan.checkpoint.dcp import load_tensors
from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.manifest import digests
from megatron_yuyuan.checkpoint.metadata import SafeReader
from megatron_yuyuan.checkpoint.model import open_model
from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.data import medquad_archive
from megatron_yuyuan.errors import DataError, UnsafeError, YuyuanError
from megatron_yuyuan.origin import starting_point

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def main() -> Callable:
    """main(tool) is the tool's own."""
    return lambda tool: runpy.run_path(str(TOOLS / f"{tool}.py"))["main"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """run/, and hf/, an export of it."""
    folder = tmp_path_factory.mktemp("models")
    save_run(folder / "run", ["Question:What is gout? answer: A disease."] * 4, hidden_size=8)
    export_directory(open_model(folder / "run"), folder / "hf")
    shutil.copytree(folder / "run" / "tokenizer", folder / "tokenizer")
    return folder


def run_with_a_pickle(model: Path, opened: Path) -> Path:
    path = model / "run" / "iter_0000003"
    (path / ".metadata").write_bytes(pickle.dumps(Opens(opened)))
    (path / "manifest.json").write_text(json.dumps(digests(path)))
    return model / "run"


def weights_with_a_pickle(model: Path, opened: Path) -> Path:
    for name in ("model.safetensors", "checksums.json"):
        (model / "hf" / name).unlink()
    torch.save({"a": Opens(opened)}, model / "hf" / "pytorch_model.bin")
    return model / "hf"


def model_with_code(model: Path, opened: Path) -> Path:
    (model / "hf" / "checksums.json").unlink()
    (model / "hf" / "code.py").write_text(f"import os\nos.mkdir({str(opened)!r})\n")
    config = json.loads((model / "hf" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "code.Model"}
    (model / "hf" / "config.json").write_text(json.dumps(config))
    return model / "hf"


HOSTILE_MODELS = (run_with_a_pickle, weights_with_a_pickle, model_with_code)
SHARD = Path(__file__).parents[1] / "golden" / "text_text_document"
QUESTION = '{"question": "What is gout?", "answer": "A disease."}\n'
COMMANDS = {
    "convert_checkpoint": lambda load, out: ["--to", "hf", "--load", load, "--save", out / "new"],
    "evaluate_perplexity": lambda load, out: ["--load", load, "--data-path", SHARD],
    "evaluate_qa": lambda load, out: ["--load", load, "--data", out / "qa.jsonl"],
    "generate_text": lambda load, out: ["--load", load, "--prompt", "Gout"],
    "judge_facts": lambda load, out: ["--load", load, "--question", "Is gout a disease?"],
}


@pytest.mark.parametrize("tool", COMMANDS)
@pytest.mark.parametrize("make", HOSTILE_MODELS)
def test_no_tool_runs_what_a_model_brings(main, models, tmp_path, make, tool):
    load = make(Path(shutil.copytree(models, tmp_path / "models")), tmp_path / "opened")
    (tmp_path / "qa.jsonl").write_text(QUESTION)
    with pytest.raises(UnsafeError) as refused:
        main(tool)([str(word) for word in COMMANDS[tool](load, tmp_path)])
    assert (refused.value.status, refused.value.kind) == (2, "unsafe")
    assert not (tmp_path / "opened").exists() and not (tmp_path / "new").exists()


def megatron_metadata(folder: Path, opened: Path) -> None:
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (folder / ".metadata").write_bytes(pickle.dumps(Opens(opened)))


def megatron_file(folder: Path, opened: Path) -> None:
    torch.save({"decoder.weight": Opens(opened)}, folder / "model.pt")


def megatron_legacy(folder: Path, opened: Path) -> None:
    (folder / "release" / "mp_rank_00").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    torch.save({"args": Opens(opened)}, folder / "release" / "mp_rank_00" / "model_optim_rng.pt")


@pytest.mark.parametrize("way", ["convert", "pretrain"])
@pytest.mark.parametrize("make", [megatron_metadata, megatron_file, megatron_legacy])
def test_nothing_of_megatrons_runs_what_it_brings(main, models, tmp_path, make, way):
    (tmp_path / "theirs").mkdir()
    make(tmp_path / "theirs", tmp_path / "opened")
    load = tmp_path / "theirs" / ("model.pt" if make is megatron_file else "")
    tokenizer = tokenizer_flags(models / "tokenizer")
    with pytest.raises(UnsafeError):
        if way == "convert":
            flags = ["--load", str(load), "--save", str(tmp_path / "new"), *tokenizer]
            main("convert_checkpoint")(["--from", "megatron", "--num-attention-heads", "4", *flags])
        else:
            flags = ["--load", f"megatron:{load}", "--num-attention-heads", "4", *tokenizer]
            starting_point(parse_config("", flags))
    assert not (tmp_path / "opened").exists() and not (tmp_path / "new").exists()


class Raw:
    """A pickle written by hand: `module name` called with the folder `opened`."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def content(self, opened: Path, protocol: int) -> bytes:
        argument = b"(V" + str(opened).encode() + b"\ntR."
        if protocol < 4:
            return f"c{self.module}\n{self.name}\n".encode() + argument
        named = (b"\x8c" + bytes([len(w)]) + w.encode() for w in (self.module, self.name))
        return b"\x80\x04" + b"".join(named) + b"\x93" + argument


CALLS = [
    ("os", "mkdir"),
    ("posix", "mkdir"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch", "_dtype.__class__"),
    ("torch", "Size.__class__"),
    ("torch.serialization", "load"),
    ("torch.serialization", "os.mkdir"),
    ("pathlib", "os.mkdir"),
    ("pathlib", "PosixPath.mkdir"),
    ("torch.distributed.checkpoint.metadata", "os.mkdir"),
    ("torch.distributed.checkpoint.filesystem", "os.mkdir"),
    ("torch.distributed.checkpoint.planner", "io.open"),
]


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(("module", "name"), CALLS, ids=".".join)
def test_the_unpickler_finds_nothing_but_what_describes_tensors(tmp_path, module, name, protocol):
    """Also not by a path of attributes through a module that it knows."""
    (tmp_path / ".metadata").write_bytes(Raw(module, name).content(tmp_path / "opened", protocol))
    with pytest.raises(UnsafeError, match=r"metadata names"):
        SafeReader(tmp_path)
    assert not (tmp_path / "opened").exists()


def test_but_by_itself_such_a_pickle_works(tmp_path):
    pickle.loads(Raw("os", "mkdir").content(tmp_path / "opened", 4))
    assert (tmp_path / "opened").exists()


@pytest.mark.parametrize("file", ["../secret.distcp", "/etc/hostname", "sub/../../x"])
def test_tensors_lie_in_the_checkpoint_and_nowhere_else(models, tmp_path, file):
    path = Path(shutil.copytree(models / "run", tmp_path / "run")) / "iter_0000003"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = file
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    (path / "manifest.json").write_text(json.dumps(digests(path)))
    with pytest.raises(UnsafeError, match="lies outside the checkpoint"):
        load_tensors(path, {})


BOMBS = {
    "entities": '<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><PubmedArticleSet>&b;</PubmedArticleSet>',
    "a file": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><PubmedArticleSet>&b;</PubmedArticleSet>',
    "a network": '<!DOCTYPE a [<!ENTITY % b SYSTEM "http://127.0.0.1:9/x">%b;]><PubmedArticleSet/>',
}


@pytest.mark.parametrize("tool", ["preprocess_data", "train_tokenizer", "compare_tokenizers"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_tool_expands_entities(main, models, tmp_path, tool, bomb):
    (tmp_path / "in.xml").write_text('<?xml version="1.0"?>' + BOMBS[bomb])
    tokenizer = tokenizer_flags(models / "tokenizer")
    flags = {
        "preprocess_data": ["--output-prefix", tmp_path / "p", "--workers", 1, *tokenizer],
        "train_tokenizer": ["--vocab-size", 300, "--output-dir", tmp_path / "t"],
        "compare_tokenizers": ["--tokenizer", f"a={models / 'tokenizer'}"],
    }[tool]
    words = ["--input", tmp_path / "in.xml", "--input-format", "pubmed-xml", *flags]
    with pytest.raises(UnsafeError, match="entities"):
        main(tool)([str(word) for word in words])
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".json")] == []


CODE = "__import__('os').mkdir({!r})"


@pytest.mark.parametrize("kind", ["jsonl", "qa-jsonl"])
def test_lines_that_are_code_are_not_run(main, models, tmp_path, kind):
    (tmp_path / "in.jsonl").write_text(CODE.format(str(tmp_path / "opened")) + "\n")
    words = ["--input", tmp_path / "in.jsonl", "--input-format", kind, "--workers", 1]
    words += ["--output-prefix", tmp_path / "p", *tokenizer_flags(models / "tokenizer")]
    with pytest.raises(DataError):
        main("preprocess_data")([str(word) for word in words])
    assert not (tmp_path / "opened").exists()


def saved_by_torch(opens: Opens, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(opens, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


PICKLES = {f"protocol {n}": lambda opens, n=n: pickle.dumps(opens, n) for n in range(6)} | {
    "torch": lambda opens: saved_by_torch(opens, zipped=True),
    "old torch": lambda opens: saved_by_torch(opens, zipped=False),
}
ONE_PICKLE = "protocol 4"


def assert_unsafe(error: YuyuanError, opened: Path) -> None:
    assert (error.status, error.kind) == (2, "unsafe") and "is a pickle" in str(error)
    assert not opened.exists()


@pytest.mark.parametrize(
    ("tool", "kind"),
    [("compare_tokenizers", kind) for kind in PICKLES] + [("preprocess_data", ONE_PICKLE)],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"])
def test_no_tokenizer_is_opened_as_a_pickle(main, tmp_path, tool, name, kind):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.json").write_text("{}")
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / name).write_bytes(PICKLES[kind](Opens(tmp_path / "opened")))
    (tmp_path / "in.jsonl").write_text('{"text": "Gout."}\n')
    flags = {
        "preprocess_data": ["--output-prefix", tmp_path / "p", *tokenizer_flags(folder)],
        "compare_tokenizers": ["--tokenizer", f"a={folder}"],
    }[tool]
    with pytest.raises(YuyuanError) as refused:
        main(tool)([str(w) for w in ("--input", tmp_path / "in.jsonl", *flags)])
    assert_unsafe(refused.value, tmp_path / "opened")


@pytest.mark.parametrize("hostile", ["--vocab-file", "--merge-file", "--tokenizer-model"])
def test_nor_one_whose_files_are_named_one_by_one(main, tmp_path, hostile):
    (tmp_path / "whole").write_text("{}")
    (tmp_path / "bad").write_bytes(pickle.dumps(Opens(tmp_path / "opened")))
    named = dict.fromkeys(("--vocab-file", "--merge-file"), tmp_path / "whole")
    flags = [word for flag in (named | {hostile: tmp_path / "bad"}).items() for word in flag]
    if hostile == "--tokenizer-model":
        flags += ["--tokenizer-type", "SentencePieceTokenizer"]
    with pytest.raises(YuyuanError) as refused:
        main("check_data")([str(SHARD), *map(str, flags)])
    assert_unsafe(refused.value, tmp_path / "opened")


@pytest.mark.parametrize("dataset", ["pubmed-baseline", "medquad"])
def test_a_download_that_is_not_what_was_published_is_refused(main, tmp_path, dataset):
    name, out = "pubmed26n0001.xml.gz", tmp_path / "out"
    with serve() as site:
        site.files["a/"] = name.encode()
        site.files[f"a/{name}"] = gzip.compress(b"something else")
        site.files[f"a/{name}.md5"] = f"MD5({name})= {hashlib.md5(b'it').hexdigest()}\n".encode()
        site.files[f"a/{medquad_archive.COMMIT}.tar.gz"] = an_archive("MedQuAD/x.xml", b"<x/>")
        with pytest.raises(UnsafeError, match=r"\.md5 file says|git tree") as refused:
            main("download_data")([dataset, "--output-dir", str(out), "--base-url", site.url + "a"])
    assert (refused.value.status, refused.value.kind) == (2, "unsafe")
    assert [path.name for path in out.glob("*") if path.suffix != ".md5"] == []


def an_archive(name: str, content: bytes) -> bytes:
    """A .tar.gz of one file."""
    stream, member = io.BytesIO(), tarfile.TarInfo(name)
    member.size = len(content)
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_a_name_cannot_write_on_the_terminal(main, tmp_path, capsys):
    """Escape sequences in a file's name are shown, not obeyed."""
    with pytest.raises(YuyuanError) as refused:
        main("check_data")([str(tmp_path / "a\x1b]0;owned\x07\x1b[2Jb")])
    assert "\x1b" not in str(refused.value) and r"\x1b" in str(refused.value)
