"""``python -m polyhead_training``, as a launcher of several processes starts it."""

from .cli import main

main(prog_name="polyhead-train")
