"""Ours beside what others trust, GPT2LMHeadModel of transformers and GPTModel of megatron-core, from the
same weights on the same data, on the CPU in one process."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny import TINY, RandomText, build_trainer, largest_difference
from torch import Tensor, nn

from megatron_yuyuan.checkpoint.hf_format import from_huggingface, to_huggingface
from megatron_yuyuan.checkpoint.megatron import megatron_name
from megatron_yuyuan.checkpoint.megatron_logits import NoGenerator, gpt_model
from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.loader import Batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.train.schedule import learning_rate
from megatron_yuyuan.train.trainer import Trainer

STEPS = 10
CONFIG = TINY.replace(
    num_layers=3,
    vocab_size=128,  # megatron-core predicts padding too: there is none here
    micro_batch_size=4,
    train_iters=STEPS,
    weight_decay=1.0,
    clip_grad=0.5,
    device="cpu",
)
BOUND = 1e-5
"""Of logits, gradients and the losses of ten steps: max|a-b| / max|b|, per tensor."""
BOUND_OF_WEIGHTS = 2e-4
"""Of weights after ten steps: AdamW divides a gradient by its own size, also one that is mostly
rounding."""


@dataclass
class Transformers:
    """GPT2LMHeadModel under our names."""

    model: nn.Module

    def load(self, weights: dict[str, Tensor]) -> None:
        renamed = to_huggingface(weights, CONFIG.model)
        renamed["lm_head.weight"] = renamed["transformer.wte.weight"]
        self.model.load_state_dict(renamed)

    def renamed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_huggingface(tensors, CONFIG.model)

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch.tokens).logits

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(batch).flatten(0, 1), batch.labels.flatten())


@dataclass
class MegatronCore:
    """GPTModel under our names."""

    model: nn.Module

    def load(self, weights: dict[str, Tensor]) -> None:
        theirs = dict(self.model.named_parameters())
        assert theirs.keys() == {megatron_name(name) for name in weights}
        with torch.no_grad():
            for name, weight in weights.items():
                theirs[megatron_name(name)].copy_(weight)

    def renamed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [name for name, _ in GPT2(CONFIG.model).named_parameters()]
        return {name: tensors[megatron_name(name)] for name in names}

    def _forward(self, batch: Batch, labels: Tensor | None) -> Tensor:
        length = batch.tokens.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
        return self.model(batch.tokens, batch.positions, hidden, labels=labels)

    def logits(self, batch: Batch) -> Tensor:
        return self._forward(batch, None)

    def loss(self, batch: Batch) -> Tensor:
        learned = batch.labels != IGNORE
        return (self._forward(batch, batch.labels.clamp(min=0)) * learned).sum() / learned.sum()


def build_transformers() -> Transformers:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = CONFIG.model
    shape = {
        "n_layer": config.num_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }
    nothing_dropped = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return Transformers(GPT2LMHeadModel(GPT2Config(**shape, **nothing_dropped)))


def build_megatron() -> MegatronCore:
    return MegatronCore(gpt_model(CONFIG.model, CONFIG.model.vocab_size))


@pytest.fixture(scope="module")
def alone():
    """A process group of one, and a megatron-core that allocates on the CPU."""
    pytest.importorskip("megatron.core", reason="needs megatron-core: pip install '.[megatron]'")
    from megatron.core import parallel_state, tensor_parallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: "cpu")
        patch.setattr(tensor_parallel, "get_cuda_rng_tracker", lambda *_, **__: NoGenerator())
        yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.fixture
def trainer(alone) -> Trainer:
    """Ours, with biases and LayerNorms that are not 0 and 1, so that each of them shows."""
    trainer, noise = build_trainer(CONFIG), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.state.stages[0].parameters():
            local = parameter.to_local()
            local += 0.1 * torch.randn(local.shape, generator=noise)
    return trainer


@pytest.fixture(params=[build_transformers, build_megatron], ids=["transformers", "megatron-core"])
def peer(request, trainer):
    """A peer with our weights."""
    peer = request.param()
    peer.load(weights(trainer))
    return peer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    parameters = trainer.state.stages[0].named_parameters()
    return {name: p.detach().to_local().clone() for name, p in parameters}


def batch_after(trainer: Trainer, consumed: int) -> Batch:
    return trainer.batch(RandomText(CONFIG), consumed)


def gradients(trainer: Trainer, peer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours, through the trainer, and the peer's, of the first batch."""
    loss, _ = trainer.gradients(RandomText(CONFIG))
    expected = peer.loss(batch_after(trainer, 0))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=BOUND)
    theirs = {name: p.grad for name, p in peer.model.named_parameters()}
    ours = trainer.state.stages[0].named_parameters()
    return {name: p.grad.to_local() for name, p in ours}, peer.renamed(theirs)


def test_logits_are_the_peers(trainer, peer):
    batch, ours = batch_after(trainer, 0), GPT2(CONFIG.model)
    ours.load_state_dict(weights(trainer))
    with torch.no_grad():
        logits, expected = ours(batch.tokens, **batch.model_inputs(), step=0), peer.logits(batch)
    assert (logits - expected).abs().max() <= BOUND * expected.abs().max()


def test_loss_and_every_gradient_are_the_peers(trainer, peer):
    difference, name = largest_difference(*gradients(trainer, peer))
    assert difference <= BOUND, name


@pytest.mark.parametrize("name", ["h.1.attn.c_attn.bias", "h.2.mlp.c_proj.weight", "wpe.weight"])
def test_a_weight_a_little_off_would_be_seen(trainer, peer, name):
    perturbed = weights(trainer)
    perturbed[name].view(-1)[70] += 0.1
    peer.load(perturbed)
    batch, expected = batch_after(trainer, 0), weights(trainer)
    ours = GPT2(CONFIG.model)
    ours.load_state_dict(expected)
    with torch.no_grad():
        difference = (
            (ours(batch.tokens, **batch.model_inputs(), step=0) - peer.logits(batch)).abs().max()
        )
    assert difference > 100 * BOUND


def without_key_bias(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The bias of the keys moves no logit: it adds the same to all scores of a query. What there is of
    its gradient is rounding, which AdamW divides by its own size and makes whole steps of."""
    heads = CONFIG.model.num_attention_heads
    return {
        name: w.unflatten(0, (heads, 3, -1))[:, ::2] if name.endswith("c_attn.bias") else w
        for name, w in weights.items()
    }


def ten_steps(peer, trainer: Trainer, weight_decay: float) -> list[float]:
    """The peer's losses under torch's AdamW with our groups, clipping and rates."""
    parameters, optimizer = list(peer.model.parameters()), CONFIG.optimizer
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(optimizer.adam_beta1, optimizer.adam_beta2),
        eps=optimizer.adam_eps,
    )
    losses = []
    for step in range(STEPS):
        adamw.zero_grad()
        loss = peer.loss(batch_after(trainer, step * CONFIG.training.global_batch_size))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optimizer.clip_grad)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step + 1, STEPS, optimizer)
        adamw.step()
        losses.append(loss.item())
    return losses


def test_ten_steps_are_the_peers(trainer, peer):
    before = weights(trainer)
    expected = ten_steps(peer, trainer, CONFIG.optimizer.weight_decay)
    losses = [trainer.step(RandomText(CONFIG))["lm_loss"] for _ in range(STEPS)]
    assert losses == pytest.approx(expected, rel=BOUND)
    theirs = peer.renamed({name: p.detach() for name, p in peer.model.named_parameters()})
    difference, name = largest_difference(
        without_key_bias(weights(trainer)), without_key_bias(theirs)
    )
    assert difference <= BOUND_OF_WEIGHTS, name
    assert largest_difference(before, theirs)[0] > 100 * BOUND_OF_WEIGHTS  # not vacuous


def test_another_weight_decay_would_be_seen(trainer, peer):
    expected = ten_steps(peer, trainer, 0.0)
    losses = [trainer.step(RandomText(CONFIG))["lm_loss"] for _ in range(STEPS)]
    assert abs(losses[-1] / expected[-1] - 1) > 10 * BOUND
