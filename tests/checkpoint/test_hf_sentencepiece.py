"""A model with a SentencePiece tokenizer in Hugging Face's format, there and back."""

import io
from pathlib import Path

import pytest
import sentencepiece
import torch

from megatron_yuyuan.checkpoint.dcp import describe_run
from megatron_yuyuan.checkpoint.hf import export_directory, import_directory
from megatron_yuyuan.checkpoint.model import LoadedModel, load_model
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.sentencepiece_model import (
    LEARNERS,
    SentencePieceTokenizer,
    train_sentencepiece,
)
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.errors import ConfigError
from megatron_yuyuan.model.gpt2 import GPT2

TEXTS = ["Gout is a disease of the joints. The joints ache.", "naïve β-cells, 37 °C\n\n  µg"] * 4


def loaded_with(tokenizer: SentencePieceTokenizer) -> LoadedModel:
    config = Config().replace(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=40,
        seq_length=40,
        vocab_size=tokenizer.vocab_size,
    )
    model, noise = GPT2(config.model).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=noise)
    state = {"iteration": 0, **describe_run(config, tokenizer, 0, None, TEMPLATE)}
    return LoadedModel(model, tokenizer, TEMPLATE, state, Path("run"))


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_export_comes_back_with_its_tokenizer(learner, tmp_path):
    tokenizer = train_sentencepiece(iter(TEXTS), 320, learner)
    export_directory(loaded_with(tokenizer), tmp_path / "export")  # checks ids with transformers
    import_directory(tmp_path / "export", tmp_path / "run")
    for directory in (tmp_path / "export", tmp_path / "run"):
        assert load_model(directory).tokenizer.fingerprint == tokenizer.fingerprint


def test_a_model_that_transformers_cannot_repeat_is_refused_before_anything_is_written(tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    loaded = loaded_with(SentencePieceTokenizer(written.getvalue(), "foreign.model"))
    with pytest.raises(ConfigError, match=r"no tokenizer\.json with the same ids"):
        export_directory(loaded, tmp_path / "export")
    assert not list(tmp_path.iterdir())
