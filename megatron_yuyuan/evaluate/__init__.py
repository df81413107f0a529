"""What a model is worth: perplexity, generation, BLEU, judged facts."""
