"""What Megatron-LM's flags become here, beyond those that are the same, have no effect, or are not built
(`megatron_flags`)."""

RENAMED = {
    "--model-parallel-size": "--tensor-model-parallel-size",
    "--batch-size": "--micro-batch-size",
    "--warmup": "--lr-warmup-fraction",
    "--norm-epsilon": "--layernorm-epsilon",
    "--persistent-save-interval": "--save-interval",
    "--override-opt-param-scheduler": "--override",
    "--activations-checkpoint-granularity": "--recompute-granularity",
    "--activations-checkpoint-method": "--recompute-method",
    "--activations-checkpoint-num-layers": "--recompute-num-layers",
}
"""Another name for the same, older ones mostly. The values stay."""

REPLACED = {
    "--checkpoint-activations": "--recompute-granularity full --recompute-method uniform "
    "--recompute-num-layers 1",
    "--use-torch-fsdp2": "--data-parallel-sharding-strategy optim_grads_params",
    "--use-megatron-fsdp": "--data-parallel-sharding-strategy optim_grads_params",
}
"""Flags without a value, in other words."""

SAME_AS_HERE = {
    "--context-parallel-size": {"1"},
    "--expert-model-parallel-size": {"1"},
    "--position-embedding-type": {"learned_absolute"},
    "--normalization": {"LayerNorm"},
    "--optimizer": {"adam"},
    "--weight-decay-incr-style": {"constant"},
    "--dataloader-type": {"single"},
    "--ckpt-format": {"torch_dist", "torch_dcp"},
    "--dist-ckpt-format": {"torch_dist"},
    "--pipeline-model-parallel-comm-backend": {"nccl"},
}
"""Flags with a value that ask, by these values, for what happens here; by another for what is not built."""

OF_OTHER_MODELS = frozenset(
    """
    --swiglu --squared-relu --disable-bias-linear --add-qkv-bias --qk-layernorm --apply-layernorm-1p
    --group-query-attention --num-query-groups --kv-channels --multi-latent-attention --window-size
    --use-rotary-position-embeddings --rotary-base --rotary-percent --rotary-seq-len-interpolation-factor
    --no-position-embedding --untie-embeddings-and-output-weights --num-experts --moe-router-topk
    --moe-grouped-gemm --moe-router-load-balancing-type --moe-aux-loss-coeff --spec --mtp-num-layers
    --apply-residual-connection-post-layernorm --fp32-residual-connection --quick-geglu
    """.split()
)
GPT2_ALONE = "leave it out: the one model here is GPT-2, with learned positions, LayerNorm, GeLU and tied embeddings"
"""What to say of those."""

INSTEAD = {
    "--step-batch-size-schedule": "--rampup-batch-size START INCREMENT SAMPLES",
    "--mock-data": "a shard: tools/preprocess_data.py makes one of examples/sample_data",
    "--test-data-path": "tools/evaluate_perplexity.py, on any checkpoint",
    "--data-args-path": "the prefixes themselves, as --data-path",
    "--per-split-data-args-path": "--train-data-path and --valid-data-path",
    "--distribute-saved-activations": "--sequence-parallel",
    "--init-method-xavier-uniform": "--init-method-std",
    "--pretrained-checkpoint": "--load RUN --finetune, or --load hf:DIR",
    "--no-save-optim": "leave it out; tools/convert_checkpoint.py --to hf writes the weights alone",
    "--start-weight-decay": "--weight-decay, which is the same throughout",
    "--end-weight-decay": "--weight-decay, which is the same throughout",
    "--split-sentences": "leave it out: BERT's preprocessing",
}
"""What serves in place of a flag whose feature is not built, beside `megatron_flags.INSTEAD`."""

DEFAULTS = {
    "--hidden-dropout": "0.1",
    "--attention-dropout": "0.1",
    "--lr-decay-style": "linear",
    "--split": "969,30,1",
    "--initial-loss-scale": "4294967296",
}
"""Defaults of Megatron-LM's that are others here. Source: megatron/training/arguments.py and
megatron/core/transformer/transformer_config.py, commit d98e8a64ddf34856e74b24714e3bedb2f5a39553."""

PREPROCESSING = frozenset(
    """
    --input --json-keys --output-prefix --append-eod --workers --log-interval --tokenizer-type
    --tokenizer-model --vocab-file --merge-file
    """.split()
)
"""Flags of tools/preprocess_data.py that are the same here."""
