"""The ``polyhead`` command."""
