"""Tiny untrained models, alone and as a run directory for the commands that open one."""

from collections.abc import Iterable
from pathlib import Path

from megatron_yuyuan.checkpoint.dcp import describe_run, save_checkpoint
from megatron_yuyuan.config import Config
from megatron_yuyuan.data.tokenizer import Tokenizer, train_bpe
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights


def tiny_gpt2(tokenizer: Tokenizer, **changes) -> tuple[Config, GPT2]:
    """2 layers, 4 heads, width 32, 64 positions, or as `changes` say; the weights of seed 1."""
    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "init_method_std": 0.2}
    shape |= {"max_position_embeddings": 64, "vocab_size": tokenizer.vocab_size} | changes
    config = Config().replace(seq_length=shape["max_position_embeddings"], **shape)
    model = GPT2(config.model)
    init_weights(model, seed=1)
    return config, model


def save_run(
    directory: Path,
    texts: Iterable[str],
    vocab_size: int = 320,
    iterations: tuple[int, ...] = (3,),
    **changes,
) -> Tokenizer:
    """Train a tokenizer on texts and save `tiny_gpt2` with it as each of the iterations, the weights
    growing with their numbers; return the tokenizer."""
    tokenizer = train_bpe(iter(texts), vocab_size)
    config, model = tiny_gpt2(tokenizer, **changes)
    document = describe_run(config, tokenizer, consumed_samples=20, optimizer_steps=None)
    for iteration in iterations:
        tensors = {
            f"model.{name}": t * (iteration / iterations[0])
            for name, t in model.state_dict().items()
        }
        save_checkpoint(directory, iteration, tensors, document)
    tokenizer.save(directory / "tokenizer")
    return tokenizer
