"""Full names of the gRPC services that the server offers, and paths of methods that need no API key."""

from __future__ import annotations

from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from polyhead.v1 import admin_service_pb2, inference_service_pb2

INFERENCE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
HEALTH = health.SERVICE_NAME
REFLECTION = reflection.SERVICE_NAME
CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
# Probes of the Open Inference Protocol.
PUBLIC_METHODS = frozenset(
    f"/inference.GRPCInferenceService/{method}" for method in ("ServerLive", "ServerReady", "ModelReady")
)
