"""The page says what the run's files say, and nothing in them can become markup."""

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest
from report import runs
from report.runs import KILLED, RESTART, SKIPPED, SPIKE, STEPS, synthetic_run

from megatron_yuyuan.checkpoint.identity import identity
from megatron_yuyuan.config_toml import to_toml
from megatron_yuyuan.errors import DataError
from megatron_yuyuan.goodput import TimeSplit
from megatron_yuyuan.report.learning import texts
from megatron_yuyuan.report.markup import element
from megatron_yuyuan.report.page import page
from megatron_yuyuan.report.record import read_run

HOSTILE = "</style></details>\"'><script>alert(1)</script><img src=//a.b/c onerror=alert(2)> &amp;"
OURS = set(
    "html head meta title style body header main footer nav section article figure figcaption details "
    "summary div span p a b i strong code pre h1 h2 h3 dl dt dd ul ol li table thead tbody tr th td svg "
    "path polyline polygon".split()
)


class Seen(HTMLParser):
    """What a browser would find: elements, attributes, and the text between."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def made(tmp_path_factory, repository) -> str:
    """The page of the run that is written by hand, over a shard that is there."""
    shard = str(repository / "tests" / "golden" / "text_text_document")
    return page(read_run(synthetic_run(tmp_path_factory.mktemp("report") / "run", shard)))


def test_every_section_is_there_and_linked(made):
    anchors = re.findall(r'<section id="(\w+)">', made)
    assert anchors == re.findall(r'<a href="#(\w+)">', made)
    assert anchors == [
        *("texts", "learning", "speed", "time", "course", "scores", "facts", "pipeline", "data"),
        "configuration",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "A language model of 932,608 parameters learned to continue texts",
        "it has read 819,200 tokens (pieces of words) in 400 steps",
        "It ended with an error: no room: the disease.",
        "Not medical advice",
        "of 400 steps",
        "step 50, validation loss 4.",
        "Gout is the disease",
        "all 8 evaluations",
        "the one before ended: rank 1 (a, pid 7) died: signal 9 (SIGKILL) in step 251 the disease",
        "Goes on from step 200",
        "Step 320 passed over: not finite",
        "Loss spike at step 310: 9.000",
        "Rank 3 (the disease) takes 2.1 times as long as the median",
        "taken back to step 400: samples 320 to 383 are left out",
        "pipeline_model_parallel_size2default 1",
        "Ranks that share the layers",
        "waited 20.0% of the time; if stages were equal and messages took no time it would be 20.0%",
        "mean 287.12, median",
        "(b) corpus BLEU by sacreBLEU, unsmoothed",
        "Is the disease common?",
        "50.0% (95% of resamples 10.0% to 90.0%)",
        "75.0%: the model is WORSE than that",
    ],
)
def test_the_page_says(made, words):
    assert words in Seen(made).words


def test_what_a_restart_took_back_is_not_drawn_but_counted(made):
    split = TimeSplit(runs.events("the disease"))
    assert split.seconds["repeated"] == KILLED - RESTART
    assert split.seconds["steps"] == STEPS - 1  # one was passed over
    assert f"{split.goodput:.1%}" in made


def test_a_hostile_run_is_shown_as_text(tmp_path):
    made = page(read_run(synthetic_run(tmp_path / "run", f"{HOSTILE}/x", HOSTILE)), HOSTILE)
    seen = Seen(made)
    assert seen.elements <= OURS, seen.elements - OURS
    assert not any(name.startswith("on") or name in ("src", "srcset") for name in seen.attributes)
    assert seen.words.count(HOSTILE) > 20  # it is there, to be read
    assert re.findall(r'href="([^#])', made) == []
    assert "default-src 'none'" in unescape(made)


def test_elements_escape_what_is_not_markup():
    assert element("p", "<b>", element("b", "&"), None, class_='"') == (
        '<p class="&quot;">&lt;b&gt;<b>&amp;</b></p>'
    )


def test_a_run_with_little_in_it_has_a_page_without_the_rest(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    for name in ("exit.json", "scores.json", "facts.json"):
        (directory / name).unlink()
    shutil.rmtree(directory / "profile")
    step = {"event": "step", "iteration": 1, "lm_loss": 7.0, "learning_rate": 0.1, "schema": 1,
            "tokens_per_second": 5.0, "consumed_samples": 8, "seconds": 1.0}  # fmt: skip
    (directory / "metrics.jsonl").write_text(json.dumps(step) + "\n")  # of an older version
    made = Seen(page(read_run(directory)))
    assert "No end is recorded: it is under way, or was killed." in made.words
    assert "(MFU) is not known" in made.words
    assert "Not described:" in made.words  # the shard is not there
    for heading in ("What it writes", "Where the time went", "What happened", "The pipeline"):
        assert heading not in made.words


def test_a_run_of_an_older_version_has_a_page(repository):
    """No clock, no starts, no texts."""
    made = Seen(page(read_run(repository / "tests" / "golden" / "run")))
    assert "in 6 steps" in made.words and "from 5.45 at step 3" in made.words
    assert "Where the time went" not in made.words


def test_a_loss_that_was_not_finite_is_not_drawn(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    events = [runs.step(1, 0.0), runs.step(2, 1.0) | {"lm_loss": None}]
    for event in (*runs.evaluation(1, 0.5, "a"), *runs.evaluation(2, 1.5, "a")):
        lost = {"validation_loss": None, "validation_perplexity": None}
        events.append(event | (lost if event["iteration"] == 2 else {}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    words = Seen(page(read_run(directory))).words
    assert "step 1, validation loss 7." in words and "step 2, validation loss" not in words


def test_texts_are_shown_as_they_were_written(tmp_path):
    shown = texts(read_run(synthetic_run(tmp_path / "run", text="<gout>")))
    assert '<span class="prompt">Gout is &lt;gout&gt;</span> 50 &lt;gout&gt;</p>' in shown


def spoil(directory, name: str, text: str | bytes | None) -> None:
    if text is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("metrics.jsonl", None, "no .*metrics.jsonl"),
        ("config.toml", None, "no .*config.toml"),
        ("metrics.jsonl", "[1]\n", "a line is no event of a run"),
        ("metrics.jsonl", '{"event": "step", "iteration": 1}\n', "an event step has no lm_loss"),
        (
            "metrics.jsonl",
            '{"event": "stop", "iteration": "1", "cause": "a"}\n',
            "iteration of an event stop is '1'",
        ),
        ("metrics.jsonl", b"\xff\n", "cannot read .*metrics.jsonl: 'utf-8' codec"),
        ("metrics.jsonl", '{"event": "save", "iteration": 1}\n', "holds no step"),
        (
            "metrics.jsonl",
            json.dumps(runs.step(1, 0.0)) + '\n{"event": "restart", "iteration": 0}\n',
            "holds no step that a restart did not take back",
        ),
        ("exit.json", "{", "cannot read .*exit.json"),
        ("exit.json", "[]", "it is no JSON object with class, cause, step"),
        ("scores.json", "{}", "it is no JSON object with systems"),
        ("scores.json", '{"systems": {"a": {}}}', "not what evaluate_qa.py --json prints"),
        ("facts.json", '{"closed-book": []}', "not what judge_facts.py --json prints"),
        ("profile/rank_00.json.gz", "no gzip", "cannot read .*rank_00.json.gz"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, text, what):
    directory = synthetic_run(tmp_path / "run")
    spoil(directory, name, text)
    with pytest.raises(DataError, match=what):
        page(read_run(directory))


def test_a_file_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*absent\.json"):
        read_run(synthetic_run(tmp_path / "run"), scores=tmp_path / "absent.json")


def test_the_marks_are_at_their_steps(tmp_path):
    from megatron_yuyuan.report.learning import marks_by_step

    run = read_run(synthetic_run(tmp_path / "run"))
    marks = {(mark.kind, mark.x) for mark in marks_by_step(run)}
    assert marks == {
        *(("restart", RESTART), ("stop", STEPS), ("skip", SKIPPED), ("spike", SPIKE)),
        *(("save", step) for step in (100, 200, 300, 400)),
    }


def test_scores_say_of_which_weights_they_are(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    document = json.loads((directory / "scores.json").read_text())
    (directory / "iter_0000004").mkdir()
    (directory / "iter_0000004" / "manifest.json").write_text("{}")
    own = identity(directory / "iter_0000004")
    for scored, said in (
        (None, "Of which weights these scores are, their file does not say."),
        (own, f"Of the weights of iter_0000004 ({own['sha256'][:12]})."),
        (own | {"sha256": "0" * 64}, "Of other weights than lie here: iter_0000004 (000000000000)"),
        (own | {"name": "gone"}, "Of other weights than lie here: gone"),
    ):
        (directory / "scores.json").write_text(json.dumps(document | {"scored": scored}))
        assert said in Seen(page(read_run(directory))).words


def test_a_start_that_was_refused_is_not_the_end_of_the_run(tmp_path):
    directory = synthetic_run(tmp_path / "run")
    ending = {
        "class": "usage",
        "status": 2,
        "step": 400,
        "cause": "lr was 1, is 2",
        "refused": True,
    }
    (directory / "exit.json").write_text(json.dumps(ending))
    words = Seen(page(read_run(directory))).words
    assert "A start after that was refused before its first step: lr was 1, is 2." in words


def test_a_run_that_says_what_it_learned_is_believed(tmp_path):
    """A pretraining by --finetune on shards that are named apart, and a finetuning on a file of questions."""
    run = read_run(synthetic_run(tmp_path / "run"))
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    for questions, data, said in (
        (False, "text_document", "learned to continue texts"),
        (True, "train.jsonl", "learned to answer questions"),
    ):
        config = run.config.replace(data_path=(), train_data_path=(data,), finetune=True)
        (run.directory / "config.toml").write_text(to_toml(config))
        said_so = [e | {"questions": questions} if e["event"] == "start" else e for e in events]
        text = "".join(json.dumps(event) + "\n" for event in said_so)
        (run.directory / "metrics.jsonl").write_text(text)
        words = Seen(page(read_run(run.directory))).words
        assert said in words
        assert ("A file of questions and answers." in words) == questions
