"""``python -m polyhead_training``: entry point for launchers that start several processes."""

from polyhead.commands import train

train()
