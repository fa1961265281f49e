"""``--help`` and ``--version`` of every command import only what they show."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ["polyhead_client.cli.main", "polyhead_export.cli", "polyhead_server.cli", "polyhead_training.cli"]
# Each takes a large part of a second to import, or is imported by a package that does.
HEAVY = [
    "accelerate",
    "datasets",
    "google.protobuf",
    "grpc",
    "numpy",
    "onnx",
    "onnxruntime",
    "optuna",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
]
SUBCOMMANDS = {
    "polyhead_client.cli.main": [
        *(["analyze"], ["embed"], ["classify"], ["sentiment"], ["info"], ["top"], ["admin"], ["drift"]),
        *(["admin", "reload"], ["admin", "stats"]),
    ],
    "polyhead_export.cli": [["verify"], ["sign"], ["compare"], ["import"]],
    "polyhead_training.cli": [["sweep"]],
}

PROGRAM = """
import importlib, sys
main = importlib.import_module(sys.argv[1]).main
heavy = sys.argv[2].split(",")
for arguments in eval(sys.argv[3]):
    main(arguments, standalone_mode=False)
print("imported:", *[name for name in heavy if name in sys.modules])
"""


def imported(module: str, calls: list[list[str]]) -> list[str]:
    """Returns the heavy packages that a process has imported after these calls of a command."""
    arguments = [sys.executable, "-c", PROGRAM, module, ",".join(HEAVY), repr(calls)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_version_import_no_heavy_package(module: str) -> None:
    calls = [["--help"], ["-h"], ["--version"], *([*names, "--help"] for names in SUBCOMMANDS.get(module, []))]
    assert imported(module, calls) == []


def test_heavy_packages_are_noticed() -> None:
    """The control: the client that the command uses requires some of them."""
    program = PROGRAM.replace("main = ", "import polyhead_client.client; main = ")
    arguments = [sys.executable, "-c", program, COMMANDS[0], ",".join(HEAVY), "[]"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert {"grpc", "numpy", "google.protobuf"} <= set(result.stdout.split())
