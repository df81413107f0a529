"""Logits of a torch_dist directory by Megatron-core's own GPTModel, on the CPU, for `megatron_convert`.

    python -m megatron_yuyuan.checkpoint.megatron_logits CHECKPOINT SHAPE.json OUT.safetensors

A process of its own, because Megatron-core keeps its state in the process and expects CUDA: two of its
functions are replaced here. Its parameters are filled from the directory by our reader, which runs
nothing that the directory brings.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from megatron_yuyuan.checkpoint.megatron import fused_name
from megatron_yuyuan.checkpoint.megatron_directory import TorchDist
from megatron_yuyuan.checkpoint.probe import Probe
from megatron_yuyuan.config import ModelConfig


class NoGenerator:
    """In place of the CUDA generators that Megatron-core forks for a dropout that is off."""

    def fork(self, *_, **__):
        return contextlib.nullcontext()


def main(path: Path, shape: Path, output: Path) -> None:
    """Write {"logits": (B, T, vocab_size)} of the probe's tokens."""
    # Megatron-core makes its tensors there
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    # it also imports these, seconds each, of which one forward needs none
    sys.modules.update(dict.fromkeys(("wandb", "torch.utils.tensorboard")))  # type: ignore[arg-type]
    torch.compile = lambda function=None, **_: function or (lambda f: f)  # type: ignore[assignment]
    from megatron.core import parallel_state, tensor_parallel

    tensor_parallel.get_cuda_rng_tracker = lambda *_, **__: NoGenerator()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    config, tensors = ModelConfig(**json.loads(shape.read_text())), TorchDist(path)
    model = gpt_model(config, tensors.shapes["embedding.word_embeddings.weight"][0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[fused_name(name)])
        probe = Probe.of(config)
        length = probe.tokens.shape[1]
        hidden = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
        logits: Tensor = model.eval()(probe.tokens, probe.positions, hidden)
    save_file({"logits": logits[..., : config.vocab_size].contiguous()}, output)
    dist.destroy_process_group()


def gpt_model(config: ModelConfig, rows: int):
    """Megatron-core's model of that shape, with so many rows of the embedding, in plain PyTorch."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    theirs = TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.mlp_size,
        num_attention_heads=config.num_attention_heads,
        layernorm_epsilon=config.layernorm_epsilon,
        activation_func=lambda x: F.gelu(x, approximate="tanh"),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        persist_layer_norm=False,
    )
    return GPTModel(
        theirs,
        get_gpt_layer_local_spec(),
        vocab_size=rows,
        max_sequence_length=config.max_position_embeddings,
        position_embedding_type="learned_absolute",
        share_embeddings_and_output_weights=True,
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
