"""Megatron-LM's commands and scripts, read without running them, as commands of this package."""
