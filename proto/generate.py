"""Generates the code of ``proto/polyhead/v1`` and the descriptors of ``proto/dialects``, or lints the protocol.

The generator uses the installed grpcio-tools and the google.rpc definitions of ``googleapis-common-protos``; ``make
proto`` and ``make clients`` run it with the versions of ``proto/generator.txt``. Nothing here uses the network.

``--lint`` also compares the protocol with ``proto/released.binpb``, an image of its last release: a removed or
renumbered field, or any other change that breaks existing clients, is an error. ``--release`` replaces the image.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DIALECT_DESCRIPTORS = ROOT / "server/polyhead_server/rpc/dialects/descriptors.binpb"
RELEASED = HERE / "released.binpb"
GO, NPM = ROOT / "clients/go", ROOT / "clients/npm"
GO_MODULE = "github.com/polyhead/polyhead/clients/go"


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("output", type=Path, nargs="?", help="output folder of the Python stubs, such as proto/gen")
    mode.add_argument("--clients", action="store_true", help="generate the code of clients/go and clients/npm")
    mode.add_argument("--lint", action="store_true", help="lint with buf, and compare with the released protocol")
    mode.add_argument("--release", action="store_true", help="make this protocol the released one")
    arguments = parser.parse_args()
    if arguments.lint:
        return lint()
    if arguments.release:
        protoc("--include_imports", f"--descriptor_set_out={RELEASED}")
    elif arguments.clients:
        generate_clients(GO, NPM / "src/gen")
    else:
        generate(arguments.output)
    return 0


def generate(output: Path) -> None:
    """Writes ``*_pb2.py``, ``*_pb2.pyi``, ``*_pb2_grpc.py`` and ``*_pb2_grpc.pyi`` to ``output/polyhead/v1``."""
    shutil.rmtree(output / "polyhead/v1", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    protoc("--python_out", "--grpc_python_out", "--mypy_out", "--mypy_grpc_out", output=output)
    # Data and not modules: a process can load only one module that defines the names of another project's protocol.
    protoc(f"--descriptor_set_out={DIALECT_DESCRIPTORS}", pattern="dialects/*.proto")


def generate_clients(go: Path, typescript: Path) -> None:
    """Writes the messages and stubs of the other languages; each plug-in brings its own runtime's types.

    Args:
        go: Folder of the Go module. Requires protoc-gen-go and protoc-gen-go-grpc on the path.
        typescript: Output folder of the TypeScript code. Requires the packages of ``clients/npm``.
    """
    for old in (go / "polyheadv1", typescript):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    options = [f"--{plugin}_opt=module={GO_MODULE}" for plugin in ("go", "go-grpc")]
    protoc("--go_out", "--go-grpc_out", *options, output=go)
    plugin = f"--plugin=protoc-gen-es={NPM / 'node_modules/.bin/protoc-gen-es'}"
    # google.rpc too: npm has no package of it for this runtime.
    google = ("google/rpc/error_details.proto", "google/rpc/status.proto")
    protoc(plugin, "--es_out", "--es_opt=target=ts,import_extension=js", *google, output=typescript)


def lint() -> int:
    """Checks style and compatibility of the protocol by the rules of ``buf.yaml``; returns 0, or buf's exit code."""
    buf = str(Path(sys.executable).with_name("buf"))
    style = subprocess.run([buf, "lint", HERE], check=False)
    compatibility = subprocess.run([buf, "breaking", HERE, "--against", RELEASED], check=False)
    return style.returncode or compatibility.returncode


def protoc(*flags: str, output: Path | None = None, pattern: str = "polyhead/v1/*.proto") -> None:
    """Runs protoc on all files of the protocol; flags that end in ``_out`` get ``output`` as their value."""
    includes = [HERE, Path(str(metadata.distribution("googleapis-common-protos").locate_file("")))]
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))
    arguments = [f"{flag}={output}" if flag.endswith("_out") else flag for flag in flags]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in includes), *arguments, *sources]
    # protoc finds the mypy plug-ins next to the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    subprocess.run(command, check=True, env={"PATH": path})


if __name__ == "__main__":
    sys.exit(main())
