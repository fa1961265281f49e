"""grpc_requests, which reads the services from the server's reflection."""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from typing import Any

from grpc_requests import Client
from grpc_requests.aio import AsyncClient

from tests.interoperability.calls import Answers, Server, call, key_mistakes

REFLECTION = "{}, gRPC over reflection"


def options(server: Server) -> dict[str, Any]:
    return {"ssl": True, "credentials": {"root_certificates": server.ca_bytes}} if server.ca else {}


@call("Client.request polyhead.v1 Analyze", REFLECTION.format("polyhead.v1"))
@key_mistakes(REFLECTION.format("polyhead.v1"))
def analyze(server: Server) -> Answers:
    client = Client.get_by_endpoint(server.grpc, **options(server))
    items = [{"item_id": str(index), "text": text} for index, text in enumerate(server.texts)]
    response = client.request("polyhead.v1.InferenceService", "Analyze", {"items": items}, metadata=server.metadata)
    return {"embedding": [floats(one["result"]["embedding"]["values"]) for one in response["answers"]]}


def floats(encoded: str) -> list[float]:
    data = b64decode(encoded)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@call("Client.stream_stream tei.v1 EmbedStream", REFLECTION.format("text-embeddings-inference"))
def embed_stream(server: Server) -> Answers:
    client = Client.get_by_endpoint(server.grpc, **options(server))
    requests = [{"inputs": text} for text in server.texts]
    responses = client.stream_stream("tei.v1.Embed", "EmbedStream", iter(requests), metadata=server.metadata)
    return {"embedding": [one["embeddings"] for one in responses]}


@call("AsyncClient.request tei.v1 Embed and Predict", REFLECTION.format("text-embeddings-inference"))
async def embed(server: Server) -> Answers:
    client = AsyncClient(server.grpc, **options(server))
    vectors, topics = [], []
    for text in server.texts:
        answer = await client.request("tei.v1.Embed", "Embed", {"inputs": text}, metadata=server.metadata)
        vectors.append(answer["embeddings"])
        answer = await client.request("tei.v1.Predict", "Predict", {"inputs": text}, metadata=server.metadata)
        topics.append({one["label"]: one["score"] for one in answer["predictions"]})
    return {"embedding": vectors, "topic": topics}


@call("Client.request inference ModelInfer", REFLECTION.format("Open Inference Protocol"))
def model_infer(server: Server) -> Answers:
    client = Client.get_by_endpoint(server.grpc, **options(server))
    tensor = {
        "name": "text",
        "datatype": "BYTES",
        "shape": [len(server.texts)],
        # As in the JSON form of protobuf.
        "contents": {"bytes_contents": [b64encode(text.encode()).decode() for text in server.texts]},
    }
    request = {"model_name": server.model, "inputs": [tensor], "outputs": [{"name": "embedding"}]}
    service = "inference.GRPCInferenceService"
    response = client.request(service, "ModelInfer", request, metadata=server.metadata)
    values = floats(response["raw_output_contents"][0])
    width = len(values) // len(server.texts)
    return {"embedding": [values[row * width : (row + 1) * width] for row in range(len(server.texts))]}
