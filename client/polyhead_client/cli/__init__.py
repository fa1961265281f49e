"""The ``polyhead`` command."""

import os

# gRPC's core writes lines of its own to standard error, between the messages of the command. It reads the variable when
# it is imported. The library leaves the variable alone, which belongs to the program that imports it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
