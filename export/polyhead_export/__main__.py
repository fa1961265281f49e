"""Runs the ``polyhead-export`` command: ``python -m polyhead_export``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="polyhead-export")
