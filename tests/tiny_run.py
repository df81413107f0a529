"""A run directory with one checkpoint of a tiny model, for the commands that open one."""

from collections.abc import Iterable
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import save_checkpoint
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer, train_bpe
from megatron_yuyuan.model.gpt2 import GPT2, init_weights


def save_run(directory: Path, texts: Iterable[str], positions: int = 64) -> Tokenizer:
    """Train a tokenizer on texts, save random weights as iter_0000003; return the tokenizer."""
    tokenizer = train_bpe(iter(texts), 320)
    config = Config().replace(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=positions,
        seq_length=positions,
        vocab_size=tokenizer.vocab_size,
        init_method_std=0.2,
    )
    model = GPT2(config.model)
    init_weights(model, seed=1)
    document = {
        "consumed_samples": 20,
        "optimizer": False,
        "template": TEMPLATE.to_dict(),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "random": {},
        "data_order": 1,
        "config": config.to_dict(),
    }
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(directory, 3, tensors, document)
    tokenizer.save(directory / "tokenizer")
    return tokenizer
