"""TensorBoard and Weights & Biases get Megatron-LM's names, every step, and one curve over restarts."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from test_log import FIGURES
from tiny import TINY

from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.validation import validate
from megatron_yuyuan.writers import TensorBoard, WeightsAndBiases, require_extras

STEP = FIGURES | {"mfu": 0.5}
EVALUATION = {
    "iteration": 7,
    "consumed_samples": 8,
    "validation_loss": 2.0,
    "validation_perplexity": 7.4,
    "tokens": 100,
}
MEGATRONS_TAGS = {
    "lm loss": 0.3,
    "learning-rate": 1e-4,
    "batch-size": 8.0,
    "loss-scale": 1.0,
    "grad-norm": 1.0,
    "lm loss validation": 2.0,
    "lm loss validation ppl": 7.4,
}
"""Written by training_log and evaluate_and_print_results of megatron/training/training.py, each also
`vs samples`."""
MEGATRONS_TIMES = {"iteration-time": 0.5, "throughput": 45.6}
OUR_TAGS = {"tokens-per-second": 12.0, "mfu": 0.5, "memory-bytes": 3 * 2**29}


def scalars_in(directory) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} as they lie in the event files of a directory."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_megatrons_tags_by_iterations_and_samples(tmp_path):
    pytest.importorskip("tensorboard")
    writer = TensorBoard(str(tmp_path))
    writer.start()
    writer.event("restart", {"iteration": 0})
    writer.event("step", STEP)
    writer.event("evaluation", EVALUATION)
    writer.event("save", {"iteration": 7, "path": "p", "seconds": 1.0})
    writer.close()
    by_iteration = {t: [(7, v)] for t, v in (MEGATRONS_TAGS | MEGATRONS_TIMES | OUR_TAGS).items()}
    by_samples = {f"{tag} vs samples": [(8, value)] for tag, value in MEGATRONS_TAGS.items()}
    assert scalars_in(tmp_path) == by_iteration | by_samples


def test_a_run_that_goes_on_goes_on_in_the_same_curves(tmp_path):
    pytest.importorskip("tensorboard")
    for first, last in ((1, 3), (3, 4)):  # killed after 3, continued from 2
        writer = TensorBoard(str(tmp_path))
        for iteration in range(first, last + 1):
            loss = {"iteration": iteration, "consumed_samples": 8 * iteration, "lm_loss": last}
            writer.event("step", loss)
        writer.close()
    curves = scalars_in(tmp_path)
    assert curves["lm loss"] == [(1, 3), (2, 3), (3, 3), (3, 4), (4, 4)]  # the later one wins
    assert curves["lm loss vs samples"][-1] == (32, 4)


def test_tensorboard_writes_nothing_before_the_first_step(tmp_path):
    writer = TensorBoard(str(tmp_path / "curves"))
    writer.start()
    writer.event("restart", {"iteration": 0})
    writer.close()
    assert not (tmp_path / "curves").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to tensorboard_dir"):
        TensorBoard(str(tmp_path / "file" / "curves")).event("step", STEP)


class Wandb(SimpleNamespace):
    """The part of wandb that is used; it notes what it is told."""

    class Error(Exception):
        pass

    def __init__(self, refusal: str = ""):
        super().__init__(options={}, axes={}, logged=[], finished=False, refusal=refusal)

    def init(self, **options):
        if self.refusal:
            raise self.Error(self.refusal)
        self.options = options
        return self

    def define_metric(self, name: str, step_metric: str = ""):
        self.axes[name] = step_metric

    def log(self, figures: dict):
        self.logged.append(figures)

    def finish(self):
        self.finished = True


def reporting(tmp_path, **more):
    return TINY.replace(wandb_project="pubmed", wandb_exp_name="first", save=str(tmp_path), **more)


def test_wandb_gets_megatrons_names(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = reporting(tmp_path)
    writer = WeightsAndBiases(config)
    writer.start()
    writer.event("step", STEP)
    writer.event("evaluation", EVALUATION)
    writer.event("save", {"iteration": 7, "path": "p", "seconds": 1.0})
    writer.close()
    place = {"project": "pubmed", "name": "first", "dir": str(tmp_path)}
    assert wandb.options == place | {"config": config.to_dict()}
    validation = {t: v for t, v in MEGATRONS_TAGS.items() if "validation" in t}
    course = {t: pytest.approx(v) for t, v in MEGATRONS_TAGS.items() if t not in validation}
    assert wandb.logged == [
        course | MEGATRONS_TIMES | OUR_TAGS | {"samples vs steps": 8, "iteration": 7},
        validation | {"iteration": 7},
    ]
    assert (
        wandb.axes["*"] == "iteration"
    )  # wandb's own count, which a rollback would take back, drops steps
    assert wandb.finished


def test_wandb_keeps_its_files_where_it_is_told(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    WeightsAndBiases(reporting(tmp_path, wandb_save_dir=str(tmp_path / "a" / "b"))).start()
    assert wandb.options["dir"] == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_wandb_without_an_account_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("No API key configured."))
    writer = WeightsAndBiases(reporting(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be reached: No API key configured\.") as raised:
        writer.start()
    assert "WANDB_MODE=offline" in raised.value.remedy
    writer.close()


@pytest.mark.slow
def test_wandb_itself_works_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = WeightsAndBiases(reporting(tmp_path))
    writer.start()
    writer.event("step", STEP)
    writer.close()
    [written] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"samples vs steps" in written.read_bytes()


@pytest.mark.parametrize(
    ("asked", "extra"),
    [({"tensorboard_dir": "t"}, "tensorboard"), ({"wandb_project": "p"}, "wandb")],
)
def test_a_missing_extra_is_named_with_its_command(monkeypatch, asked, extra):
    require_extras(TINY.logging)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_extras(TINY.logging)
    with pytest.raises(ConfigError, match=f"{extra} is not installed") as raised:
        require_extras(TINY.replace(**asked).logging)
    assert raised.value.remedy == f"pip install 'megatron_yuyuan[{extra}]'"


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"wandb_project": "p", "save": "s"}, "without wandb_exp_name", "--wandb-exp-name"),
        ({"wandb_project": "p", "wandb_exp_name": "e"}, "there is no --save", "--wandb-save-dir"),
        ({"wandb_exp_name": "e"}, "without wandb_project", "--wandb-project"),
        ({"wandb_save_dir": "d"}, "without wandb_project", "--wandb-project"),
        ({"profile": True}, "profile, but there is no --save", "--save DIR"),
        (
            {"profile": True, "save": "s", "profile_step_start": 12},
            "profile_step_start=12, profile_step_end=12",
            "--profile-step-end 14",
        ),
        (
            {"profile": True, "save": "s", "profile_step_start": 0},
            "profile_step_start=0",
            "--profile-step-start 1 --profile-step-end 3",
        ),
        (
            {"profile": True, "save": "runs", "profile_ranks": (0, 2)},
            "profile_ranks has 2",
            "ranks of these",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(changes, what, remedy):
    with pytest.raises(ConfigError) as raised:
        validate(TINY.replace(**changes), 1)
    [problem] = raised.value.problems
    assert what in problem.what
    assert remedy in problem.remedy
