"""A run that is interrupted and resumed, without the disk in between."""

import json

from tiny import RandomText, build_trainer

FIGURES = ("iteration", "lm_loss", "grad_norm", "loss_scale", "reason")


def in_portions(config, first: int) -> list[list[list]]:
    """The figures of six steps taken at once, and of the same in two runs: the second begins after
    `first` of them, with the tensors and the history of the one before."""
    whole, samples = build_trainer(config, one_layout=True), RandomText()
    expected = [whole.step(samples) for _ in range(6)]
    before, after = build_trainer(config, one_layout=True), build_trainer(config, one_layout=True)
    actual = [before.step(samples) for _ in range(first)]
    state, kept = before.state, before.state.tensors()

    def copied(tensors: dict) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])

    after.state.fill(copied)
    after.state.continue_after(state.iteration, state.consumed_samples, state.optimizer_steps)
    after.state.recall(json.loads(json.dumps(state.history())))
    actual += [after.step(samples) for _ in range(6 - first)]
    return [[[step.get(name) for name in FIGURES] for step in run] for run in (expected, actual)]
