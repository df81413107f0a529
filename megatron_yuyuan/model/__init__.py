"""The one GPT-2 and its loss."""
