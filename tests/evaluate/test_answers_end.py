"""Row E07: the end of text is learned, so that answers stop; where it is masked, they do not."""

import json

import pytest
import torch
from tiny_run import tiny_gpt2

from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.data.qa_dataset import QADataset
from megatron_yuyuan.data.question_file import QuestionFile
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import train_bpe
from megatron_yuyuan.evaluate.generate import generate_batch

NAMES = "gout lupus flu asthma measles mumps rabies anemia malaria cholera".split()
PAIRS = [(f"What is {n}?", f"A disease, {n[::-1]}.") for n in NAMES]
PAIRS += [(f"Who has {n}?", f"{len(n)} people of {n[:3]}.") for n in NAMES]
STEPS, LONGEST = 120, 24


def stopped(tmp_path, end_is_learned: bool) -> float:
    """Share of answers that end within LONGEST tokens, of a model that has learned all pairs."""
    tokenizer = train_bpe((TEMPLATE.prompt_text(q) + a for q, a in PAIRS), 300)
    lines = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS)
    (tmp_path / "qa.jsonl").write_text(lines)
    _, model = tiny_gpt2(tokenizer)
    samples = QADataset(QuestionFile(tmp_path / "qa.jsonl", tokenizer), 48, tokenizer.eod, None)
    batch = read_batch(samples, 0, len(PAIRS), 0, 1, "cpu")
    labels = batch.labels.clone()
    assert (labels == tokenizer.eod).sum() == len(PAIRS)
    if not end_is_learned:
        labels[labels == tokenizer.eod] = IGNORE
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=labels)
        optimizer.zero_grad()
        (loss / count).sum().backward()
        optimizer.step()
    prompts = [TEMPLATE.encode_prompt(tokenizer, question) for question, _ in PAIRS]
    texts = generate_batch(model.eval(), prompts, LONGEST, eod=tokenizer.eod)
    return sum(text[-1] == tokenizer.eod for text in texts) / len(texts)


@pytest.mark.parametrize(("end_is_learned", "least", "most"), [(True, 0.95, 1), (False, 0, 0.5)])
def test_answers_stop_where_the_end_is_learned(tmp_path, end_is_learned, least, most):
    assert least <= stopped(tmp_path, end_is_learned) <= most
