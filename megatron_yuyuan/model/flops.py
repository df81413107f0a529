"""How much a part of the model computes: floating-point operations of its matrix products, from the
configuration alone.

A product of (m, k) and (k, n) counts 2 m k n. LayerNorm, GeLU, softmax and dropout are left out, as
in Narayanan et al. 2021, arXiv:2104.04473, section 3. A backward computes twice what its forward does.
"""

from megatron_yuyuan.config import ModelConfig


def block_flops(model: ModelConfig, tokens: int) -> int:
    """Forward of one block on one sample of T tokens: four projections of attention, both of the MLP,
    and the (T, T) scores with their weighted sum of values, above the diagonal too."""
    c, f = model.hidden_size, model.mlp_size
    return tokens * (8 * c * c + 4 * c * f) + 4 * tokens * tokens * c


def head_flops(model: ModelConfig, tokens: int) -> int:
    """Forward of the head on one sample of T tokens: logits over the padded vocabulary."""
    return 2 * tokens * model.hidden_size * model.padded_vocab_size
