"""A checkpoint of Megatron-core's GPTModel, found, and judged by its arguments to be this GPT-2.

DIR     torch_dist, as `megatron_directory` reads it
FILE    GPTModel.state_dict() of an undivided model, by torch.save or safetensors
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_yuyuan.checkpoint.hf_directory import SafetensorsFiles, read_pickled
from megatron_yuyuan.checkpoint.megatron import MegatronWeights, model_shape
from megatron_yuyuan.checkpoint.megatron_directory import TorchDist, find_torch_dist, read_arguments
from megatron_yuyuan.checkpoint.megatron_legacy import find_legacy
from megatron_yuyuan.config import ModelConfig
from megatron_yuyuan.errors import ConfigError, DataError, UnsafeError

COMPUTES_THE_SAME = {
    "position_embedding_type": ("learned_absolute",),
    "normalization": ("LayerNorm",),
    "apply_layernorm_1p": (False,),
    "swiglu": (False,),
    "squared_relu": (False,),
    "untie_embeddings_and_output_weights": (False,),
    "apply_residual_connection_post_layernorm": (False,),
}
"""Arguments of Megatron-LM's that change what is computed -> the values that are this GPT-2."""


@dataclass(frozen=True)
class MegatronSource:
    """A checkpoint whose tensors are read when they are asked for."""

    path: Path
    tensors: Mapping[str, Tensor]
    """By GPTModel's names, whole."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of all of them."""
    arguments: Namespace | None
    """What the model was trained with; None where that is not to be had without running code."""

    def weights(
        self, num_attention_heads: int, vocab_size: int
    ) -> tuple[ModelConfig, MegatronWeights]:
        """The model's shape, and its weights under our names. num_attention_heads: 0 where the arguments
        say it; vocab_size: tokens of its tokenizer, which no checkpoint of Megatron's says. Raises
        ConfigError and DataError."""
        _require_this_gpt2(self.arguments)
        heads = self._heads(num_attention_heads)
        said = [getattr(self.arguments, n, None) for n in ("norm_epsilon", "layernorm_epsilon")]
        epsilon = next(filter(None, said), 1e-5)  # the second name is of 2022 and before
        config = model_shape(self.shapes, heads, vocab_size, epsilon)
        trained = getattr(self.arguments, "num_layers", None) or config.num_layers
        if config.num_layers != trained:
            raise DataError(
                f"{self.path} has {config.num_layers} layers, and was trained with {trained}",
                "some of its files are missing",
                "the checkpoint as Megatron-LM saved it",
            )
        return config, MegatronWeights(self.tensors, self.shapes, config)

    def _heads(self, given: int) -> int:
        """The number of heads, which tensors do not show. Raises ConfigError."""
        said = getattr(self.arguments, "num_attention_heads", 0)
        if given and said and given != said:
            raise ConfigError(
                f"num_attention_heads={given}, but {self.path} was trained with {said}",
                "other heads are another model",
                "leave --num-attention-heads out",
            )
        if not (given or said):
            raise ConfigError(
                "num_attention_heads is not given",
                "tensors do not show it, and the checkpoint's arguments cannot be read without running code",
                "--num-attention-heads N, as the model was trained with",
            )
        return given or said


def open_source(path: Path, iteration: int | None = None) -> MegatronSource:
    """The checkpoint of `iteration`, None the tracker's, in a directory; or a file, which holds one.
    Raises ConfigError, DataError, and UnsafeError: legacy files, or one that holds more than tensors."""
    if path.is_file():
        return _open_file(path, iteration)
    if legacy := find_legacy(path, iteration):
        raise UnsafeError(
            f"{legacy} holds legacy mp_rank_* files",
            "they are pickles: opening them runs whatever they bring",
            f"tools/convert_checkpoint.py --from megatron --trust --load {path} --save RUN, if you know who wrote "
            "them, then --load RUN --finetune; or torch_dist, as Megatron-LM's --ckpt-convert-format writes",
        )
    found = find_torch_dist(path, iteration)
    tensors = TorchDist(found)
    return MegatronSource(found, tensors, tensors.shapes, read_arguments(found))


def _open_file(path: Path, iteration: int | None) -> MegatronSource:
    if iteration is not None:
        raise ConfigError(
            f"ckpt_step={iteration} and {path}", "a file holds one model", "leave --ckpt-step out"
        )
    is_safe = path.suffix == ".safetensors"
    tensors = SafetensorsFiles([path]) if is_safe else read_pickled(path)
    return MegatronSource(path, tensors, {n: tuple(t.shape) for n, t in tensors.items()}, None)


def _require_this_gpt2(arguments: Namespace | None) -> None:
    """Raises DataError where the model was trained to compute something else. Megatron-LM's fused GeLU and
    its OpenAI's are the tanh form; without either it is the exact one."""
    for name, accepted in COMPUTES_THE_SAME.items():
        value = getattr(arguments, name, accepted[0])
        if value not in accepted:
            raise DataError(
                f"the model was trained with {name} {value!r}",
                "this GPT-2 would compute something else",
                f"a model with {name} {accepted[0]!r}",
            )
    fused = getattr(arguments, "bias_gelu_fusion", True)
    if not fused and not getattr(arguments, "openai_gelu", False):
        raise DataError(
            "the checkpoint was trained with bias_gelu_fusion=False",
            "that is the exact GeLU, GPT-2's is the tanh form",
            "a model trained with the fused GeLU, or with --openai-gelu",
        )
