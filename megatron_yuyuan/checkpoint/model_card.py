"""README.md of an exported model: what it is, how it was trained as far as known, how to ask it,
its limits."""

from megatron_yuyuan.checkpoint.model import LoadedModel
from megatron_yuyuan.config_toml import from_dict

CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, medical, question-answering]
---

# {name}

A GPT-2 ({parameters:,} parameters: {layers} layers, width {width}, {heads} heads, {positions} positions, {vocabulary}
tokens) of megatron_yuyuan, which trains medical language models on PubMed and finetunes them on MedQuAD. These files
are in Hugging Face's format.

## Training

{training}

## Use

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{name}")
generator({example!r}, max_new_tokens={new_tokens}, do_sample=False)
```

Prompt and answer together have room for {positions} tokens.

A question is asked with the prompt `{prompt}`; the answer follows as `{answer}` and ends with `<|endoftext|>`. A model
that was only pretrained continues text and does not know this prompt.

## Limits

**Not medical advice.** The model writes what is likely, not what is true: it invents facts, doses and sources, and
repeats the errors and biases of its training texts. Do not use it to diagnose or treat anyone. It was trained on
English text. State the license of your weights and training data before you publish them.
"""


def model_card(loaded: LoadedModel, name: str) -> str:
    """Markdown with the YAML head that the Hugging Face Hub reads; `name` is the directory's."""
    config = loaded.model.config
    unpadded = (
        sum(p.numel() for p in loaded.model.parameters())
        - (config.padded_vocab_size - config.vocab_size) * config.hidden_size
    )
    return CARD.format(
        name=name,
        parameters=unpadded,
        layers=config.num_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        positions=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        training=_training(loaded.state),
        prompt=loaded.template.prompt,
        answer=loaded.template.answer,
        new_tokens=min(64, config.max_position_embeddings // 2),
        example=loaded.template.prompt_text("What is gout?"),
    )


def _training(state: dict) -> str:
    if not state["iteration"]:
        return "These weights were imported; how they were trained is not known here."
    config = from_dict(state["config"])
    start = (
        "from the weights of another run" if config.checkpoint.finetune else "from fresh weights"
    )
    return (
        f"{state['iteration']:,} optimizer steps {start}, {state['consumed_samples']:,} samples of at most "
        f"{config.data.seq_length} tokens, {config.training.global_batch_size} a step; AdamW, highest learning "
        f"rate {config.optimizer.lr:g}, seed {config.training.seed}."
    )
