"""Triton's Python client: gRPC and HTTP, each synchronous and on asyncio, and the stream of gRPC."""

from __future__ import annotations

import queue
import ssl
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

GRPC, HTTP = "Open Inference Protocol, gRPC", "Open Inference Protocol, HTTP"
TIMEOUT_S = 60


def inputs_of(module: Any, texts: list[str]) -> list[Any]:
    tensor = module.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in texts], dtype=object).reshape(len(texts), 1))
    return [tensor]


def answers_of(result: Any) -> Answers:
    return {
        "embedding": result.as_numpy("embedding"),
        "topic": result.as_numpy("topic_probabilities"),
        "sentiment": result.as_numpy("sentiment_probabilities"),
        "topic_label": result.as_numpy("topic_label").ravel(),
        "sentiment_label": result.as_numpy("sentiment_label").ravel(),
    }


def joined(parts: list[Answers]) -> Answers:
    return {name: [row for part in parts for row in part[name]] for name in parts[0]}


def grpc_client(server: Server, module: Any = tritonclient.grpc) -> Any:
    return module.InferenceServerClient(server.grpc, ssl=server.ca is not None, root_certificates=server.ca)


def http_client(server: Server) -> Any:
    options = {"ca_certs": server.ca} if server.ca else None
    return tritonclient.http.InferenceServerClient(
        server.http.partition("://")[2], ssl=server.ca is not None, ssl_options=options
    )


@call("tritonclient.grpc infer", GRPC)
@key_mistakes(GRPC)
def grpc_sync(server: Server) -> Answers:
    with grpc_client(server) as client:
        return answers_of(
            client.infer(server.model, inputs_of(tritonclient.grpc, server.texts), headers=server.headers)
        )


@call("tritonclient.grpc infer, gzip, named outputs", GRPC)
def grpc_compressed(server: Server) -> Answers:
    outputs = [tritonclient.grpc.InferRequestedOutput("embedding")]
    with grpc_client(server) as client:
        result = client.infer(
            server.model,
            inputs_of(tritonclient.grpc, server.texts),
            outputs=outputs,
            headers=server.headers,
            compression_algorithm="gzip",
            request_id="7",
            timeout=60_000_000,
        )
    assert result.get_response().id == "7"
    return {"embedding": result.as_numpy("embedding")}


@call("tritonclient.grpc async_infer", GRPC)
def grpc_callback(server: Server) -> Answers:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.async_infer(
            server.model,
            inputs_of(tritonclient.grpc, server.texts),
            lambda result, error: done.put(error or result),
            headers=server.headers,
        )
        return answers_of(received(done))


def received(done: queue.Queue[Any]) -> Any:
    result = done.get(timeout=TIMEOUT_S)
    if isinstance(result, Exception):
        raise result
    return result


@call("tritonclient.grpc async_stream_infer", GRPC)
def grpc_stream(server: Server) -> Answers:
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: done.put(error or result), headers=server.headers)
        for text in server.texts:
            client.async_stream_infer(server.model, inputs_of(tritonclient.grpc, [text]))
        parts = [answers_of(received(done)) for _ in server.texts]
        client.stop_stream()
    return joined(parts)


@call("tritonclient.grpc.aio infer", GRPC)
async def grpc_aio(server: Server) -> Answers:
    async with grpc_client(server, tritonclient.grpc.aio) as client:
        return answers_of(
            await client.infer(server.model, inputs_of(tritonclient.grpc.aio, server.texts), headers=server.headers)
        )


@call("tritonclient.grpc.aio stream_infer", GRPC)
async def grpc_aio_stream(server: Server) -> Answers:
    async def requests() -> Any:
        for text in server.texts:
            yield {"model_name": server.model, "inputs": inputs_of(tritonclient.grpc.aio, [text])}

    parts = []
    async with grpc_client(server, tritonclient.grpc.aio) as client:
        async for result, error in client.stream_infer(requests(), headers=server.headers):
            if error is not None:
                raise error
            parts.append(answers_of(result))
    return joined(parts)


@call("tritonclient.grpc metadata, config, statistics, index", GRPC)
def grpc_metadata(server: Server) -> Answers:
    with grpc_client(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.model)
        metadata = client.get_model_metadata(server.model, headers=server.headers)
        assert [one.name for one in metadata.inputs] == ["text"]
        assert client.get_model_config(server.model, headers=server.headers).config.name == server.model
        assert client.get_inference_statistics(server.model, headers=server.headers).model_stats
        assert [one.name for one in client.get_model_repository_index(headers=server.headers).models] == [server.model]
        assert client.get_server_metadata(headers=server.headers).name
    return {}


@call("tritonclient.http infer", HTTP)
@key_mistakes(HTTP)
def http_sync(server: Server) -> Answers:
    with http_client(server) as client:
        return answers_of(
            client.infer(server.model, inputs_of(tritonclient.http, server.texts), headers=server.headers)
        )


@call("tritonclient.http infer, JSON tensors, gzip both ways", HTTP)
def http_json(server: Server) -> Answers:
    tensor = tritonclient.http.InferInput("text", [len(server.texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in server.texts], dtype=object), binary_data=False)
    outputs = [tritonclient.http.InferRequestedOutput("embedding", binary_data=False)]
    with http_client(server) as client:
        result = client.infer(
            server.model,
            [tensor],
            outputs=outputs,
            headers=server.headers,
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        )
    return {"embedding": result.as_numpy("embedding")}


@call("tritonclient.http async_infer", HTTP)
def http_greenlet(server: Server) -> Answers:
    with http_client(server) as client:
        waiting = client.async_infer(server.model, inputs_of(tritonclient.http, server.texts), headers=server.headers)
        return answers_of(waiting.get_result())


@call("tritonclient.http.aio infer", HTTP)
async def http_aio(server: Server) -> Answers:
    context = ssl.create_default_context(cafile=server.ca) if server.ca else None
    address = server.http.partition("://")[2]
    async with tritonclient.http.aio.InferenceServerClient(
        address, ssl=context is not None, ssl_context=context
    ) as client:
        return answers_of(
            await client.infer(server.model, inputs_of(tritonclient.http.aio, server.texts), headers=server.headers)
        )


@call("tritonclient.http metadata, config, statistics, index", HTTP)
def http_metadata(server: Server) -> Answers:
    with http_client(server) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.model)
        metadata = client.get_model_metadata(server.model, headers=server.headers)
        assert [one["name"] for one in metadata["inputs"]] == ["text"]
        assert client.get_model_config(server.model, headers=server.headers)["name"] == server.model
        assert client.get_server_metadata(headers=server.headers)["name"]
        assert client.get_model_repository_index(headers=server.headers)
        assert client.get_inference_statistics(server.model, headers=server.headers)
    return {}


@mistake("unknown model", GRPC)
def grpc_unknown_model(server: Server) -> Answers:
    with grpc_client(server) as client:
        return answers_of(client.infer("tickets-v2", inputs_of(tritonclient.grpc, server.texts)))


@mistake("unknown model", HTTP)
def http_unknown_model(server: Server) -> Answers:
    with http_client(server) as client:
        return answers_of(client.infer("tickets-v2", inputs_of(tritonclient.http, server.texts)))


@mistake("too many texts", GRPC)
def grpc_too_many(server: Server) -> Answers:
    with grpc_client(server) as client:
        return answers_of(client.infer(server.model, inputs_of(tritonclient.grpc, ["a"] * (server.max_items + 1))))


@mistake("too many texts", HTTP)
def http_too_many(server: Server) -> Answers:
    with http_client(server) as client:
        return answers_of(client.infer(server.model, inputs_of(tritonclient.http, ["a"] * (server.max_items + 1))))


@mistake("empty list", GRPC)
def grpc_empty(server: Server) -> Answers:
    with grpc_client(server) as client:
        return answers_of(client.infer(server.model, inputs_of(tritonclient.grpc, [])))


@mistake("empty list", HTTP)
def http_empty(server: Server) -> Answers:
    with http_client(server) as client:
        return answers_of(client.infer(server.model, inputs_of(tritonclient.http, [])))


@mistake("token ids in place of texts", GRPC)
def grpc_token_ids(server: Server) -> Answers:
    tensor = tritonclient.grpc.InferInput("input_ids", [1, 3], "INT64")
    tensor.set_data_from_numpy(np.array([[101, 2054, 102]], dtype=np.int64))
    with grpc_client(server) as client:
        return answers_of(client.infer(server.model, [tensor]))


@mistake("token ids in place of texts", HTTP)
def http_token_ids(server: Server) -> Answers:
    tensor = tritonclient.http.InferInput("input_ids", [1, 3], "INT64")
    tensor.set_data_from_numpy(np.array([[101, 2054, 102]], dtype=np.int64))
    with http_client(server) as client:
        return answers_of(client.infer(server.model, [tensor]))
