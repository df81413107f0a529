"""Taking steps: the state of a run, its optimizer, its learning rate, the loop."""
