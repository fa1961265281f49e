"""KServe's inference clients, over gRPC and REST."""

from __future__ import annotations

from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

GRPC, REST = "Open Inference Protocol, gRPC", "Open Inference Protocol, HTTP"


def request(server: Server, texts: list[str], *, binary: bool, model: str = "") -> InferRequest:
    tensor = InferInput(name="text", shape=[len(texts), 1], datatype="BYTES")
    array = np.array([[text.encode()] for text in texts], dtype=object).reshape(len(texts), 1)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model_name=model or server.model, infer_inputs=[tensor], request_id="7")


def answers(response: Any) -> Answers:
    assert response.id == "7"
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    return {
        "embedding": outputs["embedding"],
        "topic": outputs["topic_probabilities"],
        "sentiment": outputs["sentiment_probabilities"],
        "topic_label": outputs["topic_label"].ravel(),
    }


async def grpc_infer(server: Server, texts: list[str], *, binary: bool = True, model: str = "") -> Answers:
    options = {"use_ssl": server.ca is not None, "root_certificates": server.ca}
    async with InferenceGRPCClient(server.grpc, **options) as client:
        sent = request(server, texts, binary=binary, model=model)
        return answers(await client.infer(sent, headers=server.metadata))


async def rest_infer(server: Server, texts: list[str], *, binary: bool, model: str = "") -> Answers:
    async with InferenceRESTClient(RESTConfig(protocol="v2", verify=server.ca or True)) as client:
        sent = request(server, texts, binary=binary, model=model)
        headers = dict(server.headers)
        return answers(await client.infer(server.http, sent, model_name=model or server.model, headers=headers))


@call("InferenceGRPCClient.infer, binary tensor", GRPC)
@key_mistakes(GRPC)
async def grpc_binary(server: Server) -> Answers:
    return await grpc_infer(server, server.texts)


@call("InferenceGRPCClient.infer, list of bytes", GRPC)
async def grpc_typed(server: Server) -> Answers:
    tensor = InferInput(
        name="text", shape=[len(server.texts)], datatype="BYTES", data=[text.encode() for text in server.texts]
    )
    options = {"use_ssl": server.ca is not None, "root_certificates": server.ca}
    async with InferenceGRPCClient(server.grpc, **options) as client:
        sent = InferRequest(model_name=server.model, infer_inputs=[tensor], request_id="7")
        return answers(await client.infer(sent, headers=server.metadata))


@call("InferenceGRPCClient.is_server_live, is_server_ready, is_model_ready", GRPC)
async def grpc_ready(server: Server) -> Answers:
    options = {"use_ssl": server.ca is not None, "root_certificates": server.ca}
    async with InferenceGRPCClient(server.grpc, **options) as client:
        assert await client.is_server_live(headers=server.metadata)
        assert await client.is_server_ready(headers=server.metadata)
        assert await client.is_model_ready(server.model, headers=server.metadata)
    return {}


@call("InferenceRESTClient.infer, JSON", REST)
@key_mistakes(REST)
async def rest_json(server: Server) -> Answers:
    return await rest_infer(server, server.texts, binary=False)


@call("InferenceRESTClient.infer, binary tensor", REST)
async def rest_binary(server: Server) -> Answers:
    return await rest_infer(server, server.texts, binary=True)


@call("InferenceRESTClient.is_server_live, is_server_ready, is_model_ready", REST)
async def rest_ready(server: Server) -> Answers:
    async with InferenceRESTClient(RESTConfig(protocol="v2", verify=server.ca or True)) as client:
        assert await client.is_server_live(server.http)
        assert await client.is_server_ready(server.http)
        assert await client.is_model_ready(server.http, server.model)
    return {}


@mistake("unknown model", GRPC)
async def grpc_unknown_model(server: Server) -> Answers:
    return await grpc_infer(server, server.texts, model="tickets-v2")


@mistake("unknown model", REST)
async def rest_unknown_model(server: Server) -> Answers:
    return await rest_infer(server, server.texts, binary=False, model="tickets-v2")


@mistake("too many texts", GRPC)
async def grpc_too_many(server: Server) -> Answers:
    return await grpc_infer(server, ["a"] * (server.max_items + 1))


@mistake("too many texts", REST)
async def rest_too_many(server: Server) -> Answers:
    return await rest_infer(server, ["a"] * (server.max_items + 1), binary=False)


@mistake("empty list", GRPC)
async def grpc_empty(server: Server) -> Answers:
    return await grpc_infer(server, [])


@mistake("empty list", REST)
async def rest_empty(server: Server) -> Answers:
    return await rest_infer(server, [], binary=False)
