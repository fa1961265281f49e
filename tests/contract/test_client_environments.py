"""The client shares an environment with packages that require an older protobuf or grpcio, and works there.

Each case installs the wheel with the extra ``client`` next to one of the packages with the tightest requirements, and
runs the tests of the client with what pip chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.package_index import Environment

from .conftest import Distributions

pytestmark = [pytest.mark.slow, pytest.mark.environments, pytest.mark.timeout(1200)]

# What the tests of the client import, in the versions that the other package permits.
TEST_PACKAGES = (
    "cryptography",
    "filelock",
    "grpcio-health-checking",
    "hypothesis",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
)
# Depends on mypy and not on the versions of grpcio and protobuf.
SKIPPED = "tests/client/test_method_options.py"
# grpc.aio 1.78 loses the status of a stream on which it writes when the server rejects a message as too large.
LOST_STATUS = (
    "tests/client/core/test_message_limits.py"
    "::test_text_that_is_too_large_by_itself_gets_an_error_answer[AsyncFace-stream]"
)
# Both in one process. The other rooms are in the wheel, but the client needs none of their requirements.
BOTH_CLIENTS = """
import sys
from importlib import metadata

import {module}
from polyhead.v1 import inference_service_pb2_grpc
from polyhead_client import AsyncClient, Client

print(metadata.version("protobuf"), metadata.version("grpcio"))
assert "polyhead_server" not in sys.modules
"""


@dataclass(frozen=True)
class Package:
    """A package to share an environment with.

    Attributes:
        package: Requirement of pip.
        module: Its module that uses gRPC.
        requires: What it requires of protobuf and grpcio at the time of writing.
        deselected: Tests of the client that fail with these versions.
    """

    package: str
    module: str
    requires: tuple[str, ...]
    deselected: tuple[str, ...] = ()


PACKAGES = (
    Package("weaviate-client", "weaviate", ("protobuf<7", "grpcio<1.80"), (LOST_STATUS,)),
    Package("tritonclient[grpc]", "tritonclient.grpc", ("protobuf<7",)),
)


@pytest.mark.parametrize("other", PACKAGES, ids=lambda other: other.package)
def test_client_works_beside(
    other: Package,
    distributions: Distributions,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    environment = Environment(tmp_path / "environment")
    environment.pip("install", f"polyhead[client] @ {distributions.wheel.as_uri()}", other.package, *TEST_PACKAGES)
    environment.pip("check")
    versions = environment.run(environment.python, "-c", BOTH_CLIENTS.format(module=other.module)).split()
    installed = dict(zip(("protobuf", "grpcio"), versions, strict=True))
    record_property("versions", installed)
    # Control: if the other package no longer excludes newer versions, this case tests nothing, and needs another one.
    for requirement in map(Requirement, other.requires):
        assert requirement.specifier.contains(installed[requirement.name])
    deselected = [f"--deselect={test}" for test in other.deselected]
    pytest_options = ("--quiet", "-p", "no:cacheprovider", f"--ignore={SKIPPED}", *deselected)
    environment.run(environment.python, "-m", "pytest", *pytest_options, "tests/client")
