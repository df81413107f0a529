"""The contenders of tools/benchmark/training_gpu.py that are not ours, built as their own users build
them: transformers' GPT-2 under autocast, and megatron-core's GPTModel with its own optimizer."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from training_peers import adamw

from megatron_yuyuan.config import Config
from megatron_yuyuan.model.attention_backend import backends_chosen

MicroBatches = Callable[[int], Iterator]
"""The micro batches of a step."""
Step = Callable[[int], float]


def transformers_step(
    config: Config, micro_batches: MicroBatches, device: torch.device, compiled: bool = False
) -> Step:
    """GPT2LMHeadModel: float32 weights, bfloat16 by autocast, SDPA with the body ours takes, fused
    AdamW. Its vocabulary is padded as ours is: an odd one would slow its largest product down."""
    from transformers import GPT2Config, GPT2LMHeadModel

    m, training = config.model, config.training
    shape = {
        "n_layer": m.num_layers,
        "n_embd": m.hidden_size,
        "n_head": m.num_attention_heads,
        "n_positions": m.max_position_embeddings,
        "vocab_size": m.padded_vocab_size,
        "resid_pdrop": m.hidden_dropout,
        "embd_pdrop": m.hidden_dropout,
        "attn_pdrop": m.attention_dropout,
    }
    with device:  # initial values of billions of parameters, computed where they live
        model = GPT2LMHeadModel(GPT2Config(**shape, attn_implementation="sdpa")).train()
    optimizer = adamw(list(model.parameters()), config.optimizer, True)
    forward = torch.compile(model) if compiled else model
    share = training.micro_batch_size / training.global_batch_size
    attention = (m.attention_backend, device, torch.bfloat16, False, m.attention_dropout)

    def step(number: int) -> float:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for micro in micro_batches(number):
            with torch.autocast(device.type, torch.bfloat16), backends_chosen(*attention):
                logits = forward(micro.tokens, use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1), micro.labels.flatten()) * share
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        optimizer.step()
        return total.item()

    return step


def megatron_step(config: Config, micro_batches: MicroBatches, device: torch.device) -> Step:
    """GPTModel of megatron-core, local spec: bfloat16 weights, float32 masters, moments and
    accumulated gradients by its own optimizer and DistributedDataParallel. Its attention is the
    unfused one: the local spec has no other."""
    if device.type != "cuda":
        raise RuntimeError("megatron-core trains on CUDA alone")
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    settings, model = megatron_model(config, device)
    reduced_in_float32 = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    model = DistributedDataParallel(settings, reduced_in_float32, model)
    o = config.optimizer
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=o.lr,
            weight_decay=o.weight_decay,
            adam_beta1=o.adam_beta1,
            adam_beta2=o.adam_beta2,
            adam_eps=o.adam_eps,
            clip_grad=o.clip_grad,
            bf16=True,
            params_dtype=torch.bfloat16,
        ),
        [model],
    )
    share = config.training.micro_batch_size / config.training.global_batch_size
    length = config.data.seq_length
    hidden = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).triu(1)

    def step(number: int) -> float:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for micro in micro_batches(number):
            losses = model(micro.tokens, micro.positions, hidden, labels=micro.labels)
            loss = losses.float().mean() * share
            loss.backward()
            total += loss.detach()
        finalize_model_grads([model])
        optimizer.step()
        return total.item()

    return step


def megatron_model(config: Config, device: torch.device):
    """megatron-core's settings, and its model under them."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import Float16Module

    from megatron_yuyuan.parallel import mesh

    mesh.start(config.replace(device=device.type).parallel)  # joins the process group
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(config.training.seed)
    m = config.model
    settings = TransformerConfig(
        num_layers=m.num_layers,
        hidden_size=m.hidden_size,
        num_attention_heads=m.num_attention_heads,
        hidden_dropout=m.hidden_dropout,
        attention_dropout=m.attention_dropout,
        bf16=True,
        params_dtype=torch.bfloat16,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        gradient_accumulation_fusion=False,  # needs a kernel of apex
        persist_layer_norm=False,
    )
    model = GPTModel(
        settings,
        get_gpt_layer_local_spec(),
        vocab_size=m.padded_vocab_size,
        max_sequence_length=m.max_position_embeddings,
        position_embedding_type="learned_absolute",
        share_embeddings_and_output_weights=True,
    )
    return settings, Float16Module(settings, model.to(device))


CONTENDERS: dict[str, Callable[[Config, MicroBatches, torch.device], Step]] = {
    "transformers": transformers_step,
    "transformers, compiled": partial(transformers_step, compiled=True),
    "megatron-core": megatron_step,
}
