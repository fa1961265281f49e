"""The committed stubs match the protocol."""

from __future__ import annotations

import filecmp
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    # The generator has an environment of its own.
    python = "build/proto-generator/bin/python"
    command = ["make", f"PYTHON={sys.executable}", "build/proto-generator/.installed"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    descriptors = ROOT / "server/polyhead_server/rpc/dialects/descriptors.binpb"
    before = descriptors.read_bytes()
    subprocess.run([python, "proto/generate.py", tmp_path], cwd=ROOT, check=True, capture_output=True)
    assert descriptors.read_bytes() == before, "run `make proto` and commit what it writes"
    generated, committed = tmp_path / "polyhead/v1", ROOT / "proto/gen/polyhead/v1"
    assert files(generated) == files(committed)
    _, changed, unreadable = filecmp.cmpfiles(generated, committed, sorted(files(generated)), shallow=False)
    assert (changed, unreadable) == ([], []), "run `make proto` and commit what it writes"


def test_stubs_support_the_oldest_allowed_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stubs = ROOT / "proto/gen/polyhead/v1"
    grpc = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", (stubs / "inference_service_pb2_grpc.py").read_text())
    protobuf = re.search(r"# Protobuf Python Version: (.+)", (stubs / "item_pb2.py").read_text())
    assert grpc is not None
    assert protobuf is not None
    assert {f"grpcio>={grpc[1]},<2", f"protobuf>={protobuf[1]},<8"} <= set(project["dependencies"])
