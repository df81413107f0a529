"""Every knob, once: its name, type, default and meaning. Flags and TOML files are generated from
these classes.

The names are Megatron-LM's arguments. A TOML file groups them in tables named as the fields of
`Config`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

IGNORE = -100
"""The label of a token that is not learned: a prompt, padding. torch's own default for cross
entropy."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the one GPT-2. Left at 0, the shape is read from the checkpoint that is
    loaded."""

    num_layers: int = 0
    """Transformer blocks."""
    hidden_size: int = 0
    """Width C of the residual stream."""
    num_attention_heads: int = 0
    """Heads N; each is hidden_size / N wide."""
    ffn_hidden_size: int = 0
    """Width of the MLP. 0 means 4 * hidden_size."""
    max_position_embeddings: int = 0
    """Rows of the position table. 0 means seq_length."""
    vocab_size: int = 0
    """Tokens the tokenizer knows. 0 means: ask the tokenizer."""
    make_vocab_size_divisible_by: int = 128
    """The embedding has vocab_size rounded up to a multiple of this, whatever the layout."""
    init_method_std: float = 0.02
    """Standard deviation of the initial weights; projections into the residual stream: / sqrt(2 *
    num_layers)."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""
    hidden_dropout: float = 0.0
    """Dropout after the embedding, the attention projection and the MLP."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights. With attention_dropout_rng counter it takes the unfused attention path."""
    attention_dropout_rng: str = field(
        default="counter", metadata={"choices": ("counter", "torch")}
    )
    """Where the masks of attention_dropout come from. counter: the same on every layout. torch: torch's own
    generator inside fused attention; faster, but they change with the layout, and so do the results."""
    attention_impl: str = field(default="sdpa", metadata={"choices": ("sdpa", "fused_softmax")})
    """sdpa: torch's fused attention; with attention_dropout by the counter the unfused one in training.
    fused_softmax: always the unfused one, scores, scaled causal softmax in one kernel, values; to compare."""
    attention_backend: str = field(
        default="auto",
        metadata={"choices": ("auto", "flash", "fused", "efficient", "unfused", "local")},
    )
    """Which body fused attention has on CUDA. auto: chosen by the GPU and attention_dropout; fused: cuDNN's;
    efficient: torch's memory-efficient one; unfused: plain products; local: attention_impl fused_softmax."""
    lora_rank: int = 0
    """Freeze the weights that the run starts from, and learn a product of two matrices of this rank beside
    each matrix of lora_target_modules (LoRA). 0: learn all weights."""
    lora_alpha: float = 32.0
    """LoRA: its product is multiplied by lora_alpha / lora_rank."""
    lora_target_modules: tuple[str, ...] = field(
        default=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        metadata={"metavar": "MODULE"},
    )
    """LoRA: the matrices of every block that get a product beside them."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def attention_unfused(self) -> bool:
        """What attention_impl and attention_backend ask for together: unfused attention, always."""
        return self.attention_impl == "fused_softmax" or self.attention_backend == "local"

    @property
    def attention_dropout_counted(self) -> bool:
        """Whether attention weights are dropped by the counter, which unfused attention alone can."""
        return self.attention_dropout > 0 and self.attention_dropout_rng == "counter"

    @property
    def attention_keeps_scores(self) -> bool:
        """Whether attention is unfused: by request, or because its weights are dropped by the counter."""
        return self.attention_unfused or self.attention_dropout_counted

    @property
    def lora_scale(self) -> float:
        """What the product of LoRA's two matrices is multiplied by."""
        return self.lora_alpha / self.lora_rank

    @property
    def mlp_size(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, the tied embedding once and its padding included."""
        c, f = self.hidden_size, self.mlp_size
        block = 4 * c * c + 2 * c * f + (3 * c + c + f + c) + 4 * c
        rows = self.padded_vocab_size + self.max_position_embeddings + 2
        return self.num_layers * block + rows * c

    @property
    def padded_vocab_size(self) -> int:
        return (
            -(-self.vocab_size // self.make_vocab_size_divisible_by)
            * self.make_vocab_size_divisible_by
        )


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is laid over the ranks of a job: pipeline x data x tensor. The data size is
    what is left."""

    tensor_model_parallel_size: int = 1
    """Ranks that share each matrix. Divides num_attention_heads and the padded vocabulary."""
    pipeline_model_parallel_size: int = 1
    """Ranks that share the layers, each holding one or more stages: consecutive runs of them."""
    pipeline_schedule: str = field(
        default="1F1B",
        metadata={"choices": ("1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")},
    )
    """In which order the micro batches pass the stages. 1F1B: one stage a rank. Interleaved1F1B,
    InterleavedZeroBubble: several a rank. ZBVZeroBubble: two a rank, embedding and head on the same."""
    num_virtual_stages_per_pipeline_rank: int = 0
    """Stages of a rank under the interleaved schedules. 0 means 2, and it is always 2 under ZBVZeroBubble."""
    pipeline_layout: tuple[int, ...] = ()
    """Layers of each stage, in the order of the model. Without it the stages are balanced by cost, the
    embedding's and the head's too."""
    sequence_parallel: bool = False
    """Divide LayerNorm, dropout and residual by tokens over the tensor ranks."""
    data_parallel_sharding_strategy: str = field(
        default="optim", metadata={"choices": ("no_shard", "optim", "optim_grads_params")}
    )
    """What a data rank holds. no_shard: all weights, gradients and moments. optim: its share of each at rest,
    all weights during a step. optim_grads_params: its share, and the weights of a layer while it computes."""
    num_distributed_optimizer_instances: int = 1
    """Hybrid sharding: the number of groups of data ranks. Weights, gradients and moments are divided within a
    group, and each group holds a full copy. Neighbouring ranks are of one group. Divides the data ranks."""
    recompute_activations: bool = False
    """The same as recompute_granularity selective."""
    recompute_granularity: str = field(
        default="none", metadata={"choices": ("none", "selective", "full")}
    )
    """What the backward computes again instead of keeping it. selective: the core of attention; full: blocks."""
    recompute_method: str = field(
        default="none", metadata={"choices": ("none", "uniform", "block")}
    )
    """full by uniform: all blocks, recompute_num_layers at a time; by block: the first recompute_num_layers of
    each stage."""
    recompute_num_layers: int = 0
    """Blocks in a recomputed group (recompute_method uniform), or recomputed blocks at the start of each stage
    (block)."""
    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda")})
    """Where the model lives. auto: CUDA if there is one, else the CPU."""
    kernels: str = field(
        default="auto", metadata={"choices": ("auto", "cuda", "compile", "reference", "apex")}
    )
    """Who computes between the matrix products. cuda: this package's fused kernels; compile: torch.compile's;
    reference: plain PyTorch; apex: NVIDIA's LayerNorm and Adam. auto: cuda on a CUDA device if they can be
    built, else reference."""
    distributed_backend: str = field(default="auto", metadata={"choices": ("auto", "gloo", "nccl")})
    """Who carries the collectives. auto: nccl on CUDA, gloo on the CPU."""
    distributed_timeout_minutes: float = 10.0
    """A collective that waits longer than this ends the job, and so does a rank that does not come."""

    dry_run: bool = False
    """Start nothing: check what is named, take one step of each pipeline rank on tensors without memory, and say
    what the job would hold, compute and exchange. Needs no GPU."""
    dry_run_ranks: int = 0
    """Ranks of the job that dry_run is about. 0 means those that the launcher starts."""
    gpu_memory_gib: float = 0.0
    """Refuse, with dry_run, a job whose fullest rank needs more. 0: none is refused."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold the model together, tensor x pipeline."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def data_ranks(self, ranks: int) -> int:
        """Ranks of a job of so many that read different samples."""
        return ranks // self.model_ranks

    def axes(self, ranks: int) -> str:
        """`pipeline 2 x data 4 x tensor 1` of a job of so many ranks."""
        return (
            f"pipeline {self.pipeline_model_parallel_size} x data {self.data_ranks(ranks)} x "
            f"tensor {self.tensor_model_parallel_size}"
        )

    @property
    def splits_backward(self) -> bool:
        """Whether a backward computes the gradients of the inputs first and of the weights later (zero
        bubble)."""
        return self.pipeline_model_parallel_size > 1 and "ZeroBubble" in self.pipeline_schedule

    @property
    def stages_per_rank(self) -> int:
        """Stages of the model on one pipeline rank. A single rank has one, whatever the schedule."""
        if self.pipeline_model_parallel_size == 1 or self.pipeline_schedule == "1F1B":
            return 1
        return self.num_virtual_stages_per_pipeline_rank or 2

    @property
    def recomputed(self) -> str:
        """What recompute_granularity and recompute_activations ask for together."""
        return "selective" if self.recompute_activations else self.recompute_granularity

    @property
    def means_fused_kernels(self) -> bool:
        """Whether a job is meant to run the CUDA kernels; without a device that is named, a GPU is."""
        return self.device != "cpu" and self.kernels in ("auto", "cuda")


@dataclass(frozen=True)
class DataConfig:
    """Which tokens are read, and which tokenizer made them."""

    data_path: tuple[str, ...] = ()
    """Prefixes of .bin/.idx shards whose documents `split` divides into training, validation and test.
    Several are blended: `A B` by their samples, `0.7 A 0.3 B` by these weights."""
    train_data_path: tuple[str, ...] = ()
    """The same, all training (instead of data_path)."""
    valid_data_path: tuple[str, ...] = ()
    """The same, all validation (instead of data_path)."""
    split: str = "949,50,1"
    """Shares of the documents of data_path for training, validation and test."""
    seq_length: int = 1024
    """Tokens T of a sample."""
    reset_position_ids: bool = False
    """Count positions anew after an end of text inside a sample."""
    reset_attention_mask: bool = False
    """Attend only within a document: not across an end of text."""
    eod_mask_loss: bool = False
    """Learn nothing at an end of text, where the next document's first token would be guessed."""
    packing: bool = False
    """Finetuning: several pairs in one sample, none of which attends to another; each counts its positions from
    0. The name is TRL's."""
    loss_on_prompt: bool = False
    """Finetuning: learn the question too, not the answer alone."""
    tokenizer_type: str = field(
        default="GPT2BPETokenizer",
        metadata={
            "choices": ("GPT2BPETokenizer", "HuggingFaceTokenizer", "SentencePieceTokenizer")
        },
    )
    """GPT2BPETokenizer reads vocab_file and merge_file, the others tokenizer_model: a tokenizer.json or a
    SentencePiece model."""
    vocab_file: str = ""
    """GPT-2's vocab.json (also called encoder.json)."""
    merge_file: str = ""
    """GPT-2's merges.txt (also called vocab.bpe)."""
    tokenizer_model: str = ""
    """A tokenizer.json, a SentencePiece .model, or a directory that holds one of them."""

    @property
    def divides_attention(self) -> bool:
        """Whether tokens of a sample attend only within their document, by a mask of the sample's own."""
        return self.reset_attention_mask or self.packing


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay on matrices, and its learning rate schedule."""

    lr: float = 1.5e-4
    """Highest learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: str = field(
        default="cosine",
        metadata={"choices": ("constant", "linear", "cosine", "inverse-square-root", "WSD")},
    )
    """Shape of the decay from lr to min_lr. WSD: lr is kept, and annealed at the end."""
    lr_decay_iters: int = 0
    """Iteration at which min_lr is reached. 0 means the last one."""
    lr_decay_samples: int = 0
    """lr_decay_iters in samples, for runs with train_samples or rampup_batch_size. 0 means train_samples."""
    lr_wsd_decay_style: str = field(
        default="exponential",
        metadata={"choices": ("exponential", "linear", "cosine", "minus_sqrt")},
    )
    """Shape of the anneal under WSD."""
    lr_wsd_decay_iters: int = 0
    """Length of the anneal under WSD, which ends with the decay."""
    lr_wsd_decay_samples: int = 0
    """lr_wsd_decay_iters in samples, for runs with train_samples or rampup_batch_size."""
    lr_warmup_iters: int = 0
    """Iterations of linear warm-up from lr_warmup_init to lr."""
    lr_warmup_samples: int = 0
    """lr_warmup_iters in samples, for runs with train_samples or rampup_batch_size."""
    lr_warmup_fraction: float = 0.0
    """Warm-up as a share of the decay (instead of lr_warmup_iters or lr_warmup_samples)."""
    lr_warmup_init: float = 0.0
    """Learning rate the warm-up starts from."""
    weight_decay: float = 0.01
    """Decay of the matrices; biases and LayerNorm are never decayed."""
    adam_beta1: float = 0.9
    """Decay of the mean of the gradient."""
    adam_beta2: float = 0.999
    """Decay of the mean of the squared gradient."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, in which portions, and what is watched on the way."""

    micro_batch_size: int = 1
    """Samples of one forward pass on one data rank."""
    global_batch_size: int = 0
    """Samples of one optimizer step over all ranks. 0 means those of the run that is continued, or
    micro_batch_size times the data ranks."""
    rampup_batch_size: tuple[int, ...] = field(
        default=(), metadata={"metavar": ("START", "INCREMENT", "SAMPLES")}
    )
    """Begin with batches of START samples and add INCREMENT at equal distances, so that after SAMPLES they
    have global_batch_size. The run is then counted in samples."""
    train_iters: int = 0
    """Optimizer steps (or give train_samples or epochs)."""
    train_samples: int = 0
    """Samples to read (or give train_iters or epochs). The last, incomplete batch is left out."""
    epochs: float = 0.0
    """Passes over the training set (or give train_iters or train_samples)."""
    seed: int = 1234
    """Key of everything random: initial weights, data order, dropout."""
    bf16: bool = False
    """Compute in bfloat16; weights at rest, gradients' sums and optimizer state stay float32."""
    fp16: bool = False
    """Compute in float16, the loss multiplied by a scale so that small gradients are not rounded to 0."""
    fp8_format: str = field(default="none", metadata={"choices": ("none", "hybrid", "e4m3")})
    """Multiply float8 numbers in the linear layers of the blocks, with bf16 around them (H100 and later). hybrid:
    weights and activations e4m3, their gradients e5m2; e4m3: all. Scales are those of whole tensors, taken anew
    each time (Megatron-LM's --fp8-recipe tensorwise)."""
    loss_scale: float = 0.0
    """The scale under fp16, for the whole run. 0 means dynamic: as large as the gradients allow."""
    initial_loss_scale: float = 65536.0
    """The first dynamic scale."""
    min_loss_scale: float = 1.0
    """The smallest dynamic scale. A gradient that overflows even then is an error."""
    loss_scale_window: int = 1000
    """The dynamic scale is doubled after so many steps in a row without overflow."""
    hysteresis: int = 2
    """Overflows before the dynamic scale is halved: with 2 the first is tolerated, the second halves it. Until
    the scale grows again each further one halves it too."""
    eval_interval: int = 1000
    """Iterations between evaluations on the validation set; the last iteration always evaluates."""
    eval_iters: int = 100
    """Largest number of global batches an evaluation reads; 0 switches evaluation off."""
    log_interval: int = 1
    """Iterations between lines on the console; metrics.jsonl gets every one."""
    max_skipped_iterations: int = 0
    """Steps of the whole run that may be passed over because their loss or gradient is not finite. The next
    one ends the run."""
    skip_loss_spikes: bool = False
    """Pass over a step whose loss is more than 6 standard deviations above the mean of the last 128."""
    rollback_iters: int = 0
    """At a loss spike (see skip_loss_spikes) go back to the newest checkpoint that is at least so many iterations
    older, and leave out the samples that followed it. 0: never. PaLM: about 100."""
    rollback_skip_batches: int = 200
    """Global batches left out after a rollback. PaLM: 200 to 500."""
    max_rollbacks: int = 20
    """Rollbacks of a run, at most; the next loss spike ends it."""
    verify_every: int = 0
    """Compute the gradients of each iteration that is a multiple of this twice, and end the run, naming the rank,
    where a bit differs: machines that compute wrongly say nothing themselves. 0: never."""
    deterministic_mode: bool = False
    """Take every sum in one order on CUDA too, so that the same run on the same layout gives the same bits: torch
    and cuBLAS are slower so, and an operator without such an order is an error. On the CPU it is always so."""
    exit_interval: int = 0
    """Save and stop with status 75 after an iteration that is a multiple of this. 0: never."""
    exit_duration_in_mins: int = 0
    """Save and stop with status 75 after the first iteration that ends so many minutes after the start.
    0: never."""

    @property
    def is_deterministic(self) -> bool:
        """Whether a step that is computed again must give the same bits, on CUDA too."""
        return self.deterministic_mode or self.verify_every > 0


@dataclass(frozen=True)
class CheckpointConfig:
    """What is written where, and what the run starts from."""

    save: str = ""
    """Run directory: checkpoints, config.toml, tokenizer, metrics.jsonl. Without load, a run continues
    from what it finds here."""
    save_interval: int = 1000
    """Iterations between checkpoints; the last iteration is always saved."""
    async_save: bool = False
    """Write checkpoints in the background: training waits only while their tensors are copied, and while what
    several ranks hold is compared (under no_shard all of it)."""
    save_retain_interval: int = 0
    """Keep the checkpoints of iterations that are multiples of this, and remove older others. 0: no such rule.
    With several of these rules a checkpoint is kept if one of them keeps it; the newest always is."""
    keep_last: int = 0
    """Keep so many of the newest checkpoints. 0: no such rule."""
    keep_best: int = 0
    """Keep so many of the checkpoints with the lowest validation loss. 0: no such rule."""
    load: str = ""
    """Run directory to start from; without a checkpoint in it the run ends with an error. hf:DIR begins a
    new run with the weights of a Hugging Face GPT-2, megatron:PATH with those of a Megatron-core checkpoint
    (torch_dist directory, or file of a state_dict); a restart continues it from `save`."""
    ckpt_step: int = 0
    """Iteration to load. 0 means the latest."""
    finetune: bool = False
    """Take only the weights of `load` and begin at iteration 0, unless `save` already holds a
    checkpoint."""
    no_load_optim: bool = False
    """Load weights and position in the data but a fresh optimizer."""
    strict: bool = False
    """Stop where the newest checkpoint of the run that is continued is damaged. Without it the newest whole one
    is taken, and a warning says what was wrong."""
    override: bool = False
    """Continue a run although settings that change its training have been changed."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is shown of a run, where, and how closely. Changes nothing of it."""

    eval_prompts: tuple[str, ...] = field(default=(), metadata={"metavar": "TEXT"})
    """Texts that every evaluation continues, with a fixed seed, to show what the model writes; finetuning:
    questions that it answers. Without it: three medical ones."""
    eval_prompt_tokens: int = 32
    """Tokens generated for each of eval_prompts, at most. 0: none."""

    log_digests: bool = False
    """Write a digest of the whole state after every step to SAVE/digests.jsonl, to compare runs bit for bit."""
    log_throughput: bool = False
    """Add `throughput per GPU (TFLOP/s/GPU)` to the lines of a log file, where Megatron-LM has it."""
    log_straggler: bool = False
    """At the start and at every evaluation time the same products on every rank, and name those that need 1.5
    times as long as the median or more."""
    tensorboard_dir: str = ""
    """Write TensorBoard event files there, under Megatron-LM's tags (needs the extra tensorboard)."""
    wandb_project: str = ""
    """Report to this project of Weights & Biases (needs the extra wandb)."""
    wandb_exp_name: str = ""
    """Name of the run in Weights & Biases; needed with wandb_project."""
    wandb_save_dir: str = ""
    """Directory in which wandb keeps its folder "wandb". Without it: SAVE."""
    profile: bool = False
    """Write a Chrome trace of a few iterations to SAVE/profile, one file a rank."""
    profile_step_start: int = 10
    """First iteration in the trace, counted from 1 at the beginning of the run."""
    profile_step_end: int = 12
    """First iteration after the trace."""
    profile_ranks: tuple[int, ...] = ()
    """Ranks that write a trace. Without it: all."""


@dataclass(frozen=True)
class Config:
    """Everything a run is made from. Saved beside it as config.toml."""

    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def is_layout_free(self) -> bool:
        """Whether every layout gives the same result: no mask comes from a generator of the rank's
        own. Every claim of equal layouts asks this first."""
        return not self.model.attention_dropout or self.model.attention_dropout_rng == "counter"

    def replace(self, **changes) -> "Config":
        """A copy with single fields changed by name, whatever their group: replace(hidden_size=64,
        lr=1e-3)."""
        groups = {}
        for group in dataclasses.fields(self):
            current = getattr(self, group.name)
            own = {
                f.name: changes.pop(f.name)
                for f in dataclasses.fields(current)
                if f.name in changes
            }
            groups[group.name] = dataclasses.replace(current, **own)
        if changes:
            raise KeyError(f"no such configuration field: {', '.join(changes)}")
        return Config(**groups)

    def values(self) -> dict[str, Any]:
        """{field: value} over all groups, as `replace` takes them."""
        return {
            name: getattr(getattr(self, group), name)
            for name, (group, _) in config_fields().items()
        }

    def to_dict(self) -> dict:
        """Plain dictionaries of JSON and TOML values."""
        groups = dataclasses.asdict(self)
        return {
            g: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()}
            for g, d in groups.items()
        }


def flag_of(field: str) -> str:
    """--data-path of data_path."""
    return "--" + field.replace("_", "-")


def config_fields() -> dict[str, tuple[str, dataclasses.Field]]:
    """Field name -> (group, field), over all groups. Names are unique, so that a flag needs no
    prefix."""
    return {
        f.name: (group.name, f)
        for group in dataclasses.fields(Config)
        for f in dataclasses.fields(getattr(Config, group.name))
    }
