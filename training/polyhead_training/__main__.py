"""``python -m polyhead_training``: entry point for launchers that start several processes."""

from .cli import main

main(prog_name="polyhead-train")
