"""Runs the ``polyhead`` command: ``python -m polyhead_client``."""

from polyhead_client.cli.main import main

if __name__ == "__main__":
    main(prog_name="polyhead")
