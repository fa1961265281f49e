"""The training loop: steps, losses, stages."""
