"""Generates the stubs of ``proto/polyhead/v1`` and the descriptors of ``proto/dialects``, or lints the protocol.

Both use the installed grpcio-tools and the google.rpc definitions of ``googleapis-common-protos``. Neither uses the
network. ``make proto`` runs the generator with the versions of ``proto/generator.txt``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIALECT_DESCRIPTORS = HERE.parent / "server/polyhead_server/rpc/dialects/descriptors.binpb"
# COMMENTS in addition to STANDARD: every element must be documented. google/ is third-party.
LINT = {"version": "v2", "lint": {"use": ["STANDARD", "COMMENTS"], "ignore": ["google"]}}


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, nargs="?", help="output folder of the stubs, such as proto/gen")
    parser.add_argument("--lint", action="store_true", help="lint with buf instead of generating")
    arguments = parser.parse_args()
    if arguments.lint:
        return lint()
    if arguments.output is None:
        parser.error("either an output folder or --lint is required")
    generate(arguments.output)
    return 0


def generate(output: Path) -> None:
    """Writes ``*_pb2.py``, ``*_pb2.pyi``, ``*_pb2_grpc.py`` and ``*_pb2_grpc.pyi`` to ``output/polyhead/v1``."""
    shutil.rmtree(output / "polyhead/v1", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    protoc("--python_out", "--grpc_python_out", "--mypy_out", "--mypy_grpc_out", output=output)
    # Data and not modules: a process can load only one module that defines the names of another project's protocol.
    protoc(f"--descriptor_set_out={DIALECT_DESCRIPTORS}", pattern="dialects/*.proto")


def lint() -> int:
    """Checks the protocol with buf's STANDARD and COMMENTS rules; returns buf's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        buf = Path(sys.executable).with_name("buf")
        return subprocess.run([buf, "lint", image, "--config", json.dumps(LINT)], cwd=folder, check=False).returncode


def protoc(*flags: str, output: Path | None = None, pattern: str = "polyhead/v1/*.proto") -> None:
    """Runs protoc on all files of the protocol; flags that end in ``_out`` get ``output`` as their value."""
    includes = [HERE, Path(str(metadata.distribution("googleapis-common-protos").locate_file("")))]
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))
    arguments = [f"{flag}={output}" if flag.endswith("_out") else flag for flag in flags]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in includes), *arguments, *sources]
    # protoc finds the mypy plug-ins next to the interpreter.
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(command, check=True, env={"PATH": path})


if __name__ == "__main__":
    sys.exit(main())
