"""The committed code in each language matches the protocol."""

from __future__ import annotations

import base64
import filecmp
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from packaging.requirements import Requirement
from polyhead.v1 import admin_service_pb2, inference_service_pb2, item_pb2, model_pb2

from tests.support.demo import ROOT

# `make test` installs it, in the versions of proto/generator.txt.
GENERATOR = ROOT / "build/proto-generator/bin/python"
MODULES = {
    "admin_service": admin_service_pb2,
    "inference_service": inference_service_pb2,
    "item": item_pb2,
    "model": model_pb2,
}


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.skipif(not GENERATOR.exists(), reason="the generator is not installed; `make test` installs it")
def test_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    descriptors = ROOT / "server/polyhead_server/rpc/dialects/descriptors.binpb"
    before = descriptors.read_bytes()
    subprocess.run([GENERATOR, ROOT / "proto/generate.py", tmp_path], check=True, capture_output=True)
    generated, committed = tmp_path / "polyhead/v1", ROOT / "proto/gen/polyhead/v1"
    assert files(generated) == files(committed)
    _, changed, unreadable = filecmp.cmpfiles(generated, committed, sorted(files(generated)), shallow=False)
    assert (changed, unreadable) == ([], []), "run `make proto` and commit what it writes"
    assert descriptors.read_bytes() == before, "run `make proto` and commit what it writes"


def test_stubs_support_the_oldest_allowed_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    stubs = ROOT / "proto/gen/polyhead/v1"
    grpc = re.search(r"GRPC_GENERATED_VERSION = '(.+)'", (stubs / "inference_service_pb2_grpc.py").read_text())
    protobuf = re.search(r"# Protobuf Python Version: (.+)", (stubs / "item_pb2.py").read_text())
    assert grpc is not None
    assert protobuf is not None
    for name, generated, older in (("grpcio", grpc[1], "1.73.0"), ("protobuf", protobuf[1], "6.31.0")):
        assert required[name].contains(generated)
        assert not required[name].contains(older)


def go_descriptor(name: str) -> bytes:
    """Returns the descriptor in a file of protoc-gen-go, an array of bytes."""
    source = (ROOT / f"clients/go/polyheadv1/{name}.pb.go").read_text()
    array = re.search(r"_rawDesc = \[\]byte\{(.*?)\n\}", source, re.DOTALL)
    assert array is not None
    return bytes(int(number, 16) for number in re.findall(r"0x([0-9a-f]{2})", array[1]))


def typescript_descriptor(name: str) -> bytes:
    """Returns the descriptor in a file of protoc-gen-es, in base64."""
    source = (ROOT / f"clients/npm/src/gen/polyhead/v1/{name}_pb.ts").read_text()
    encoded = re.search(r"fileDesc\(\"([^\"]+)\"", source)
    assert encoded is not None
    return base64.b64decode(encoded[1] + "==")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("descriptor", [go_descriptor, typescript_descriptor])
def test_code_of_other_languages_is_up_to_date(descriptor: Callable[[str], bytes], name: str) -> None:
    expected, generated = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    MODULES[name].DESCRIPTOR.CopyToProto(expected)
    generated.ParseFromString(descriptor(name))
    for file in (expected, generated):
        file.ClearField("dependency")  # protoc-gen-es refers to the other files by import
        for message in file.message_type:
            clear_json_names(message)
    assert generated == expected, "run `make clients` and commit what it writes"


def clear_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    """Removes names that follow from those of the fields, and that some generators omit."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        clear_json_names(nested)
