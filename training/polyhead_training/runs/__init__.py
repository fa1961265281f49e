"""Run directories, checkpoints and interrupted runs."""
