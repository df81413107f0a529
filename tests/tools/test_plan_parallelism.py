"""The planner's command: a ranking, its files, flags that work, and what it refuses."""

import importlib.util
import json
import re
import shlex

import pytest

from megatron_yuyuan.cli import parse_config
from megatron_yuyuan.planner.plan import LAYOUT, layout_settings, require_plannable
from megatron_yuyuan.validation import validate

SHAPE = """
[model]
num_layers = 4
hidden_size = 256
num_attention_heads = 4
[data]
seq_length = 128
[parallel]
tensor_model_parallel_size = 2
sequence_parallel = true
recompute_activations = true
[training]
micro_batch_size = 2
global_batch_size = 8
bf16 = true
train_iters = 10
"""
CLUSTER = ("--gpu", "a100-40g", "--gpus", 8, "--gpus-per-node", 4)


@pytest.fixture
def shape(tmp_path):
    path = tmp_path / "shape.toml"
    path.write_text(SHAPE)
    return path


def test_a_ranking_is_printed_and_written(command, shape, tmp_path, capsys):
    report = tmp_path / "new" / "plan.json"
    command(
        "plan_parallelism",
        "--config",
        shape,
        *CLUSTER,
        "--tokens",
        1e9,
        "--top",
        3,
        "--json",
        report,
    )
    shown = capsys.readouterr().out
    assert "16,070,144 parameters on 8 GPUs in 2 nodes, 200 GB/s out of each" in shown
    for title in ("the fastest ", "of each division", "as configured", "GiB of", "ms of a step"):
        assert title in shown
    written = json.loads(report.read_text())
    assert written["format"] == "megatron_yuyuan plan 1" and written["tokens"] == 1e9
    assert written["gpus_per_node"] == 4 and len(written["plans"]) == 3
    for plan in written["plans"]:
        memory, seconds = plan["memory_bytes"], plan["step_seconds"]
        assert memory["total"] * 2 == sum(memory.values())
        assert seconds["total"] * 2 == pytest.approx(sum(seconds.values()))
        assert plan["tokens_per_second"] == pytest.approx(8 * 128 / seconds["total"])
        assert set(plan["layout"]) == set(LAYOUT) and 0 < plan["mfu"] < 1
    assert list(report.parent.iterdir()) == [report]


def test_the_flags_make_the_first_layout_of_the_same_configuration(
    command, shape, tmp_path, capsys
):
    report = tmp_path / "plan.json"
    command("plan_parallelism", "--config", shape, *CLUSTER, "--top", 1, "--json", report)
    flags = shlex.split(capsys.readouterr().out.splitlines()[-1])
    config = parse_config("", ["--config", str(shape), "--vocab-size", "50257", *flags])
    [plan] = json.loads(report.read_text())["plans"]
    assert (
        layout_settings(config)
        == plan["layout"]
        != layout_settings(parse_config("", ["--config", str(shape)]))
    )
    assert "--no-recompute-activations" in flags
    validate(config, 8)


def test_flags_go_over_files_and_a_bare_shape_has_no_layout_of_its_own(command, shape, capsys):
    shape.write_text(re.sub(r"\[parallel\][^\[]*\[training\]\nm.*", "[training]", SHAPE))
    model = ("--num-layers", 2, "--vocab-size", 1000, "--global-batch-size", 16)
    command("plan_parallelism", "--config", shape, *model, *CLUSTER, "--inter-node-bandwidth", 25)
    shown = capsys.readouterr().out
    assert "1,874,944 parameters" in shown and "25 GB/s out of each" in shown
    assert "steps of 16 samples" in shown and "as configured" not in shown


@pytest.mark.parametrize("given", ["bf16", "fp16", ""])
def test_the_flags_compute_in_the_precision_that_is_predicted(command, shape, capsys, given):
    shape.write_text(SHAPE.replace("bf16 = true", f"{given} = true" if given else ""))
    command("plan_parallelism", "--config", shape, *CLUSTER, "--top", 1)
    flags = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert ("--bf16" in flags) == (not given)
    config = parse_config("", ["--config", str(shape), "--vocab-size", "50257", *flags])
    require_plannable(config)


@pytest.mark.parametrize(("reserve", "fits"), [(4, True), (39.32, False)])
def test_a_layout_of_ones_own_that_does_not_fit_is_said_to(command, shape, capsys, reserve, fits):
    command("plan_parallelism", "--config", shape, *CLUSTER, "--reserve-gib", reserve)
    shown = capsys.readouterr().out
    assert "as configured" in shown
    assert ("as configured, which does not fit" in shown) == (not fits)


@pytest.mark.parametrize("name", ["chart.png", "page.html"])
def test_a_chart_is_drawn(command, shape, tmp_path, capsys, name):
    pytest.importorskip("matplotlib")
    output = tmp_path / name
    command("plan_parallelism", "--config", shape, *CLUSTER, "--chart", output)
    shown, drawn = capsys.readouterr().out, output.read_bytes()
    if name.endswith(".png"):
        assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    else:
        page = drawn.decode()
        assert 'src="data:image/png;base64,' in page and "http" not in page
        assert shown.splitlines()[-1].strip() in page and page.count("<table>") == 3


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--gpus", 0), "--gpus 0"),
        (("--tokens", 0), "--tokens 0.0"),
        (("--tokens", "nan"), "--tokens nan"),
        (("--inter-node-bandwidth", -1), "--inter-node-bandwidth -1.0"),
        (("--reserve-gib", -1), "--reserve-gib -1.0"),
        (("--gpus", 6), "--gpus 6 on nodes of 4"),
        (("--chart", "plan.svg"), "plan.svg ends in neither .png nor .html"),
        (("--gpu", "v100"), "invalid choice: 'v100'"),
        (("--reserve-gib", 39.4), "layouts fits in 39.4 GiB less 39.4 reserved"),
        (("--hidden-size", 250), "hidden_size=250 is not a multiple"),
        (("--global-batch-size", 0), "global_batch_size is not given"),
    ],
)
def test_what_cannot_be_planned_is_refused(refused, shape, tmp_path, flags, what):
    report = tmp_path / "plan.json"
    message = refused("plan_parallelism", "--config", shape, *CLUSTER, "--json", report, *flags)
    assert what in message and not report.exists()


def test_a_chart_without_matplotlib_is_refused(refused, shape, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    chart = tmp_path / "plan.png"
    message = refused("plan_parallelism", "--config", shape, *CLUSTER, "--chart", chart)
    assert "matplotlib is not installed" in message and not chart.exists()


@pytest.mark.slow
def test_the_command_of_the_docs_works(command, repository, tmp_path, monkeypatch, capsys):
    page = (repository / "docs" / "planner.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"\npython tools/plan_parallelism\.py (.*?)\n```", page, re.DOTALL)
    words = shlex.split(shown.replace("\\\n", " ").replace("examples/", f"{repository}/examples/"))
    monkeypatch.chdir(tmp_path)
    command("plan_parallelism", *words)
    assert "3,556,270,080 parameters on 32 GPUs" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"plan.png", "plan.json"}
