"""LoRA: any layout learns what plain autograd learns of W + s B A, and nothing else."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from tiny import TINY, Layout, RandomText, build_trainer

from megatron_yuyuan.checkpoint.dcp import load_tensors, save_checkpoint
from megatron_yuyuan.data.loader import read_batch
from megatron_yuyuan.model.gpt2 import GPT2
from megatron_yuyuan.model.initialization import init_weights
from megatron_yuyuan.model.lora import factor_shapes, merge_factors
from megatron_yuyuan.train.state import named_parameters

CONFIG = TINY.replace(num_layers=4, lora_rank=3, lora_alpha=6.0, hidden_dropout=0.1)
STEPS = 3


def gathered(trainer, of) -> dict[str, torch.Tensor]:
    """of(parameter), whole, for every parameter of every stage that it is not None for."""
    mine = {}
    for name, parameter in named_parameters(trainer.state.stages):
        tensor = of(parameter)
        if tensor is not None:
            mine[name] = tensor.full_tensor().clone()
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {name: tensor for part in parts for name, tensor in part.items()}


def learn(config):
    """Figures of a few steps, then all weights, and the gradients of the next step."""
    trainer, samples = build_trainer(config), RandomText()
    taken = [trainer.step(samples) for _ in range(STEPS)]
    figures = [step[key] for step in taken for key in ("lm_loss", "grad_norm")]
    figures.append(trainer.evaluate(RandomText(length=13))["validation_loss"])
    weights = gathered(trainer, lambda p: p.detach())
    figures += trainer.gradients(samples)
    return figures, weights, gathered(trainer, lambda p: p.grad)


def by_autograd(config, weights: dict[str, torch.Tensor]):
    """Loss and gradients of the factors on the undivided model with merged matrices."""
    model = GPT2(config.model, config.training.seed)
    factors = {name: weights[name].requires_grad_() for name in factor_shapes(config.model)}
    merged = {}
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        merged[name] = weights[name]
        if f"{module}.lora_B" in factors:
            product = factors[f"{module}.lora_B"] @ factors[f"{module}.lora_A"]
            merged[name] = weights[name] + 2.0 * product
        assert parameter.shape == merged[name].shape
    batch = read_batch(RandomText(), 8 * STEPS, 8, 0, 1, "cpu")
    inputs = batch.model_inputs() | {"step": STEPS, "labels": batch.labels}
    loss, count = torch.func.functional_call(model, merged, (batch.tokens,), inputs)
    (loss / count).sum().backward()
    return (loss / count).item(), {name: factor.grad for name, factor in factors.items()}


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks.run(1, learn, CONFIG)


@pytest.mark.parametrize("layout", [Layout(1, 1, 2), Layout(2, 2, 2, True)], ids=str)
def test_any_layout_learns_the_factors_that_one_process_learns(ranks, alone, layout):
    figures, weights, gradients = ranks.run(layout.ranks, learn, layout.of(CONFIG))
    assert figures == pytest.approx(alone[0], rel=1e-5)
    assert set(gradients) == set(factor_shapes(CONFIG.model))
    loss, expected = by_autograd(CONFIG, weights)
    assert figures[-2] == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 2e-5 * expected[name].abs().max(), name
        assert (weights[name] - alone[1][name]).abs().max() <= 1e-4 * weights[name].abs().max()


def test_all_but_the_factors_stays_as_it_was(alone):
    _, weights, _ = alone
    base = GPT2(CONFIG.model)
    init_weights(base, CONFIG.training.seed)
    assert set(weights) == set(base.state_dict()) | set(factor_shapes(CONFIG.model))
    for name, tensor in base.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert all(weights[name].abs().max() > 1e-3 for name in factor_shapes(CONFIG.model))


def test_before_the_first_step_it_is_the_base(ranks):
    """B begins at 0: the first loss is that of the model without factors."""
    without = ranks.run(1, first_loss, CONFIG.replace(lora_rank=0))
    assert ranks.run(2, first_loss, Layout(1, 1, 2, True).of(CONFIG)) == pytest.approx(without)


def first_loss(config) -> float:
    return build_trainer(config).gradients(RandomText())[0]


def test_only_the_chosen_matrices_get_factors(ranks):
    config = CONFIG.replace(lora_target_modules=("attn.c_attn", "mlp.c_proj"))
    figures, weights, _ = ranks.run(2, learn, Layout(1, 1, 2).of(config))
    factors = {name for name in weights if "lora" in name}
    assert factors == set(factor_shapes(config.model)) and len(factors) == 4 * 2 * 2
    assert figures[-2] == pytest.approx(by_autograd(config, weights)[0], rel=1e-5)


def test_a_schedule_with_a_divided_backward_learns_the_same(ranks, alone):
    config = Layout(2, 1, 1).of(CONFIG).replace(pipeline_schedule="ZBVZeroBubble")
    assert ranks.run(2, learn, config)[0] == pytest.approx(alone[0], rel=1e-5)


def saved_and_continued(config, directory) -> tuple[list[list[float]], float]:
    """Save after three steps, and take two more; the same from the checkpoint in a fresh state. Returns
    the losses of both, and the validation loss of what was saved."""
    trainer, samples = build_trainer(config), RandomText()
    for _ in range(STEPS):
        trainer.step(samples)
    state = trainer.state
    path = save_checkpoint(directory, STEPS, state.tensors(), {"config": config.to_dict()})
    validation_loss = trainer.evaluate(RandomText(length=13))["validation_loss"]
    continued = build_trainer(config)
    continued.state.fill(partial(load_tensors, path))
    continued.state.continue_after(STEPS, state.consumed_samples, state.optimizer_steps)
    runs = [[t.step(samples)["lm_loss"] for _ in range(2)] for t in (trainer, continued)]
    return runs, validation_loss


def test_a_checkpoint_goes_on_and_is_merged(ranks, tmp_path):
    config = CONFIG.replace(hidden_dropout=0.0)
    runs, validation_loss = ranks.run(2, saved_and_continued, Layout(1, 1, 2).of(config), tmp_path)
    assert runs[0] == runs[1]
    shapes = {n: tuple(t.shape) for n, t in GPT2(config.model).state_dict().items()}
    tensors = {n: torch.empty(shape) for n, shape in (shapes | factor_shapes(config.model)).items()}
    load_tensors(tmp_path / "iter_0000003", {f"model.{n}": t for n, t in tensors.items()})
    losses = []
    for merge in (False, True):
        if merge:
            merge_factors(tensors, tensors, config.model)
        model = GPT2(config.model).eval()
        model.load_state_dict({name: tensors[name] for name in shapes})
        batch = read_batch(RandomText(length=13), 0, 13, 0, 1, "cpu")
        loss, count = model(batch.tokens, **batch.model_inputs(), step=0, labels=batch.labels)
        losses.append((loss / count).item())
    assert losses[1] == pytest.approx(validation_loss, rel=1e-5)
    assert abs(losses[0] / losses[1] - 1) > 1e-3  # the factors matter
