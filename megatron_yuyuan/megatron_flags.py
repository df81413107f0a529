"""Megatron-LM's flags that are not ours: what each is worth here. None is ever ignored silently."""

NOT_YET = frozenset(
    """
    --context-parallel-size --num-layers-per-virtual-pipeline-stage --pipeline-model-parallel-layout
    --decoder-first-pipeline-num-layers --decoder-last-pipeline-num-layers
    --untie-embeddings-and-output-weights --no-load-rng
    --exit-signal --log-progress
    --iterations-to-skip --partitions --keep-sequential-samples
    --no-bias-gelu-fusion --no-bias-dropout-fusion --no-persist-layer-norm
    --fp8-recipe --fp8-margin --fp8-amax-history-len --fp8-amax-compute-algo --fp8-param-gather
    --first-last-layers-bf16
    """.split()
)
"""The feature is not built: refused with the words `not yet`, on the command line and in TOML."""

INSTEAD = {
    "--num-layers-per-virtual-pipeline-stage": "--pipeline-schedule Interleaved1F1B with "
    "--num-virtual-stages-per-pipeline-rank",
    "--pipeline-model-parallel-layout": "--pipeline-layout",
    "--decoder-first-pipeline-num-layers": "--pipeline-layout",
    "--decoder-last-pipeline-num-layers": "--pipeline-layout",
    "--exit-signal": "leave it out: SIGTERM and SIGUSR1 always save and stop",
    "--no-bias-gelu-fusion": "leave it out where --openai-gelu stands beside it; alone it asks for the exact "
    "GeLU, and GPT-2's is the tanh form",
    "--no-bias-dropout-fusion": "--kernels reference",
    "--no-persist-layer-norm": "--kernels reference",
    "--fp8-recipe": "leave it out: --fp8-format scales tensorwise",
    "--partitions": "--num-tasks and --task-index",
    "--keep-sequential-samples": "leave it out: documents always keep their order",
}
"""What serves in place of some of them."""

NO_EFFECT = frozenset(
    """
    --use-mcore-models --no-gradient-accumulation-fusion --use-flash-attn --attention-softmax-in-fp32
    --overlap-grad-reduce
    --overlap-param-gather --manual-gc --no-masked-softmax-fusion
    --no-create-attention-mask-in-dataloader --use-cpu-initialization --use-distributed-optimizer
    --verify-integrity --check-for-nan-in-loss-and-grad --exit-signal-handler
    --use-pytorch-profiler --log-timers-to-tensorboard --log-memory-to-tensorboard
    --log-validation-ppl-to-tensorboard
    --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split
    --calculate-per-token-loss --accumulate-allreduce-grads-in-fp32 --exit-on-missing-checkpoint
    --use-dist-ckpt --auto-detect-ckpt-format --use-checkpoint-args --use-legacy-models
    --ckpt-fully-parallel-save --ckpt-fully-parallel-load --no-ckpt-fully-parallel-save
    --apply-query-key-layer-scaling --no-query-key-layer-scaling --cross-entropy-loss-fusion
    --no-async-tensor-model-parallel-allreduce --tp-comm-overlap --overlap-p2p-communication
    --no-overlap-p2p-communication --no-scatter-gather-tensors-in-pipeline
    --no-contiguous-buffers-in-local-ddp --lazy-mpu-init --no-mmap-bin-files --manual-gc-eval
    --log-batch-size-to-tensorboard --log-learning-rate-to-tensorboard --log-world-size-to-tensorboard
    --log-loss-scale-to-tensorboard --openai-gelu
    """.split()
)
"""Flags without a value that ask for what happens here anyway, or for nothing: accepted with a warning.
Attention's softmax is float32, Adam's state is divided over the data axis but under no_shard, checkpoints are
always verified, a step that is not finite is never taken, signals always save and stop, stages are balanced
by cost, the order of samples needs no cache, the trace of --profile is torch's, and TensorBoard gets every
figure. The loss is a mean over tokens and sums of gradients are float32, a checkpoint that is missing is an
error, its format is torch's distributed one and brings the model's shape, GeLU has its tanh form; the rest
chooses among bodies of Megatron-LM's with one result."""

NO_EFFECT_WITH_VALUE = frozenset(
    """
    --transformer-impl --data-cache-path --tensorboard-queue-size --DDP-impl --data-impl --dataset-impl
    --num-workers --num-dataset-builder-threads --manual-gc-interval --empty-unused-memory-level
    --timing-log-level --timing-log-option --cross-entropy-fusion-impl --local-rank
    """.split()
)
"""The same, followed by a value. Samples are read from memory maps, by no process of their own."""


def not_yet(name: str) -> bool:
    """True for a flag of Megatron-LM whose feature is not built; with - or _, with -- or without."""
    return "--" + name.lstrip("-").replace("_", "-") in NOT_YET
