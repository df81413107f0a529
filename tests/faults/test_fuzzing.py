"""Random bytes, and random changes to good ones, for everything that reads a file: the documented errors,
or what could be read, and never anything else.

    YUYUAN_FUZZ=100000 python -m pytest tests/faults/test_fuzzing.py      so many examples each, new ones

Without it, few, and always the same. What was found stands as an example beside the test.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_run import save_run

from megatron_yuyuan.checkpoint.dcp import load_tensors, read_run
from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.manifest import CHECKSUMS, digests
from megatron_yuyuan.checkpoint.model import open_model
from megatron_yuyuan.checkpoint.newest import newest_whole
from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.config import config_fields
from megatron_yuyuan.config_toml import load_toml, to_toml
from megatron_yuyuan.data.indexed_dataset import IndexedDataset
from megatron_yuyuan.data.jats import read_jats
from megatron_yuyuan.data.jsonl import read_json_lines, read_jsonl_texts
from megatron_yuyuan.data.medquad import read_medquad, read_qa_jsonl
from megatron_yuyuan.data.pubmed import read_pubmed
from megatron_yuyuan.data.tokenizer import read_tokenizer
from megatron_yuyuan.errors import YuyuanError
from megatron_yuyuan.validation import validate

EXAMPLES = int(os.environ.get("YUYUAN_FUZZ", "0"))


def budget(examples: int):
    """So many examples, the same every time; or as many new ones as are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=4
)
"""(place as a share, bytes taken out, bytes put in)."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)


def changed(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, taken, put in edits:
        at = int(place * len(content))
        content = content[:at] + put + content[at + taken :]
    return content


def outcome(read) -> str:
    """ "read", or the class of the documented error. Anything else fails the test."""
    try:
        read()
    except YuyuanError as error:
        assert str(error).count("\n") % 3 == 2 and error.status == 2  # three lines for each fault
        return error.kind
    return "read"


GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLES = Path(__file__).parents[2] / "examples" / "sample_data"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


def walk(prefix: Path) -> None:
    """Read everything of a shard."""
    shard = IndexedDataset(prefix)
    tokens = [sequence for n in range(shard.num_documents) for sequence in shard.document(n)]
    assert sum(map(len, tokens)) == shard.num_tokens
    shard.check_vocabulary("", 2**40)


@budget(150)
@given(edits=EDITS, suffix=st.sampled_from([".idx", ".bin", ".meta.json"]), described=st.booleans())
def test_shards(scratch, edits, suffix, described):
    for end in (".idx", ".bin", ".meta.json"):
        shutil.copy(GOLDEN / f"text_text_document{end}", scratch / f"shard{end}")
    path = scratch / f"shard{suffix}"
    path.write_bytes(changed(path.read_bytes(), edits))
    if not described:
        (scratch / "shard.meta.json").unlink()
    outcome(lambda: walk(scratch / "shard"))


@budget(100)
@given(document=JSON, name=st.sampled_from(["", "format", "bin", "idx", "tokens", "checksum"]))
def test_what_describes_a_shard(scratch, document, name):
    for end in (".idx", ".bin"):
        shutil.copy(GOLDEN / f"text_text_document{end}", scratch / f"described{end}")
    meta = json.loads((GOLDEN / "text_text_document.meta.json").read_text())
    meta = meta | {name: document} if name else document
    (scratch / "described.meta.json").write_text(json.dumps(meta))
    outcome(lambda: walk(scratch / "described"))


XML = {
    "pubmed": (read_pubmed, (SAMPLES / "pubmed_sample.xml").read_bytes()[:6000]),
    "medquad": (read_medquad, (SAMPLES / "medquad_train.xml").read_bytes()[:4000]),
    "jats": (
        read_jats,
        b"<article><front/><body><p>Gout <b>is</b> a &#233; disease.</p></body></article>",
    ),
}


@budget(150)
@given(edits=EDITS | st.just([]), kind=st.sampled_from(sorted(XML)), cut=st.integers(0, 300))
def test_xml(scratch, edits, kind, cut):
    read, content = XML[kind]
    path = scratch / "in.xml"
    path.write_bytes(changed(content[: len(content) - cut], edits))
    outcome(lambda: list(read(path)))


TOKENS = (b"<", b">", b"&", b"<!ENTITY a 'b'>", b"<!DOCTYPE a [", b"]>", b"<PubmedArticle>", b"<PMID>",
          b"</PubmedArticle>", b"<![CDATA[", b"]]>", b"<?xml version='1.0' encoding='utf-7'?>", b"\0",
          b"<!--", b"\xff\xfe", b"<a:b>", b"&#0;", b"&#x110000;", b"<Document>", b"text")  # fmt: skip


@budget(150)
@given(parts=st.lists(st.sampled_from(TOKENS), max_size=12), kind=st.sampled_from(sorted(XML)))
def test_pieces_of_xml(scratch, parts, kind):
    path = scratch / "pieces.xml"
    path.write_bytes(b"".join(parts))
    outcome(lambda: list(XML[kind][0](path)))


LINES = {
    "texts": lambda path: list(read_jsonl_texts(path, "text", notice=lambda *_: None)),
    "lines": lambda path: list(read_json_lines(path)),
    "questions": lambda path: list(read_qa_jsonl(path)),
}


@budget(200)
@given(
    lines=st.lists(JSON.map(json.dumps) | st.text(max_size=20), max_size=4),
    edits=EDITS | st.just([]),
    kind=st.sampled_from(sorted(LINES)),
)
@example(lines=['{"text": ' + "[" * 100_000], edits=[], kind="texts")
@example(lines=['{"text": "\\ud800"}'], edits=[], kind="texts")
@example(lines=['{"text": 1' + "0" * 5000 + "}"], edits=[], kind="lines")
def test_json_lines(scratch, lines, edits, kind):
    path = scratch / "in.jsonl"
    path.write_bytes(changed("\n".join(lines).encode("utf-8", "surrogatepass"), edits))
    outcome(lambda: LINES[kind](path))


@pytest.fixture(scope="module")
def run(scratch) -> Path:
    """A run with one checkpoint, and an export of it without checksums, in `scratch`."""
    save_run(scratch / "run", ["Gout is a disease."] * 4, hidden_size=8, num_layers=1)
    export_directory(open_model(scratch / "run"), scratch / "export")
    (scratch / "export" / CHECKSUMS).unlink()
    return scratch / "run"


def restored(run: Path, name: str) -> Path:
    """A fresh copy of the run or the export."""
    shutil.rmtree(run.parent / "copy", ignore_errors=True)
    return Path(shutil.copytree(run.parent / name, run.parent / "copy"))


def sealed(checkpoint: Path) -> Path:
    """With a manifest that fits, as by a hand that knows the format."""
    (checkpoint / "manifest.json").write_text(json.dumps(digests(checkpoint)))
    return checkpoint


@budget(40)
@given(edits=EDITS)
def test_the_metadata_of_tensors(run, edits):
    path = restored(run, "run") / "iter_0000003"
    file = path / ".metadata"
    file.write_bytes(changed(file.read_bytes(), edits))
    outcome(lambda: load_tensors(sealed(path), {"model.ln_f.bias": torch.empty(8)}))
    outcome(lambda: dict(open_model(run.parent / "copy").weights))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensor: vars(tensor).clear(),
        lambda tensor: setattr(tensor, "size", "8"),
        lambda tensor: setattr(tensor, "size", torch.Size([-8])),
        lambda tensor: setattr(tensor.properties, "dtype", "float32"),
        lambda tensor: setattr(tensor, "properties", None),
    ],
    ids=["nothing", "size of text", "negative size", "dtype of text", "no properties"],
)
def test_a_tensor_that_is_described_otherwise(run, spoil):
    """The first was found by coverage_fuzzing.py."""
    path = restored(run, "run") / "iter_0000003"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    spoil(metadata.state_dict_metadata["model.ln_f.bias"])
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    outcome(lambda: load_tensors(sealed(path), {"model.ln_f.bias": torch.empty(8)}))
    assert outcome(lambda: dict(open_model(run.parent / "copy").weights)) == "data"


@budget(60)
@given(
    document=JSON,
    place=st.sampled_from(["", "iteration", "config", "tokenizer", "template", "model"]),
)
def test_the_state_of_a_run(run, document, place):
    path = restored(run, "run") / "iter_0000003"
    state = json.loads((path / "state.json").read_text())
    if place == "model":
        state["config"]["model"] = document
    else:
        state = state | {place: document} if place else document
    (path / "state.json").write_text(json.dumps(state))
    outcome(lambda: read_run(sealed(path)))
    outcome(lambda: open_model(run.parent / "copy"))


@pytest.mark.parametrize("changes", [{}, {"lora_target_modules": ["mlp.c"]}])
def test_factors_that_are_not_there(run, changes):
    """Found by coverage_fuzzing.py."""
    path = restored(run, "run") / "iter_0000003"
    state = json.loads((path / "state.json").read_text())
    state["config"]["model"] |= {"lora_rank": 2} | changes
    (path / "state.json").write_text(json.dumps(state))
    sealed(path)
    assert outcome(lambda: dict(open_model(run.parent / "copy").weights)) == "data"


@budget(100)
@given(
    content=st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode()),
    tracker=st.booleans(),
)
@example(content=b"[" * 100_000, tracker=False)
@example(content=b"9" * 5000, tracker=True)
@example(content="٣".encode(), tracker=True)
def test_manifest_and_tracker(run, content, tracker):
    folder = restored(run, "run")
    name = "latest_checkpointed_iteration.txt" if tracker else "iter_0000003/manifest.json"
    (folder / name).write_bytes(content)
    found = outcome(lambda: newest_whole(folder, strict=False))
    assert (found == "read") or not tracker  # a whole checkpoint is found in spite of its tracker


@budget(60)
@given(
    edits=EDITS,
    name=st.sampled_from(["model.safetensors", "config.json", "tokenizer.json", "yuyuan.json"]),
    head=st.booleans(),
)
def test_hugging_face_directories(run, edits, name, head):
    folder = restored(run, "export")
    content = (folder / name).read_bytes()
    part = content[:600] if head else content  # where the header of safetensors lies
    (folder / name).write_bytes(changed(part, edits) + content[len(part) :])
    outcome(lambda: dict(open_model(folder).weights))


@budget(60)
@given(
    document=JSON,
    name=st.sampled_from(["config.json", "tokenizer.json", "yuyuan.json", "vocab.json"]),
)
def test_documents_of_hugging_face_directories(run, document, name):
    folder = restored(run, "export")
    (folder / name).write_text(json.dumps(document))
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    outcome(lambda: dict(open_model(folder).weights))


@budget(60)
@example(document=[""], key="normalizer")  # the library panics
@given(document=JSON, key=st.sampled_from(["model", "added_tokens", "pre_tokenizer", "normalizer"]))
def test_tokenizers(run, document, key):
    folder = restored(run, "export")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {key: document}))
    outcome(lambda: read_tokenizer(folder).encode("What is gout?"))


NAMES = sorted(config_fields())
WORDS = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "1e999",
        "nan",
        "true",
        '"a"',
        "[]",
        "[1]",
        "{}",
        "2021-01-01",
        "0x1",
        "'",
        '"""',
        "é",
    ]
)


@budget(200)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(NAMES), WORDS | st.text(max_size=9)), max_size=5),
    table=st.sampled_from(["model", "data", "training", "x", ""]) | st.text(max_size=5),
    edits=EDITS | st.just([]),
)
@example(pairs=[("seed", "0x" + "f" * 5000)], table="training", edits=[])
@example(pairs=[("seed", "[" * 5000)], table="training", edits=[])
def test_configuration_files(scratch, pairs, table, edits):
    lines = [f"[{table}]", *(f"{name} = {word}" for name, word in pairs)]
    path = scratch / "in.toml"
    path.write_bytes(changed("\n".join(lines).encode("utf-8", "replace"), edits))
    outcome(lambda: load_toml(path))


@budget(200)
@given(
    words=st.lists(
        st.sampled_from(["--" + name.replace("_", "-") for name in NAMES])
        | WORDS
        | st.text(max_size=9),
        max_size=8,
    )
)
@example(words=["--profile"])
@example(words=["--hidden-size", "9" * 400])
@example(words=["--lr=" + "9" * 400])
@example(words=["--save", "\udcff"])
def test_flags(scratch, words):
    """A configuration that is accepted is one that can be saved and read again."""

    def read() -> None:
        config = parse_config("", [word for word in words if not word.startswith(("-h", "--help"))])
        (scratch / "out.toml").write_text(to_toml(config), encoding="utf-8")
        values = load_toml(scratch / "out.toml")
        assert config.replace(**values) == config
        model = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}
        missing = {name: value for name, value in model.items() if not getattr(config.model, name)}
        validate(config.replace(**missing), 1)

    try:
        outcome(read)
    except AssertionError:
        raise
    except SystemExit as end:  # --print-config
        assert end.code == 0
