"""Checkpoints: our own (dcp), Hugging Face's (hf_*), Megatron's (megatron*)."""
