"""Finetuning as a person runs it: LoRA on packed pairs from a JSONL file, evaluated and exported merged."""

import json
from pathlib import Path

import pytest
import torch
from commands import ROOT, run
from tiny import TINY
from tiny_run import save_run

from megatron_yuyuan.checkpoint.hf import to_huggingface
from megatron_yuyuan.checkpoint.model import load_divided_model, load_model, open_model
from megatron_yuyuan.checkpoint.model_card import model_card
from megatron_yuyuan.config import Config, ParallelConfig
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.data.question_file import QuestionFile
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.evaluate.generate import answer
from megatron_yuyuan.evaluate.perplexity import perplexity
from megatron_yuyuan.log import read_metrics
from megatron_yuyuan.run import finetune, pretrain
from megatron_yuyuan.train.throughput import training_flops
from megatron_yuyuan.validation import validate

ANSWERS = ("A disease of joints.", "A virus.", "Rest, and see a doctor if it lasts. " * 4)
FLAGS = ("--packing", "--lora-rank", 2, "--lora-alpha", 8, "--seq-length", 64, "--lr", 0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with an untrained run and qa.jsonl, whose longest answer does not fit 64 tokens."""
    directory = tmp_path_factory.mktemp("base")
    texts = ["Question:What is gout? answer: A disease of joints."] * 4
    shape = {"hidden_size": 16, "num_attention_heads": 2, "init_method_std": 0.1}
    save_run(directory / "run", texts, vocab_size=280, **shape)
    pairs = [{"question": f"What is {n}?", "answer": a} for n, a in enumerate(ANSWERS * 3)]
    (directory / "qa.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return directory


def flags(base: Path, save: Path) -> tuple[object, ...]:
    paths = "--train-data-path", base / "qa.jsonl", "--valid-data-path", base / "qa.jsonl"
    often = "--save-interval", 2, "--eval-interval", 2, "--train-iters", 4, "--keep-best", 1
    return (*paths, *often, *FLAGS, "--device", "cpu", "--load", base / "run", "--save", save)


@pytest.fixture(scope="module")
def finetuned(base, tmp_path_factory) -> tuple[Path, str]:
    """The run of it, and what it said."""
    save = tmp_path_factory.mktemp("finetuned") / "run"
    return save, run(ROOT / "finetune_qa.py", *flags(base, save)).stdout


def test_it_says_what_it_learns(base, finetuned):
    _, said = finetuned
    assert "example, what stands in [[ ]] is not learned: [[Question:What is " in said
    assert f"questions: {base / 'qa.jsonl'}: 9 pairs; 3 lose the end of their answer at 64" in said
    assert "packed into 6 samples" in said
    assert "LoRA: 1,024 parameters learned" in said and "rank 2, scale 4" in said


def test_the_factors_are_merged_where_the_run_is_used(base, finetuned):
    save, said = finetuned
    best = min(
        read_metrics(save / "metrics.jsonl", "evaluation"), key=lambda e: e["validation_loss"]
    )
    step = best["iteration"]
    assert (
        f"iter_{step:07d}, validation loss {best['validation_loss']:.6g}: --ckpt-step {step}"
        in said
    )
    loaded, before = load_model(save, step), load_model(base / "run")
    pairs = QADataset(
        QuestionFile(base / "qa.jsonl", loaded.tokenizer), 64, loaded.tokenizer.eod, None
    )  # not packed: the loss is the same
    losses = [perplexity(of.model, pairs)["loss"] for of in (loaded, before)]
    assert losses[0] == pytest.approx(best["validation_loss"], rel=1e-5)
    assert losses[1] > 1.02 * losses[0]
    assert loaded.model.config.lora_rank == 0
    ours, theirs = loaded.model.state_dict(), before.model.state_dict()
    stored = open_model(save, step).weights  # as an export reads them, one at a time
    assert all(torch.equal(stored[name], ours[name]) for name in ours)
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    modules = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"h.{i}.{module}.weight" for i in (0, 1) for module in modules}
    assert not any("lora" in name for name in to_huggingface(ours, loaded.model.config))
    begun = "the weights of the run run; learned was LoRA of rank 2 beside them"
    assert begun in model_card(loaded, "x")


def divided_answer(directory: Path) -> str:
    layout = ParallelConfig(tensor_model_parallel_size=2, device="cpu")
    return answer(load_divided_model(directory, None, layout), "What is 0?", max_new_tokens=8)


def test_a_divided_model_answers_with_its_factors_as_the_merged_one_does(ranks, finetuned):
    save, _ = finetuned
    whole = answer(load_model(save), "What is 0?", max_new_tokens=8)
    assert ranks.run(2, divided_answer, save) == whole != ""


def test_the_same_command_goes_on_and_a_new_run_asks_for_merged_weights(base, finetuned, tmp_path):
    save, _ = finetuned
    again = run(ROOT / "finetune_qa.py", *flags(base, save)).stdout
    assert "nothing left to do: 4 of 4 iterations are taken" in again
    config = Config().replace(load=str(save), train_data_path=("x",), device="cpu", train_iters=1)
    with pytest.raises(ConfigError, match=r"has factors of LoRA \(lora_rank=2\)"):
        finetune(config.replace(save=str(tmp_path / "new")))


def test_lora_needs_weights_to_start_from(base):
    fresh = Config().replace(
        lora_rank=2,
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=str(base / "run/tokenizer"),
    )
    with pytest.raises(ConfigError, match="lora_rank=2, but there is nothing to start from"):
        pretrain(fresh)


@pytest.mark.parametrize("field", ["packing", "loss_on_prompt"])
def test_texts_have_no_pairs(base, field):
    config = Config().replace(
        load=str(base / "run"), finetune=True, data_path=("x",), seq_length=64, train_iters=1,
        device="cpu", **{field: True},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=f"{field} is given"):
        pretrain(config)


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"lora_rank": 33}, "lora_rank=33 is above hidden_size=32", "--lora-rank 16"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha=0.0", "--lora-alpha 8"),
        ({"lora_alpha": 8.0}, "lora_alpha without lora_rank", "--lora-rank"),
        (
            {"lora_rank": 4, "lora_target_modules": ("c_attn",)},
            "lora_target_modules has c_attn",
            "attn.c_attn",
        ),
        (
            {"lora_rank": 4, "lora_target_modules": ("mlp.c_fc", "mlp.c_fc")},
            "lora_target_modules=mlp.c_fc mlp.c_fc",
            "--lora-target-modules attn.c_attn",
        ),
        (
            {"packing": True, "attention_impl": "fused_softmax"},
            "packing with attention_impl=fused_softmax",
            "--attention-impl sdpa",
        ),
        (
            {"packing": True, "attention_backend": "flash", "bf16": True},
            "attention_backend=flash with packing",
            "efficient, or auto",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(changes, what, remedy):
    with pytest.raises(ConfigErrors) as raised:
        validate(TINY.replace(**changes), 1)
    assert any(what in e.what and remedy in e.remedy for e in raised.value.problems)


def test_a_frozen_matrix_costs_a_third_less():
    """Counted by hand for one layer of width 2, MLP 8, vocabulary 4, on 3 tokens with rank 1."""
    config = Config().replace(
        num_layers=1, hidden_size=2, num_attention_heads=1, vocab_size=4,
        make_vocab_size_divisible_by=4,
    )  # fmt: skip
    products, attention = 2 * 3 * (12 * 2 * 2 + 2 * 4), 2 * 3 * 3 * 2
    assert training_flops(config.model, 3) == 3 * (products + attention)
    factors = (6 + 2) + (2 + 2) + (8 + 2) + (2 + 8)
    with_factors = training_flops(config.replace(lora_rank=1).model, 3)
    assert with_factors == 2 * products + 3 * attention + 6 * 3 * factors
