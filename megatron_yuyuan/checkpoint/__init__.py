"""Checkpoints: our own on disk (dcp), Hugging Face's (hf)."""
