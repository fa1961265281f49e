"""The training loop: stages, steps, losses and the metrics log."""
