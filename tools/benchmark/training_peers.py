"""What others take for a training step, for tools/benchmark/training_cpu.py: transformers' GPT-2, and
torch's own tensor parallelism. All start from the weights that our trainer starts from."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from megatron_yuyuan.checkpoint.hf_format import PARAMETER_PREFIX, to_huggingface
from megatron_yuyuan.config import Config, ModelConfig, OptimizerConfig
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights

BatchOf = Callable[[int], Batch]
"""The batch of a step."""
Candidate = Callable[[int], float]
"""Takes the step of that number and returns its loss."""


def adamw(parameters: list, o: OptimizerConfig, fused: bool | None) -> torch.optim.AdamW:
    """torch's AdamW with our groups and settings. Tensors and DTensors go into groups of their own, for
    fused AdamW takes no mixture."""
    groups: dict[tuple, list] = {}
    for parameter in parameters:
        groups.setdefault((type(parameter.data), parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": o.weight_decay * matrices}
            for (_, matrices), group in groups.items()
        ],
        lr=o.lr,
        betas=(o.adam_beta1, o.adam_beta2),
        eps=o.adam_eps,
        fused=fused,
    )


def initial_state(config: Config) -> dict[str, Tensor]:
    """The weights that our trainer starts from, undivided, under our names."""
    model = GPT2(config.model)
    init_weights(model, config.training.seed)
    return model.state_dict()


def transformers_step(config: Config, batch_of: BatchOf, fused: bool | None) -> Candidate:
    """A step with transformers' GPT-2 and SDPA."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {
        "n_layer": config.model.num_layers,
        "n_embd": config.model.hidden_size,
        "n_head": config.model.num_attention_heads,
        "n_positions": config.model.max_position_embeddings,
        "vocab_size": config.model.vocab_size,
        "layer_norm_epsilon": config.model.layernorm_epsilon,
    }
    unused: dict[str, int | None] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    unused |= {"bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(**shape, **unused, attn_implementation="sdpa")).train()
    state = to_huggingface(initial_state(config), config.model)
    model.transformer.load_state_dict(
        {n.removeprefix(PARAMETER_PREFIX): t for n, t in state.items()}
    )
    optimizer = adamw(list(model.parameters()), config.optimizer, fused)

    def step(number: int) -> float:
        batch = batch_of(number)
        optimizer.zero_grad()
        logits = model(batch.tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad)
        optimizer.step()
        return loss.item()

    return step


def dtensor_step(config: Config, batch_of: BatchOf, fused: bool | None) -> Candidate:
    """A step of the plain GPT-2 under torch's plan and its vocabulary-parallel loss."""
    model = under_torchs_plan(config, init_device_mesh("cpu", (2,)))
    optimizer = adamw(list(model.parameters()), config.optimizer, fused)

    def step(number: int) -> float:
        batch = batch_of(number)
        optimizer.zero_grad()
        with loss_parallel():
            loss = model(batch.tokens, batch.labels)
            loss.backward()
        optimizer.step()
        return loss.item()

    return step


def under_torchs_plan(config: Config, mesh: DeviceMesh) -> "PlainGPT2":
    """The plain GPT-2, its matrices divided by `parallelize_module`."""
    model = PlainGPT2(config.model)
    model.load_state_dict(initial_state(config))
    plan = {
        "wte": RowwiseParallel(input_layouts=Replicate()),
        "h.*.attn.c_attn": ColwiseParallel(),
        "h.*.attn.c_proj": RowwiseParallel(),
        "h.*.mlp.c_fc": ColwiseParallel(),
        "h.*.mlp.c_proj": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan)
    return model.train()


class PlainGPT2(nn.Module):
    """Our GPT-2 without dropout, as one writes it in plain torch: the same mathematics, sizes and names of
    parameters, made of torch's own layers, which are all that `parallelize_module` divides. Letters
    as in model/gpt2.py."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of tokens, labels (B, T). Logits are a DTensor, divided over the vocabulary
        as the embedding is."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        weight = self.wte.weight
        assert isinstance(weight, DTensor)
        x = DTensor.from_local(self.ln_f(x), weight.device_mesh, [Replicate()], run_check=False)
        return F.cross_entropy(F.linear(x, weight).flatten(0, 1), labels.flatten())


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x, return (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attn = PlainAttention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = PlainMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainAttention(nn.Module):
    """Causal self-attention by SDPA. x, return (B, T, C); the heads that are here are counted by -1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.c_attn(x).unflatten(2, (-1, 3, self.head_dim))  # (B, T, N, 3, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))  # (B, N, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    """c_proj(gelu(c_fc(x))). x, return (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.mlp_size)
        self.c_proj = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
