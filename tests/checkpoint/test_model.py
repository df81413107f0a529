"""A run opened for use, whole or divided over ranks, gives the same text."""

from pathlib import Path

import pytest
from tiny_run import save_run

from megatron_yuyuan.checkpoint.model import load_divided_model, load_model, open_model
from megatron_yuyuan.config import ParallelConfig
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.evaluate.generate import answer

QUESTION = "What is gout?"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory of untrained weights, whose training would have computed attention in half precision."""
    directory = tmp_path_factory.mktemp("run")
    texts = ["Question:What is gout? answer: A disease of joints."] * 4
    trained = {"num_layers": 4, "init_method_std": 0.3, "attention_backend": "flash"}
    save_run(directory, texts, vocab_size=280, **trained)
    return directory


def divided_answer(run: Path, layout: ParallelConfig) -> str:
    return answer(load_divided_model(run, None, layout), QUESTION, max_new_tokens=12)


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 2), (1, 2), (4, 1)])
def test_a_divided_run_answers_as_the_whole_one(ranks, run, tensor, pipeline):
    layout = ParallelConfig(tensor, pipeline, device="cpu")
    expected = answer(load_model(run), QUESTION, max_new_tokens=12)
    assert ranks.run(4, divided_answer, run, layout) == expected
    assert len(expected) > 5


@pytest.mark.parametrize("opens", [load_model, open_model])
def test_a_hugging_face_directory_has_no_iterations(repository, opens):
    with pytest.raises(ConfigError, match=r"ckpt_step=500 and .*export"):
        opens(repository / "tests" / "golden" / "export", 500)


def test_a_hugging_face_directory_is_not_divided(repository):
    directory = f"hf:{repository / 'tests' / 'golden' / 'export'}"
    with pytest.raises(ConfigError, match="is a Hugging Face directory"):
        load_divided_model(directory, None, ParallelConfig(2, device="cpu"))
    assert load_model(directory).path.name == "export"


def test_a_layout_that_does_not_fit_is_refused(run):
    with pytest.raises(ConfigErrors, match="num_attention_heads=4 cannot be divided"):
        load_divided_model(run, None, ParallelConfig(tensor_model_parallel_size=3, device="cpu"))
