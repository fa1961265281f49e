"""Runs the ``polyhead`` command: ``python -m polyhead_client``."""

from polyhead.commands import client

if __name__ == "__main__":
    client()
