"""The linter of the protocol rejects changes that break existing clients, and accepts the others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2

from tests.support.demo import ROOT

PROTO = ROOT / "proto"


def lint(folder: Path, *replacement: str, file: str = "item.proto") -> subprocess.CompletedProcess[str]:
    """Lints a copy of the protocol in which one piece of text is replaced."""
    shutil.copytree(PROTO, folder / "proto")
    path = folder / "proto/polyhead/v1" / file
    text = path.read_text()
    if replacement:
        before, after = replacement
        assert text.count(before) == 1
        path.write_text(text.replace(before, after))
    return subprocess.run(
        [sys.executable, folder / "proto/generate.py", "--lint"], check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("  float scale = 4;", "", 'field "4" with name "scale" on message "Embedding" was deleted'),
        ("  float scale = 4;", "  float scale = 5;", 'field "4" with name "scale" on message "Embedding" was deleted'),
        ("  float scale = 4;", "  double scale = 4;", 'changed type from "float" to "double"'),
        ("  float scale = 4;", "  float factor = 4;", 'changed name from "scale" to "factor"'),
        (
            "  EMBEDDING_ENCODING_INT8 = 3;",
            "  EMBEDDING_ENCODING_INT8 = 5;",
            'enum value "3" on enum "EmbeddingEncoding" was deleted',
        ),
    ],
    ids=["removed", "renumbered", "other type", "renamed", "renumbered value"],
)
def test_change_that_breaks_clients_is_rejected(tmp_path: Path, before: str, after: str, problem: str) -> None:
    linted = lint(tmp_path, before, after)
    assert linted.returncode != 0
    assert problem in linted.stdout


def test_removed_rpc_is_rejected(tmp_path: Path) -> None:
    rpc = "  // GetModelInfo describes the model and how it runs, and lists the names of all models of the server.\n"
    call = "  rpc GetModelInfo(GetModelInfoRequest) returns (GetModelInfoResponse);\n"
    linted = lint(tmp_path, rpc + call, "", file="inference_service.proto")
    assert linted.returncode != 0
    assert "GetModelInfo" in linted.stdout


@pytest.mark.parametrize(
    "replacement",
    [(), ("  float scale = 4;", "  float scale = 4;\n  // offset is added to the integers.\n  float offset = 5;")],
    ids=["unchanged", "new field"],
)
def test_compatible_protocol_is_accepted(tmp_path: Path, replacement: tuple[str, ...]) -> None:
    """Control: the linter does not reject every protocol."""
    linted = lint(tmp_path, *replacement)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_released_image_contains_the_whole_protocol() -> None:
    """An element that the image lacks could be changed without an error."""
    image = descriptor_pb2.FileDescriptorSet.FromString((PROTO / "released.binpb").read_bytes())
    names = {file.name for file in image.file}
    assert names >= {path.relative_to(PROTO).as_posix() for path in PROTO.glob("polyhead/v1/*.proto")}


def test_vendored_file_is_that_of_the_library() -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString((PROTO / "released.binpb").read_bytes())
    expected = descriptor_pb2.FileDescriptorProto()
    status_pb2.DESCRIPTOR.CopyToProto(expected)
    (vendored,) = [file for file in image.file if file.name == "google/rpc/status.proto"]
    assert fields(vendored) == fields(expected)


def fields(file: descriptor_pb2.FileDescriptorProto) -> list[tuple[str, str, int, int]]:
    return [
        (message.name, field.name, field.number, field.type) for message in file.message_type for field in message.field
    ]
