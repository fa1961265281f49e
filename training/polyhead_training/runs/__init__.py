"""Run directories, checkpoints and runs in progress."""
