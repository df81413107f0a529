"""Every command works for a user who is not root, whose home cannot be written to, without a network, from
another directory, with spaces and letters of other alphabets in every path; a full disk is said to be full."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import ROOT, SAMPLE_DATA, run, tokenizer_flags, train_flags

CONFINED = ROOT / "tests" / "confined.py"
TOOLS = ROOT / "tools"
NAME = "données à lire 医学 Ω"


@pytest.fixture(scope="module")
def place():
    """A folder that everybody can write to, with `home`, which nobody can."""
    if sys.platform != "linux":
        pytest.skip("needs Linux's namespaces")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / NAME
        found.mkdir()
        (found / "home").mkdir(mode=0o555)
        probe = run(CONFINED, found / "home", "", "-m", "this", status=None)
        if "unshare" in probe.stderr:
            pytest.skip("this system allows no user namespaces (unshare)")
        yield found


@pytest.fixture(scope="module")
def confined(place):
    """confined(command, ...) runs a command from / in that hard place; it must leave its home alone."""

    def start(
        *command: object, status: int = 0, full: Path | str = ""
    ) -> subprocess.CompletedProcess:
        ended = run(CONFINED, place / "home", full, *command, status=status, cwd=Path("/"))
        assert "Traceback" not in ended.stderr, ended.stderr
        assert not list((place / "home").iterdir())
        return ended

    return start


@pytest.fixture(scope="module")
def trained(place, confined) -> Path:
    """tokenizer, shards and a run, made there by the commands themselves."""
    flags = tokenizer_flags(place / "tokenizer")
    for sample in ("pubmed_sample.xml", "medquad_train.xml"):
        shutil.copy(SAMPLE_DATA / sample, place / f"é {sample}")
    texts, questions = place / "é pubmed_sample.xml", place / "é medquad_train.xml"
    confined(TOOLS / "train_tokenizer.py", "--input", texts, "--vocab-size", 300, "--output-dir",
             place / "tokenizer")  # fmt: skip
    confined(TOOLS / "preprocess_data.py", "--input", texts, "--output-prefix", place / "text",
             "--append-eod", *flags)  # fmt: skip
    confined(TOOLS / "preprocess_data.py", "--input", questions, "--output-prefix", place / "qa",
             "--split", "80,0,20", *flags)  # fmt: skip
    confined(
        *train_flags(place, place / "run", "--train-iters", 2, "--max-position-embeddings", 64)
    )
    return place / "run"


def test_training_works_there(place, trained):
    assert json.loads((trained / "exit.json").read_text())["class"] == "done"
    assert (trained / "iter_0000002").is_dir()


def test_it_is_a_hard_place(place, confined):
    """Not root, nothing can be written at home, and no host is there."""
    script = place / "look.py"
    script.write_text(
        "import os, socket\nprint(os.geteuid(), os.access(os.environ['HOME'], os.W_OK))\n"
        "socket.create_connection(('192.0.2.1', 9), timeout=5)\n"
    )
    ended = run(CONFINED, place / "home", "", script, status=1)
    assert ended.stdout == "65534 False\n"
    assert "Network is unreachable" in ended.stderr


COMMANDS = {
    "check_data": ("{tools}/check_data.py", "{place}/text_text_document"),
    "generate_text": ("{tools}/generate_text.py", "--load", "{run}", "--prompt", "Ü 医", "--max-new-tokens", "4"),
    "convert_checkpoint": ("{tools}/convert_checkpoint.py", "--to", "hf", "--load", "{run}", "--save", "{place}/hf"),
    "finetune_qa": ("{root}/finetune_qa.py", "--load", "{run}", "--save", "{place}/qa run", "--device", "cpu",
                    "--train-data-path", "{place}/qa_train_qa_document", "--global-batch-size", "4",
                    "--train-iters", "2", "--seq-length", "64"),
    "evaluate_perplexity": ("{tools}/evaluate_perplexity.py", "--load", "{run}", "--data-path",
                            "{place}/text_text_document"),
    "evaluate_qa": ("{tools}/evaluate_qa.py", "--load", "{run}", "--data", "{place}/qa_test.jsonl", "--limit", "2",
                    "--greedy-only", "--max-new-tokens", "2", "--output", "{place}/answers.jsonl"),
    "judge_facts": ("{tools}/judge_facts.py", "--load", "{run}", "--question", "Is gout rare?", "--html",
                    "{place}/gout.html"),
    "compare_tokenizers": ("{tools}/compare_tokenizers.py", "--input", "{place}/é pubmed_sample.xml",
                           "--tokenizer", "our own={place}/tokenizer", "--output", "{place}/t.json"),
    "plan_parallelism": ("{tools}/plan_parallelism.py", "--config", "{root}/examples/configs/gpt2_124m.toml", "--gpu",
                         "a100-80g", "--gpus", "2", "--global-batch-size", "8"),
    "report": ("{tools}/report.py", "{run}"),
    "plot_metrics": ("{tools}/plot_metrics.py", "--run", "ours={run}", "--output", "{place}/loss.png"),
    "translate_args": ("{tools}/translate_args.py", "--", "torchrun", "pretrain_gpt.py", "--num-layers", "2"),
    "doctor": ("-m", "megatron_yuyuan.doctor"),
}  # fmt: skip
"""Each command there is, but those of `trained` and the one that downloads."""
SHORT = ("check_data", "generate_text", "convert_checkpoint", "finetune_qa")
STATUS = {"translate_args": None, "doctor": None}
"""Those that may have something to say against the machine or the command."""


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS]
)
def test_a_command_works_there(place, trained, confined, name):
    if name == "plot_metrics":
        pytest.importorskip("matplotlib")
    known = {"tools": TOOLS, "place": place, "run": trained, "root": ROOT}
    ended = confined(*(word.format(**known) for word in COMMANDS[name]), status=STATUS.get(name, 0))
    assert ended.stdout


def test_no_tool_is_left_out():
    scripts = {path.stem for path in [*TOOLS.glob("*.py"), *ROOT.glob("*.py")]} - {"setup"}
    of_trained = {"train_tokenizer", "preprocess_data", "pretrain_gpt", "download_data"}
    of_trained |= {"write_cli_reference"}  # which writes a page of this repository
    assert scripts - set(COMMANDS) == of_trained


@pytest.mark.slow  # it tries again, and waits in between
def test_without_a_network_a_download_says_so(place, confined):
    ended = confined(
        *(TOOLS / "download_data.py", "medquad", "--output-dir", place / "raw"), status=2
    )
    assert ended.stderr.startswith("error: ")
    assert "\n  why: " in ended.stderr and "\n  try: " in ended.stderr


FILLERS = (
    *("pretrain_gpt", "finetune_qa", "train_tokenizer", "preprocess_data", "convert_checkpoint"),
    "plot_metrics",
)
"""Commands whose outputs are larger than the disk of the hard place."""


@pytest.mark.parametrize("name", FILLERS)
def test_a_full_disk_is_said_to_be_full(place, trained, confined, name):
    if name == "plot_metrics":
        pytest.importorskip("matplotlib")
    full, flags = place / "full", tokenizer_flags(place / "tokenizer")
    full.mkdir(exist_ok=True)
    texts = place / "é pubmed_sample.xml"
    commands = {
        "pretrain_gpt": train_flags(place, full / "run", "--train-iters", 2),
        "train_tokenizer": (TOOLS / "train_tokenizer.py", "--input", texts, "--vocab-size", 3000,
                            "--output-dir", full / "tokenizer"),
        "preprocess_data": (TOOLS / "preprocess_data.py", "--input", texts, "--output-prefix",
                            full / "text", "--append-eod", *flags),
        "convert_checkpoint": (TOOLS / "convert_checkpoint.py", "--to", "hf", "--load", trained,
                               "--save", full / "hf"),
        "plot_metrics": (TOOLS / "plot_metrics.py", "--run", f"a={trained}", "--output",
                         full / "loss.png"),
        "finetune_qa": (ROOT / "finetune_qa.py", "--load", trained, "--save", full / "qa",
                        "--device", "cpu", "--train-data-path", place / "qa_train_qa_document",
                        "--global-batch-size", 4, "--train-iters", 2, "--seq-length", 64),
    }  # fmt: skip
    ended = confined(*commands[name], status=2, full=full)
    assert_said_to_be_full(ended)


def assert_said_to_be_full(ended: subprocess.CompletedProcess) -> None:
    assert "error: " in ended.stderr and "\n  try: " in ended.stderr
    assert any(words in ended.stderr for words in ("No space left", "no room", "free"))


WRITERS = {
    "plan_parallelism": ("--json", "{full}/plans.json", "--config",
                         "{root}/examples/configs/gpt2_124m.toml", "--gpu", "a100-80g", "--gpus",
                         "2", "--global-batch-size", "8"),
    "compare_tokenizers": ("--input", "{place}/é pubmed_sample.xml", "--tokenizer",
                           "a={place}/tokenizer", "--output", "{full}/t.json"),
    "evaluate_qa": ("--load", "{run}", "--data", "{place}/qa_test.jsonl", "--limit", "2",
                    "--greedy-only", "--max-new-tokens", "2", "--output", "{full}/answers.jsonl"),
    "judge_facts": ("--load", "{run}", "--question", "Is gout rare?", "--html", "{full}/g.html"),
    "report": ("{run}", "--output", "{full}/report.html"),
}  # fmt: skip
"""Those whose outputs may be smaller: the disk is filled before they start."""
FILL = """
import sys
from commands import run_main
with open(sys.argv[1], "wb", buffering=0) as file:
    try:
        while file.write(bytes(512)):
            pass
    except OSError as error:
        assert error.errno == 28, error
run_main(sys.argv[2:])
"""


@pytest.mark.parametrize("name", WRITERS)
def test_a_page_that_has_no_room_is_said_to_have_none(place, trained, confined, name):
    full = place / "full"
    full.mkdir(exist_ok=True)
    (place / "fill.py").write_text(FILL)
    known = {"place": place, "run": trained, "root": ROOT, "full": full}
    words = [word.format(**known) for word in WRITERS[name]]
    filled = place / "fill.py", full / "filled"
    ended = confined(*filled, TOOLS / f"{name}.py", *words, status=2, full=full)
    assert_said_to_be_full(ended)
    assert str(full) in ended.stderr  # its own page, and not what it says


ON_STDOUT = "check_data"
"""One that is quick; the others import torch, most of them."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "name", [n if n == ON_STDOUT else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS]
)
def test_what_a_command_says_has_no_room(place, trained, name):
    """Its stdout is a file on a full disk: three lines, status 2, and no traceback."""
    if name == "plot_metrics":
        pytest.importorskip("matplotlib")
    known = {"tools": TOOLS, "place": place, "run": trained, "root": ROOT}
    words = [word.format(**known) for word in COMMANDS[name]]
    for made in (place / "hf", place / "qa run"):  # by the test of the same command
        shutil.rmtree(made, ignore_errors=True)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            cwd=ROOT,
        )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "Exception ignored" not in ended.stderr, ended.stderr
    assert ended.returncode == 2, ended.stderr
    assert_said_to_be_full(ended)


def test_every_tool_is_tried_on_a_full_disk():
    """download_data has its tests in tests/data/test_download.py: no site is there in the hard place."""
    said_only = {"check_data", "generate_text", "evaluate_perplexity", "translate_args", "doctor"}
    assert set(COMMANDS) - said_only == (set(WRITERS) | set(FILLERS)) & set(COMMANDS)


@pytest.mark.slow
def test_the_package_installs_and_says_its_version_there(place, confined):
    """From a copy of the source, into a folder of its own, with the build tools and packages that are there."""
    source, target = place / "source", place / "site"
    shutil.copytree(ROOT / "megatron_yuyuan", source / "megatron_yuyuan")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    confined("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target",
             target, source)  # fmt: skip
    assert (target / "megatron_yuyuan" / "run.py").exists()
