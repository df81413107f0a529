"""Which configurations can work: everything that cannot is refused, all at once, before a process
group exists."""

from megatron_yuyuan.config import Config, TrainingConfig, config_fields, flag_of
from megatron_yuyuan.errors import ConfigError, ConfigErrors
from megatron_yuyuan.validation.float8 import float8_problems
from megatron_yuyuan.validation.layout import Problems, divisors, layout_problems, one_of
from megatron_yuyuan.validation.lora import lora_problems
from megatron_yuyuan.validation.rollback import rollback_problems
from megatron_yuyuan.validation.schedule import learning_rate_problems, length_problems


def validate(config: Config, world_size: int) -> None:
    """Refuse what cannot work on `world_size` ranks. Raises ConfigErrors, naming every problem.

    Called once the shape of the model is known, from flags or from a checkpoint.
    """
    problems = list(_missing(config))
    if not problems:  # these divide by the numbers that could be missing
        problems = [*_model(config), *_precision(config), *lora_problems(config.model)]
        problems += [*layout_problems(config, world_size), *_retention(config)]
        problems += [*rollback_problems(config)]
    problems += [*_attention(config), *length_problems(config), *learning_rate_problems(config)]
    problems += [*_optimizer(config), *_logging(config, world_size), *_without_gpu(config)]
    problems += [*_without_effect(config)]
    if problems:
        raise ConfigErrors(problems)


LARGEST = {
    **dict.fromkeys(("hidden_size", "num_layers", "num_attention_heads", "vocab_size"), 2**31),
    "distributed_timeout_minutes": 10**6,
}
"""Setting -> the first number that is too large; of others 2**63."""


def _missing(config: Config) -> Problems:
    """Values below zero or too large, and zeros where a number is needed."""
    needed = {
        *("num_layers", "hidden_size", "num_attention_heads", "make_vocab_size_divisible_by"),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size"),
        *("num_distributed_optimizer_instances", "initial_loss_scale"),
        *("min_loss_scale", "loss_scale_window", "hysteresis"),
        *("micro_batch_size", "seq_length", "log_interval", "distributed_timeout_minutes"),
    }
    fields = config_fields()
    for name, value in config.values().items():
        is_number = fields[name][1].type in (int, float)
        if is_number and not value >= 0:
            why = "sizes, rates and intervals are never negative"
            yield ConfigError(f"{name}={value}", why, "0 or more")
        elif is_number and value >= LARGEST.get(name, 2**63):
            why = "nothing can hold, count or wait for so much"
            remedy = f"a number below {LARGEST.get(name, 2**63)}"
            yield ConfigError(f"{name}={value} is too large", why, remedy)
        elif name in needed and value == 0:
            flag = f"{flag_of(name)} N, or --config FILE.toml"
            yield ConfigError(f"{name} is not given", "nothing can be built without it", flag)


DYNAMIC_SCALE = ("initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis")
NEEDED_BY = {
    "save": (
        "async_save",
        "save_retain_interval",
        "keep_last",
        "keep_best",
        "log_digests",
        "rollback_iters",
    ),
    "save_interval": ("save_retain_interval", "rollback_iters"),
    "rollback_iters": ("rollback_skip_batches", "max_rollbacks"),
    "lora_rank": ("lora_alpha", "lora_target_modules"),
    "profile": ("profile_step_start", "profile_step_end", "profile_ranks"),
    "eval_prompt_tokens": ("eval_prompts",),
    "fp16": ("loss_scale", *DYNAMIC_SCALE),
    "dry_run": ("dry_run_ranks", "gpu_memory_gib"),
}
"""Setting -> what does nothing without it."""


def _without_effect(config: Config) -> Problems:
    """Settings that would be ignored silently."""
    fields, values = config_fields(), config.values()
    for needed, names in NEEDED_BY.items():
        given = [name for name in names if values[name] != fields[name][1].default]
        if given and not values[needed]:
            flag = flag_of(needed)
            what = f"{' and '.join(given)} without {needed}"
            yield ConfigError(what, "nothing would come of it", f"{flag}, or leave it out")
    if values["strict"] and not (values["save"] or values["load"]):
        what, why = "strict without save or load", "there is no run to be continued"
        yield ConfigError(what, why, "--save DIR, or leave it out")
    if values["ckpt_step"] and not (values["save"] or values["load"]):
        what, why = "ckpt_step without save or load", "it chooses among the checkpoints of a run"
        yield ConfigError(what, why, "--load DIR, or leave it out")


def _model(config: Config) -> Problems:
    """The shape of the model in itself."""
    m, length = config.model, config.data.seq_length
    if m.hidden_size % m.num_attention_heads:
        yield ConfigError(
            f"hidden_size={m.hidden_size} is not a multiple of "
            f"num_attention_heads={m.num_attention_heads}",
            "heads share the width equally",
            f"num_attention_heads {one_of(divisors(m.hidden_size), m.num_attention_heads)}",
        )
    if m.max_position_embeddings and length > m.max_position_embeddings:
        yield ConfigError(
            f"seq_length={length} exceeds max_position_embeddings={m.max_position_embeddings}",
            "every token needs a row of the position table",
            f"--seq-length {m.max_position_embeddings}",
        )
    for name in ("hidden_dropout", "attention_dropout"):
        if getattr(m, name) >= 1:
            why = "nothing would be left to learn from"
            yield ConfigError(f"{name}={getattr(m, name)}", why, "0 to 0.9")


def _attention(config: Config) -> Problems:
    """Which attention computes, and whether it can compute what is asked of it."""
    m, half = config.model, config.training.bf16 or config.training.fp16
    asked = f"attention_backend={m.attention_backend}"
    of_sdpa = m.attention_backend in ("flash", "fused", "efficient", "unfused")
    if m.attention_unfused and of_sdpa:
        what = f"{asked} with attention_impl=fused_softmax"
        yield ConfigError(what, "it chooses a body of attention_impl=sdpa", "one of the two")
    elif of_sdpa and m.attention_dropout_counted:
        yield ConfigError(
            f"{asked} with attention_dropout={m.attention_dropout} by the counter",
            "fused attention cannot drop by the counter: training would not use it",
            "--attention-dropout-rng torch, --attention-dropout 0, or leave the backend out",
        )
    if m.attention_unfused and m.attention_dropout and not m.attention_dropout_counted:
        yield ConfigError(
            "attention_dropout_rng=torch with attention_impl=fused_softmax (attention_backend=local)",
            "unfused attention drops by the counter",
            "--attention-dropout-rng counter",
        )
    divided = "packing" if config.data.packing else "reset_attention_mask"
    if m.attention_unfused and config.data.divides_attention:
        yield ConfigError(
            f"{divided} with attention_impl=fused_softmax (attention_backend=local)",
            "its kernel knows the causal mask alone, and would not be used",
            "--attention-impl sdpa",
        )
    if m.attention_backend in ("flash", "fused"):
        if not half:
            why = "it computes in half precision alone"
            yield ConfigError(f"{asked} in float32", why, "--bf16, or --attention-backend auto")
        if config.data.divides_attention:
            why = "it knows the causal mask alone, no document's"
            yield ConfigError(f"{asked} with {divided}", why, "efficient, or auto")
    if m.attention_backend == "fused" and config.training.is_deterministic:
        what = f"{asked} with deterministic_mode or verify_every"
        yield ConfigError(what, "cuDNN's sums have no fixed order", "flash, or auto")
    if m.attention_backend == "fused" and m.attention_dropout:
        yield ConfigError(
            f"attention_backend=fused with attention_dropout={m.attention_dropout}",
            "cuDNN rounds the probability to a multiple of 1/16",
            "--attention-backend flash, or --attention-dropout 0",
        )


def _optimizer(config: Config) -> Problems:
    """AdamW's constants."""
    for name in ("adam_beta1", "adam_beta2"):
        value = getattr(config.optimizer, name)
        if value >= 1:
            why = "a mean that forgets nothing never begins"
            yield ConfigError(f"{name}={value}", why, "0.9 to 0.999")


def _logging(config: Config, world_size: int) -> Problems:
    """Where a run is shown and traced."""
    log, save = config.logging, config.checkpoint.save
    if log.wandb_project and not log.wandb_exp_name:
        why = "Weights & Biases lists runs by their names"
        yield ConfigError("wandb_project without wandb_exp_name", why, "--wandb-exp-name NAME")
    if log.wandb_project and not (log.wandb_save_dir or save):
        what = "wandb_project without wandb_save_dir, and there is no --save"
        why = "it keeps files in one of the two"
        yield ConfigError(what, why, "--wandb-save-dir DIR, or --save DIR")
    if (log.wandb_exp_name or log.wandb_save_dir) and not log.wandb_project:
        what = "wandb_exp_name or wandb_save_dir without wandb_project"
        yield ConfigError(what, "nothing is reported without a project", "--wandb-project NAME")
    if not all(map(str.strip, log.eval_prompts)):
        what = "eval_prompts has an empty text"
        yield ConfigError(what, "a text continues at least one token", "texts, or leave it out")
    if log.profile and not save:
        why = "the traces are written to SAVE/profile"
        yield ConfigError("profile, but there is no --save", why, "--save DIR")
    start, end = log.profile_step_start, log.profile_step_end
    if log.profile and not 0 < start < end:
        yield ConfigError(
            f"profile_step_start={start}, profile_step_end={end}",
            "iterations are counted from 1, and the last one is not in the trace",
            f"--profile-step-start {max(1, start)} --profile-step-end {max(1, start) + 2}",
        )
    absent = [rank for rank in log.profile_ranks if not 0 <= rank < world_size]
    if absent:
        what = f"profile_ranks has {', '.join(map(str, absent))}"
        why = f"the ranks of this job are 0 to {world_size - 1}"
        yield ConfigError(what, why, "ranks of these, or leave it out")


def _precision(config: Config) -> Problems:
    """What is computed in, and the loss scale that float16 needs."""
    t = config.training
    if t.fp16 and t.bf16:
        yield ConfigError("fp16 and bf16", "a run computes in one dtype", "one of the two")
    if t.fp8_format != "none":
        yield from float8_problems(config)
    given = [name for name in DYNAMIC_SCALE if getattr(t, name) != getattr(TrainingConfig(), name)]
    if given and t.loss_scale:
        what = f"{' and '.join(given)} with loss_scale={t.loss_scale}"
        yield ConfigError(what, "they move a scale that is not given", "one of the two")
    if t.min_loss_scale > t.initial_loss_scale:
        yield ConfigError(
            f"min_loss_scale={t.min_loss_scale} is above initial_loss_scale={t.initial_loss_scale}",
            "the scale never falls below min_loss_scale",
            f"--min-loss-scale {t.initial_loss_scale}",
        )


def _without_gpu(config: Config) -> Problems:
    """Settings that need a GPU, with device=cpu."""
    p = config.parallel
    if p.device != "cpu":
        return
    if p.kernels in ("cuda", "apex"):
        yield ConfigError(
            f"kernels={p.kernels} with device=cpu",
            "they run on a GPU alone",
            "--kernels auto, or --device cuda",
        )
    if p.distributed_backend == "nccl":
        yield ConfigError(
            "distributed_backend=nccl on the CPU",
            "nccl carries CUDA tensors only",
            "gloo, or leave it out",
        )


def _retention(config: Config) -> Problems:
    """Which checkpoints are kept."""
    t, c = config.training, config.checkpoint
    if c.save_interval and c.save_retain_interval % c.save_interval:
        multiple = -(-c.save_retain_interval // c.save_interval) * c.save_interval
        yield ConfigError(
            f"save_retain_interval={c.save_retain_interval} is not a multiple of "
            f"save_interval={c.save_interval}",
            "it chooses among the iterations that are saved",
            f"--save-retain-interval {multiple}",
        )
    if c.keep_best and (not t.eval_iters or not t.eval_interval):
        yield ConfigError(
            f"keep_best={c.keep_best} with eval_interval={t.eval_interval} and eval_iters={t.eval_iters}",
            "the best are those of lowest validation loss",
            "--eval-interval and --eval-iters above 0, or --keep-last",
        )
    elif c.keep_best and c.save_interval % t.eval_interval:
        yield ConfigError(
            f"keep_best={c.keep_best}, but save_interval={c.save_interval} is not a multiple of "
            f"eval_interval={t.eval_interval}",
            "a checkpoint is judged by the evaluation of its own iteration",
            f"--eval-interval {c.save_interval}",
        )
