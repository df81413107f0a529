"""The README's first command: raw records in, an answering model out."""

import json

import pytest
from commands import ROOT, run

from megatron_yuyuan.log import read_metrics


@pytest.mark.timeout(900)
@pytest.mark.slow  # two minutes: make quickstart runs the same
def test_the_quickstart_teaches_a_tiny_model_to_answer(tmp_path):
    out = tmp_path / "quick start"
    ended = run(ROOT / "examples" / "quickstart.py", out)
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    right = sum(a["answer"].split() == a["reference"].split() for a in answers)
    assert len(answers) == 120
    assert right >= 90, ended.stdout
    assert f"{right} of 120 questions" in ended.stdout
    assert "pipeline 2 x data 2 x tensor 2 on cpu over gloo" in ended.stdout
    for product in ("tokenizer", "data", "pretrained", "finetuned", "huggingface"):
        assert any((out / product).iterdir())
        assert str(out / product) in ended.stdout
    assert "What is diabetes?" in (out / "finetuned" / "report.html").read_text()
    validation = read_metrics(out / "pretrained" / "metrics.jsonl", "evaluation")
    assert validation[-1]["validation_loss"] < validation[0]["validation_loss"]
    load_and_ask(out / "huggingface")
    again = run(ROOT / "examples" / "quickstart.py", out, status=2)
    assert again.stderr.startswith(f"error: {out} exists\n  why: ")
    assert f"try: another directory (make quickstart OUT=other), or rm -r '{out}'" in again.stderr


def load_and_ask(directory) -> None:
    """The model card's own snippets, on the exported directory."""
    from transformers import GPT2Model, GPT2Tokenizer, pipeline

    tokenizer = GPT2Tokenizer.from_pretrained(directory)
    model = GPT2Model.from_pretrained(directory)
    encoded = tokenizer("Replace me by any text you'd like.", return_tensors="pt")
    assert model(**encoded).last_hidden_state.shape[-1] == 128
    generator = pipeline("text-generation", model=str(directory))
    prompt = "Question:What causes malaria? answer:"
    [written] = generator(prompt, max_new_tokens=20, do_sample=False)
    assert written["generated_text"].startswith(prompt)
    assert "Plasmodium" in written["generated_text"]
