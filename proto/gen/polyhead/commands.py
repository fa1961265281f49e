"""Entry points of the commands, which name the extra that provides a missing package.

The base install contains all commands and the packages of none: each requires an extra, and some options require
another one.
"""

from __future__ import annotations

import importlib
import os
import sys

# Packages of an extra that a command requires only for some options. Every other package belongs to its own extra.
_OPTIONAL = {
    "datasets": "hub",
    "model_signing": "signing",
    "OpenSSL": "signing",
    "opentelemetry": "otel",
    "optuna": "sweep",
    "tensorboard": "tensorboard",
}
_EXIT_USAGE = 2

# Module with the function ``main``, and extra, of each command.
MODULES = {
    "polyhead": ("polyhead_client.cli.main", "client"),
    "polyhead-train": ("polyhead_training.cli", "training"),
    "polyhead-export": ("polyhead_export.cli", "export"),
    "polyhead-serve": ("polyhead_server.cli", "server"),
}
# Module of each command of ``polyhead`` that another package provides, as an object of that name.
SUBCOMMANDS = {"bulk": "polyhead_bulk.cli"}
# Module by which ``polyhead drift`` reads the files that ``polyhead bulk`` has written.
DRIFT_OF_FILES = "polyhead_bulk.drift"


def client() -> None:
    """Runs ``polyhead``."""
    # The command reports failed connections itself. gRPC's C++ core reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _run("polyhead")


def train() -> None:
    """Runs ``polyhead-train``."""
    _run("polyhead-train")


def export() -> None:
    """Runs ``polyhead-export``."""
    _run("polyhead-export")


def serve() -> None:
    """Runs ``polyhead-serve``."""
    _run("polyhead-serve")


def missing_package(error: ModuleNotFoundError, extra: str) -> str:
    """Returns the part of a message that tells what to install.

    Args:
        error: The failed import.
        extra: The extra that is required in any case.

    Raises:
        ModuleNotFoundError: ``error`` itself, if a module of this distribution is missing.
    """
    package = (error.name or "").partition(".")[0]
    if not package or package.startswith("polyhead"):
        raise error
    return f"needs pip install 'polyhead[{_OPTIONAL.get(package, extra)}]': the package {package} is not installed"


def _run(program: str) -> None:
    module, extra = MODULES[program]
    try:
        importlib.import_module(module).main(prog_name=program)
    except ModuleNotFoundError as error:
        print(f"{program}: {missing_package(error, extra)}", file=sys.stderr)  # noqa: T201  click may be missing
        sys.exit(_EXIT_USAGE)
