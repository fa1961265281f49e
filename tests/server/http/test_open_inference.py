"""The Open Inference Protocol over HTTP."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from tests.support.fake_engine import embedding_of

from .conftest import HttpServer, Reply

pytestmark = pytest.mark.timeout(60)
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["w1", "w2 w3"]}
INFER = "/v2/models/fake/infer"
LENGTH = "inference-header-content-length"


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def outputs(reply: Reply) -> dict[str, list[Any]]:
    return {one["name"]: one["data"] for one in reply.json["outputs"]}


async def test_infer_answers_with_every_output(running: HttpServer) -> None:
    reply = await running.post(INFER, {"id": "7", "inputs": [TENSOR]})
    assert outputs(reply)["embedding"] == [*embedding_of("w1"), *embedding_of("w2 w3")]
    assert outputs(reply)["topic_label"] == ["a", "a"]
    assert (reply.json["id"], reply.json["model_name"], reply.json["model_version"]) == ("7", "fake", "1")
    assert (await running.post("/v2/models/fake/versions/1/infer", {"inputs": [TENSOR]})).status == 200


async def test_binary_tensors_go_both_ways(running: HttpServer) -> None:
    content = raw(b"w1", b"w2 w3")
    tensor = {key: value for key, value in TENSOR.items() if key != "data"}
    head = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(content)}}],
            "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}, {"name": "topic_label"}],
        }
    ).encode()
    reply = await running.post(INFER, head + content, {LENGTH: str(len(head))})
    size = int(reply.headers[LENGTH])
    first, second = json.loads(reply.body[:size])["outputs"]
    values = np.frombuffer(reply.body[size : size + first["parameters"]["binary_data_size"]], "<f4")
    assert values.tolist() == [*embedding_of("w1"), *embedding_of("w2 w3")]
    assert second["data"] == ["a", "a"]


async def test_binary_output_for_all(running: HttpServer) -> None:
    reply = await running.post(INFER, {"inputs": [TENSOR], "parameters": {"binary_data_output": True}})
    document = json.loads(reply.body[: int(reply.headers[LENGTH])])
    sizes = [one["parameters"]["binary_data_size"] for one in document["outputs"]]
    assert int(reply.headers[LENGTH]) + sum(sizes) == len(reply.body)


BAD_REQUESTS: list[tuple[Any, dict[str, str], str]] = [
    ({"inputs": []}, {}, "inputs must be a list of one tensor"),
    ({"inputs": [TENSOR, TENSOR]}, {}, "inputs must be a list of one tensor"),
    ({"inputs": [TENSOR | {"datatype": "FP32"}]}, {}, "datatype 'FP32'"),
    ({"inputs": [TENSOR | {"shape": [3, 1]}]}, {}, "data has 2 elements, its shape has 3"),
    ({"inputs": [TENSOR | {"shape": [2, 2]}]}, {}, "send [n,1] or [n]"),
    ({"inputs": [TENSOR | {"shape": "2"}]}, {}, "shape must be a list of integers"),
    ({"inputs": [TENSOR | {"data": ["w1", 2]}]}, {}, "element 1 is not a text"),
    ({"inputs": [TENSOR | {"data": ["w1", "\ud800"]}]}, {}, "text 1: text is not valid UTF-8"),
    ({"inputs": [TENSOR | {"parameters": {"binary_data_size": 3}}]}, {}, "both data and binary_data_size"),
    ({"inputs": [TENSOR], "outputs": [{"name": "logits"}]}, {}, "no output 'logits'"),
    ({"inputs": [TENSOR], "outputs": ["embedding"]}, {}, "objects with a name"),
    ({"inputs": [TENSOR], "id": {"a": 1}}, {}, "id must be a string"),
    ({"inputs": [TENSOR], "id": "\ud800"}, {}, "id is not valid UTF-8"),
    (
        {"inputs": [TENSOR], "outputs": [{"name": "embedding", "parameters": {"binary_data": "false"}}]},
        {},
        "binary_data must be true or false",
    ),
    ({"inputs": [TENSOR]}, {LENGTH: "0" * 20 + "1" * 5000}, f"header {LENGTH} must be the length"),
    ({"inputs": [TENSOR], "parameters": []}, {}, "parameters must be an object"),
    ({"inputs": [TENSOR], "parameters": {"x": 1}}, {}, "'x' is not known"),
    ({"inputs": [TENSOR], "extra": 1}, {}, "field 'extra' is not known"),
    ({"inputs": [TENSOR]}, {LENGTH: "99999"}, LENGTH),
    ({"inputs": [TENSOR]}, {LENGTH: "-1"}, LENGTH),
    (b"{", {}, "not valid JSON"),
]


async def test_bad_requests_are_refused_and_the_server_goes_on(running: HttpServer) -> None:
    for body, headers, message in BAD_REQUESTS:
        reply = await running.post(INFER, body, headers)
        assert reply.status == 400
        assert message in reply.json["error"]
        assert (await running.post(INFER, {"inputs": [TENSOR]})).status == 200


async def test_model_may_be_named_in_the_body_too(running: HttpServer) -> None:
    # KServe's client names the model in the path and in the body.
    body = {"model_name": "fake", "model_version": None, "inputs": [TENSOR], "parameters": None}
    assert outputs(await running.post(INFER, body)) == outputs(await running.post(INFER, {"inputs": [TENSOR]}))
    others: list[dict[str, Any]] = [{"model_name": "other"}, {"model_version": "2"}, {"model_name": []}]
    for other in others:
        assert (await running.post(INFER, body | other)).status == 404


async def test_partial_request_keeps_the_neighbours(running: HttpServer) -> None:
    tensor = TENSOR | {"data": ["w1", "\ud800"]}
    reply = await running.post(INFER, {"inputs": [tensor], "parameters": {"partial": True}})
    answer = outputs(reply)
    assert answer["embedding"] == [*embedding_of("w1"), None, None]
    assert answer["error"][0] == ""
    assert "not valid UTF-8" in answer["error"][1]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/fake/versions/2", "/v2/models/other/ready"])
async def test_unknown_model_is_not_found(running: HttpServer, path: str) -> None:
    reply = await running.get(path)
    assert (reply.status, "no other" in reply.json["error"]) == (404, True)


async def test_health_and_metadata(running: HttpServer) -> None:
    assert (await running.get("/v2/health/ready")).json == {"ready": True}
    assert (await running.get("/v2/models/fake/ready")).status == 200
    metadata = (await running.get("/v2/models/fake")).json
    config = (await running.get("/v2/models/fake/config")).json
    assert [one["name"] for one in metadata["outputs"]] == [one["name"] for one in config["output"]]
    assert "binary_tensor_data" in (await running.get("/v2")).json["extensions"]
    running.ready = False
    assert (await running.get("/v2/health/ready")).status == 503
    assert (await running.get("/v2/health/live")).status == 200
    assert (await running.get("/v2/models/fake/ready")).status == 503


async def test_statistics_and_index_name_the_model(running: HttpServer) -> None:
    await running.post(INFER, {"inputs": [TENSOR]})
    for path in ("/v2/models/stats", "/v2/models/fake/stats"):
        (stats,) = (await running.get(path)).json["model_stats"]
        assert (stats["name"], stats["inference_count"], stats["inference_stats"]["fail"]["count"]) == ("fake", 2, 0)
    assert (await running.get("/v2/models/other/stats")).status == 404
    index = (await running.post("/v2/repository/index", {})).json
    assert index == [{"name": "fake", "version": "1", "state": "READY"}]
    assert {"statistics", "model_repository(index)"} <= set((await running.get("/v2")).json["extensions"])


async def test_loading_server_is_live_and_not_ready(loading: HttpServer) -> None:
    assert (await loading.get("/v2/health/live")).status == 200
    assert (await loading.get("/v2/health/ready")).status == 503
    assert (await loading.get("/v2/models/fake/ready")).status == 503
