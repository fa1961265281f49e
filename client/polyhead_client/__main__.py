"""Runs the ``polyhead`` command: ``python -m polyhead_client``."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="polyhead")
