"""Message types of the dialects, in a pool of their own.

The pool is private because protobuf allows one definition of a name in each pool: a process that has loaded the stubs
of ``tritonclient`` or ``kserve`` could not import another module for ``inference`` into the default pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from polyhead.v1 import admin_service_pb2, inference_service_pb2

# Fields that hold texts of strangers. They are parsed as bytes, which have the same encoding on the wire: protobuf
# rejects a whole message for one string that is not UTF-8, and decodes megabytes of which the model reads kilobytes.
_TEXT_FIELDS = {"tei.v1": "inputs"}


def file_descriptors() -> list[descriptor_pb2.FileDescriptorProto]:
    """Returns the dialects' files as they are published, for server reflection."""
    data = resources.files(__package__).joinpath("descriptors.binpb").read_bytes()
    return list(descriptor_pb2.FileDescriptorSet.FromString(data).file)


def reflection_pool() -> descriptor_pool.DescriptorPool:
    """Returns a pool that holds the dialects' files beside those of the server's own services."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            pool.AddSerializedFile(file.serialized_pb)

    for module in (admin_service_pb2, inference_service_pb2, health_pb2, reflection_pb2):
        add(module.DESCRIPTOR)
    for proto in file_descriptors():
        pool.Add(proto)
    return pool


def _types(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    names: list[str] = []
    for file in files:
        for kind in file.message_type:
            names.append(f"{file.package}.{kind.name}")
            for field in kind.field:
                if field.name == _TEXT_FIELDS.get(file.package):
                    field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
        pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


# Message classes by full name, such as ``inference.ModelInferRequest``.
TYPES: dict[str, Any] = _types(file_descriptors())
# Methods by full name of their service, such as ``tei.v1.Embed``, in the order of the protocol.
METHODS: dict[str, list[descriptor_pb2.MethodDescriptorProto]] = {
    f"{file.package}.{service.name}": list(service.method) for file in file_descriptors() for service in file.service
}
