"""A GPT-2 of transformers', to start from and to compare with."""

import torch


def gpt2(vocab_size: int, positions: int, headless: bool = False):
    """4 layers, 8 heads, width 32, in eval mode, with weights that are not those of a start."""
    import transformers

    shape = {"n_layer": 4, "n_embd": 32, "n_head": 8, "n_positions": positions}
    kind = transformers.GPT2Model if headless else transformers.GPT2LMHeadModel
    model = kind(transformers.GPT2Config(vocab_size=vocab_size, **shape)).eval()
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model
