"""LoRA is Hugging Face PEFT's: the same factors beside the same matrices have its loss and its gradients."""

import pytest
import torch
from tiny import TINY, RandomText, build_trainer, largest_difference

from megatron_yuyuan.checkpoint.hf_format import (
    huggingface_config,
    huggingface_tensor,
    to_huggingface,
)
from megatron_yuyuan.config import IGNORE
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.model.lora import LORA_B, factor_shapes
from megatron_yuyuan.train.state import named_parameters

CONFIG = TINY.replace(num_layers=2, lora_rank=3, lora_alpha=6.0)


def ours(config) -> tuple[float, dict, dict]:
    """Loss of a batch, every weight, and the gradients, with factors B that are not 0."""
    trainer, noise = build_trainer(config), torch.Generator().manual_seed(0)
    parameters = dict(named_parameters(trainer.state.stages))
    for name, parameter in parameters.items():
        if name.endswith(LORA_B):
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.detach().to_local().copy_(0.2 * drawn)
    weights = {name: p.detach().full_tensor().clone() for name, p in parameters.items()}
    loss, *_ = trainer.gradients(RandomText())
    return (
        loss,
        weights,
        {n: p.grad.full_tensor() for n, p in parameters.items() if p.requires_grad},
    )


def as_peft_orders(name: str, factor: torch.Tensor) -> torch.Tensor:
    """Rows of B beside c_attn stand (q|k|v, head, D) there; the rest is as it is here."""
    if not name.endswith(LORA_B):
        return factor
    module = name.rpartition(".")[0]
    return huggingface_tensor(f"{module}.weight", factor, CONFIG.model).t()


def by_peft(weights: dict) -> tuple[float, dict]:
    """Loss and gradients by PEFT, beside a GPT2LMHeadModel."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    described = huggingface_config(CONFIG.model, 0, "float32")
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**described))
    own = {n: t for n, t in weights.items() if n not in factor_shapes(CONFIG.model)}
    base.load_state_dict(to_huggingface(own, CONFIG.model), strict=False)
    base.tie_weights()
    matrices = ["c_attn", "c_proj", "c_fc"]
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=matrices, fan_in_fan_out=True)
    model = peft.get_peft_model(base, lora)
    factors = {
        name.removeprefix("base_model.model.transformer.").removesuffix(
            ".default.weight"
        ): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert factors.keys() == factor_shapes(CONFIG.model).keys()
    with torch.no_grad():
        for name, parameter in factors.items():
            parameter.copy_(as_peft_orders(name, weights[name]))
    batch = read_batch(RandomText(), 0, 8, 0, 1, "cpu")
    logits = model(input_ids=batch.tokens).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in factors.items()}


@pytest.mark.slow  # PEFT and what it imports
def test_loss_and_gradients_are_pefts(ranks):
    pytest.importorskip("peft", reason="needs peft: pip install peft")
    loss, weights, gradients = ranks.run(1, ours, CONFIG)
    expected_loss, expected = by_peft(weights)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    found = {name: as_peft_orders(name, gradient) for name, gradient in gradients.items()}
    assert largest_difference(found, expected)[0] <= 1e-5
    assert largest_difference(gradients, expected)[0] > 1e-2  # the order of the rows matters
