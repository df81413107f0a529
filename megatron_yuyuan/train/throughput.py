"""How much work a step is."""

from megatron_yuyuan.config import ModelConfig


def count_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, the tied embedding once and its padding included."""
    c, f = model.hidden_size, model.mlp_size
    block = 4 * c * c + 2 * c * f + (3 * c + c + f + c) + 4 * c
    return (
        model.num_layers * block + (model.padded_vocab_size + model.max_position_embeddings + 2) * c
    )
