"""Rows S01 to S03: nothing in this repository runs what comes with data, tokenizers or checkpoints; S07: and
nothing repeats what is secret."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from commands import ROOT, run, train_flags
from hostile import Opens
from tiny_run import save_run

from megatron_yuyuan.checkpoint.hf import export_directory
from megatron_yuyuan.checkpoint.manifest import digests
from megatron_yuyuan.checkpoint.model import load_divided_model, load_model, open_model
from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.data.tokenizer import read_tokenizer
from megatron_yuyuan.errors import UnsafeError
from megatron_yuyuan.origin import starting_point
from megatron_yuyuan.watch.saved import find_checkpoint

ALLOWED = {
    (
        "megatron_yuyuan/checkpoint/megatron_legacy.py",
        "torch.load",
    ): "with --trust, in its own process",
    (
        "megatron_yuyuan/checkpoint/metadata.py",
        "pickle.Unpickler",
    ): "whose find_class refuses by name",
}
"""(file, what) of every place that may -> why."""
UNPICKLE = {"load", "loads", "Unpickler"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CODE = {"eval", "exec", "compile", "__import__"}
KEYWORDS = {("shell", True), ("verify", False), ("trust_remote_code", True), ("allow_pickle", True)}
SCRIPTS = ("megatron_yuyuan", "tools", "examples")


def dangers(code: str) -> list[tuple[int, str]]:
    """(line, what) of everything that opens a pickle, runs text, or trusts a stranger."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            pickled = (module in PICKLES and name in UNPICKLE | {"open"}) or module == "yaml"
            if pickled and name not in ("safe_load", "dumps"):
                found.append((node.lineno, f"{module}.{name}"))
        elif isinstance(node, ast.ImportFrom) and node.module in PICKLES | {"yaml"}:
            found += [
                (node.lineno, f"{node.module}.{a.name}") for a in node.names if a.name in UNPICKLE
            ]
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in dangers_of_call(node)]
    return found


def dangers_of_call(node: ast.Call) -> list[str]:
    """What one call does that is refused."""
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    found = [f"{name}={value}" for name, value in given.items() if (name, value) in KEYWORDS]
    if isinstance(node.func, ast.Name) and node.func.id in CODE:
        found.append(node.func.id)
    if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
        found.append("torch.load")
    return found


def test_nothing_opens_pickles_or_runs_text_but_where_it_is_allowed(repository):
    files = [file for folder in SCRIPTS for file in (repository / folder).rglob("*.py")]
    files += repository.glob("*.py")
    found = {
        (file.relative_to(repository).as_posix(), what)
        for file in files
        for _, what in dangers(file.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED.keys() and len(files) > 100


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("pickle.load(f)", "pickle.load"),
        ("from pickle import loads as read", "pickle.loads"),
        ("class A(pickle.Unpickler): pass", "pickle.Unpickler"),
        ("joblib.load(f)", "joblib.load"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("torch.load(f, weights_only=flag)", "torch.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("yaml.load(f)", "yaml.load"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("subprocess.run(a, shell=True)", "shell=True"),
        ("get(url, verify=False)", "verify=False"),
        ("AutoTokenizer.from_pretrained(d, trust_remote_code=True)", "trust_remote_code=True"),
    ],
)
def test_every_one_of_them_would_be_seen(code, what):
    assert [each for _, each in dangers(code)] == [what]


def test_what_is_harmless_is_not_seen():
    assert not dangers(
        "model.eval(); torch.load(f, weights_only=True); np.load(f); pickle.dumps(a)"
    )
    assert not dangers("re.compile(a); yaml.safe_load(f); subprocess.run(a, shell=False)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """run/ and hf/, the same model."""
    folder = tmp_path_factory.mktemp("hostile")
    save_run(folder / "run", ["Question:What is gout? answer: Gout is a disease."] * 4)
    export_directory(open_model(folder / "run"), folder / "hf")
    return folder


@pytest.fixture
def hostile(exported, tmp_path) -> Path:
    """A copy without checksums, as a stranger's, to be spoilt; and `opened` beside it where something was
    run."""
    ignored = shutil.ignore_patterns("checksums.json")
    return Path(shutil.copytree(exported, tmp_path / "folder", ignore=ignored))


WAYS_TO_A_RUN = {
    "resume": lambda run: starting_point(Config().replace(save=str(run), no_load_optim=True)),
    "finetune": lambda run: starting_point(Config().replace(load=str(run), finetune=True)),
    "convert": open_model,
    "evaluate": load_model,
    "generate_divided": lambda run: load_divided_model(run, None, ParallelConfig(device="cpu")),
}


def with_weights(way, run: Path):
    """Open a run, and have its weights read where they are left on the disk."""
    opened = way(run)
    if hasattr(opened, "load"):
        opened.load({"model.ln_f.bias": torch.empty(32)})


@pytest.mark.parametrize("way", WAYS_TO_A_RUN)
def test_a_checkpoint_that_would_run_code_runs_none(hostile, monkeypatch, way):
    """By a hand that knows the format: the manifest fits. (A divided model is opened without ranks here.)"""
    monkeypatch.setattr("megatron_yuyuan.checkpoint.model.mesh_module.start", lambda parallel: None)
    monkeypatch.setattr("megatron_yuyuan.checkpoint.model.build_stages", lambda config, mesh: [])
    path = find_checkpoint(hostile / "run")
    (path / ".metadata").write_bytes(pickle.dumps(Opens(hostile / "opened")))
    (path / "manifest.json").write_text(json.dumps(digests(path)))
    with pytest.raises(UnsafeError, match="makedirs"):
        state = way == "resume" and {"data_order": 1, "optimizer": True}
        if state:
            monkeypatch.setattr("megatron_yuyuan.origin.read_run", lambda path: state)
        with_weights(WAYS_TO_A_RUN[way], hostile / "run")
    assert not (hostile / "opened").exists()


WAYS_TO_HF = {
    "pretrain": lambda path: starting_point(Config().replace(load=f"hf:{path}")),
    "convert": open_model,
    "evaluate": load_model,
}


@pytest.mark.parametrize("way", WAYS_TO_HF)
def test_a_hugging_face_directory_that_would_run_code_runs_none(hostile, way):
    (hostile / "hf" / "model.safetensors").unlink()
    torch.save({"a": Opens(hostile / "opened")}, hostile / "hf" / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match="holds more than tensors"):
        WAYS_TO_HF[way](hostile / "hf")
    (hostile / "hf" / "code.py").write_text(f"import os; os.mkdir({str(hostile / 'opened')!r})")
    for file in ("tokenizer_config.json", "config.json"):
        document = json.loads((hostile / "hf" / file).read_text())
        document["auto_map"] = {"AutoTokenizer": ["code.Tokenizer", None]}
        (hostile / "hf" / file).write_text(json.dumps(document))
        with pytest.raises(UnsafeError, match="asks to run code"):
            WAYS_TO_HF[way](hostile / "hf")
    assert not (hostile / "opened").exists()


def test_a_tokenizer_is_never_opened_as_a_pickle(hostile):
    for name in ("tokenizer.json", "vocab.json"):
        (hostile / "run" / "tokenizer" / name).write_bytes(pickle.dumps(Opens(hostile / "opened")))
    with pytest.raises(UnsafeError, match="is a pickle"):
        read_tokenizer(hostile / "run" / "tokenizer")
    assert not (hostile / "opened").exists()


SECRETS = {
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567",
    "HF_TOKEN": "hf_ThisIsNobodysTokenAtAll",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


def test_secrets_of_the_environment_are_in_nothing_that_is_said_or_written(
    prepared, tmp_path, monkeypatch
):
    """By a run, one that ends with an error and its traceback, the doctor and the report."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    save = tmp_path / "run"
    command = train_flags(prepared, save, "--train-iters", 3, "--log-digests")
    ended = [
        run(*command, ranks=1),
        run(*command, "--debug", "--seed", 7, ranks=1, status=1),
        run("-m", "megatron_yuyuan.doctor", *command[1:], ranks=1, status=None),
        run(ROOT / "tools" / "report.py", save),
    ]
    assert "Traceback" in ended[1].stderr
    assert "save directory" in ended[2].stdout
    said = [text.encode() for one in ended for text in (one.stdout, one.stderr)]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for value in SECRETS.values():
        assert not any(value.encode() in text for text in (*said, *written))
