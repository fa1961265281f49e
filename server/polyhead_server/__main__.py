"""Runs the ``polyhead-serve`` command: ``python -m polyhead_server``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="polyhead-serve")
