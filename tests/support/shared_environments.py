"""The packages that are installed beside ``polyhead[client]`` in one environment, and what they require."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherPackage:
    """A package to share an environment with.

    Attributes:
        requirement: Requirement of pip.
        module: Its module that uses gRPC or protobuf.
        below: First version of protobuf and of grpcio that it does not accept.
        tightest: Whether `make check` includes it; `make test-environments` does for each.
    """

    requirement: str
    module: str
    below: Mapping[str, str]
    tightest: bool = False


OTHER_PACKAGES = (
    OtherPackage("weaviate-client", "weaviate", {"protobuf": "7", "grpcio": "1.80"}, tightest=True),
    OtherPackage("tritonclient[grpc]", "tritonclient.grpc", {"protobuf": "7"}, tightest=True),
    OtherPackage("kserve", "kserve.inference_client", {"protobuf": "7", "grpcio": "2"}),
    OtherPackage("mlserver", "mlserver.grpc.dataplane_pb2_grpc", {"protobuf": "7"}),
    OtherPackage("tensorflow", "tensorflow", {"protobuf": "8", "grpcio": "2"}),
)
