"""The same texts, continued at every evaluation with the same seed: how a model learns to write, for
people who do not read loss curves."""

import time
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from megatron_yuyuan.config import Config
from megatron_yuyuan.data.template import TEMPLATE
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.evaluate.generate import generate_batch
from megatron_yuyuan.log import Log
from megatron_yuyuan.parallel.forward import DividedModel
from megatron_yuyuan.train.state import TrainState

PROMPTS = (
    "Aspirin is used to",
    "The most common symptoms of diabetes are",
    "Patients with high blood pressure should",
)
"""What a pretraining continues, unless eval_prompts names others."""
QUESTIONS = (
    "What is diabetes?",
    "What are the symptoms of asthma?",
    "How is high blood pressure treated?",
)
"""What a finetuning is asked."""
SAMPLING: dict = {"temperature": 0.7, "top_k": 40, "seed": 1}
"""Drawn, not greedy: the likeliest words of a young model repeat themselves. The seed is the same at
every evaluation, so that what changes is the model."""


class OneVoice(DividedModel):
    """A divided model whose logits are global rank 0's on every rank: ranks that drew different tokens,
    for a last bit, would end their texts apart and wait for each other for ever."""

    def __call__(self, tokens: Tensor, **inputs) -> Tensor:
        logits = super().__call__(tokens, **inputs)
        dist.broadcast(logits, src=0)
        return logits


def continue_prompts(
    config: Config, state: TrainState, tokenizer: Tokenizer, questions: bool, log: Log
) -> Callable[[], None]:
    """What continues the prompts of a run with its model as it is, and says so: a `continuations`
    event. Every rank calls it at the same steps.

    questions: whether the run learns questions and answers, and is asked in their template. It changes
    nothing that training reads: no generator but its own, no parameter, no gradient. Raises DataError
    for a prompt that the tokenizer refuses.
    """
    prompts = config.logging.eval_prompts or (QUESTIONS if questions else PROMPTS)
    new, eod = config.logging.eval_prompt_tokens, tokenizer.eod
    if not new:
        return lambda: None
    asked = map(TEMPLATE.prompt_text, prompts) if questions else prompts
    room = max(1, config.model.max_position_embeddings - new)
    ids = [tokenizer.encode(text)[-room:] for text in asked]  # too long: without its beginning
    model = OneVoice(state.stages, state.mesh, config)

    def text(ids: list[int]) -> str:
        """Of ids that are text; a model may have more rows than its tokenizer has tokens."""
        return tokenizer.decode(i for i in ids if i != eod and i < tokenizer.vocab_size)

    def continued() -> None:
        begun = time.perf_counter()
        with model.between_steps():
            found = generate_batch(model, ids, new, eod=eod, **SAMPLING)
        pairs = zip(prompts, map(text, found), strict=True)
        texts = [{"prompt": prompt, "continuation": more} for prompt, more in pairs]
        seconds = time.perf_counter() - begun
        log.event("continuations", iteration=state.iteration, texts=texts, seconds=seconds)

    return continued
