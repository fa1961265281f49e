"""The Open Inference Protocol over a real socket."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from polyhead_server.errors import ModelNotFoundError
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.rpc.dialects.descriptors import TYPES
from polyhead_server.rpc.dialects.open_inference import OpenInferenceService
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.polling import until

from .conftest import DialectServer, read_until_error, refusal

SERVICE = "inference.GRPCInferenceService"
pytestmark = pytest.mark.timeout(60)


def raw(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def request(*texts: str, **fields: Any) -> Any:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}
    defaults = {"model_name": "fake", "inputs": [tensor], "raw_input_contents": [raw(*texts)]}
    return TYPES["inference.ModelInferRequest"](**defaults | fields)


def embeddings(response: Any) -> list[list[float]]:
    names = [output.name for output in response.outputs]
    data = np.frombuffer(response.raw_output_contents[names.index("embedding")], "<f4")
    return data.reshape(-1, 2).tolist()


async def test_infer_answers_in_order_and_repeats_the_id(running: DialectServer) -> None:
    response = await running.call(f"{SERVICE}/ModelInfer", request("w1", "w2 w3", id="7"))
    assert embeddings(response) == [embedding_of("w1"), embedding_of("w2 w3")]
    assert (response.id, response.model_name, response.model_version) == ("7", "fake", "1")


async def test_typed_contents_mean_the_same_as_raw_ones(running: DialectServer) -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"w1", b"w2 w3"]}}
    typed = await running.call(f"{SERVICE}/ModelInfer", request(inputs=[tensor], raw_input_contents=[]))
    assert typed == await running.call(f"{SERVICE}/ModelInfer", request("w1", "w2 w3"))


async def test_parameters_that_clients_send_by_themselves_change_nothing(running: DialectServer) -> None:
    content = raw("w1", "w2 w3")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1]}
    # KServe's client sends both; MLServer's codecs send content_type.
    parameters = {"binary_data_size": {"int64_param": len(content)}, "content_type": {"string_param": "str"}}
    binary = {"name": "embedding", "parameters": {"binary_data": {"bool_param": True}}}
    sent = request("w1", "w2 w3", inputs=[tensor | {"parameters": parameters}], outputs=[binary])
    response = await running.call(f"{SERVICE}/ModelInfer", sent)
    assert embeddings(response) == [embedding_of("w1"), embedding_of("w2 w3")]


async def test_metadata_and_config_describe_the_answer(running: DialectServer) -> None:
    response = await running.call(f"{SERVICE}/ModelInfer", request("w1"))
    metadata = await running.call(f"{SERVICE}/ModelMetadata", {"name": "fake"})
    config = (await running.call(f"{SERVICE}/ModelConfig", {"name": "fake"})).config
    names = [output.name for output in response.outputs]
    assert names == [output.name for output in metadata.outputs] == [output.name for output in config.output]
    assert config.max_batch_size == 8
    assert json.loads(config.parameters["topic_labels"].string_value) == ["a", "b", "c"]
    assert [list(output.shape)[1] for output in response.outputs] == [output.dims[0] for output in config.output]


@pytest.mark.parametrize("name", ["fake", "fake-" + "d" * 12])
async def test_model_is_ready_under_its_name_and_id(running: DialectServer, name: str) -> None:
    assert (await running.call(f"{SERVICE}/ModelReady", {"name": name})).ready
    running.ready = False
    assert not (await running.call(f"{SERVICE}/ModelReady", {"name": name})).ready
    assert not (await running.call(f"{SERVICE}/ServerReady")).ready
    assert (await running.call(f"{SERVICE}/ServerLive")).live


async def test_loading_server_is_live_and_not_ready(loading: DialectServer) -> None:
    assert (await loading.call(f"{SERVICE}/ServerLive")).live
    assert not (await loading.call(f"{SERVICE}/ServerReady")).ready
    assert not (await loading.call(f"{SERVICE}/ModelReady", {"name": "fake"})).ready
    assert await refusal(loading.call(f"{SERVICE}/ModelInfer", request("w1"))) == (
        "UNAVAILABLE",
        "the model is being loaded",
    )


@pytest.mark.parametrize("fields", [{"name": "other"}, {"name": "fake", "version": "2"}, {"name": ""}])
async def test_unknown_model_is_not_found(running: DialectServer, fields: dict[str, str]) -> None:
    assert await refusal(running.call(f"{SERVICE}/ModelMetadata", fields)) == (
        "NOT_FOUND",
        "this server serves model 'fake', version 1, and no other",
    )


async def test_probe_of_an_unknown_model_learns_no_name_where_keys_are_required(
    running: DialectServer, settings: Callable[..., Settings]
) -> None:
    backend = Backend(running.service, settings(api_keys="keys.toml"), lambda: True)
    guarded = OpenInferenceService(Models([backend]))
    probe: Any = TYPES["inference.ModelReadyRequest"]
    context: Any = None
    for unknown in (probe(name="other"), probe(name="fake", version="2")):
        with pytest.raises(ModelNotFoundError) as caught:
            await guarded.ModelReady(unknown, context)
        assert str(caught.value) == "this server serves no model with this name and version"
    assert (await guarded.ModelReady(probe(name="fake"), context)).ready
    assert "'fake'" in (await refusal(running.call(f"{SERVICE}/ModelReady", {"name": "other"})))[1]


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ModelReady"])
async def test_probe_must_be_small_and_not_compressed(running: DialectServer, method: str) -> None:
    path = f"{SERVICE}/{method}"
    code, details = await refusal(running.call(path, b"\x9a\x06\x80\x40" + bytes(2**13)))
    assert (code, details) == ("RESOURCE_EXHAUSTED", "a message to this method may have at most 4096 bytes")
    code, details = await refusal(running.call(path, zlib.compress(bytes(2**20))))
    assert (code, details) == ("UNIMPLEMENTED", "this service accepts no compressed messages")
    # Other methods take both, as their callers have a key.
    await running.call(f"{SERVICE}/ServerMetadata", b"\x9a\x06\x80\x40" + bytes(2**13))


BYTES = {"name": "text", "datatype": "BYTES", "shape": [1, 1]}


BAD_REQUESTS: list[tuple[dict[str, Any], str, str]] = [
    ({"model_name": "other"}, "NOT_FOUND", "this server serves model 'fake'"),
    ({"inputs": []}, "INVALID_ARGUMENT", "0 input tensors"),
    ({"inputs": [BYTES, BYTES]}, "INVALID_ARGUMENT", "2 input tensors"),
    ({"inputs": [BYTES | {"datatype": "INT64"}]}, "INVALID_ARGUMENT", "datatype 'INT64'; send the texts"),
    ({"inputs": [BYTES | {"shape": [1, 2]}]}, "INVALID_ARGUMENT", r"shape [1, 2]; send [n,1]"),
    ({"inputs": [BYTES | {"shape": [2, 1]}]}, "INVALID_ARGUMENT", "ends before element 1 of 2"),
    ({"inputs": [BYTES | {"shape": [9, 1]}]}, "INVALID_ARGUMENT", "has 9 elements; at most 8 are allowed"),
    ({"inputs": [BYTES | {"shape": [0, 1]}], "raw_input_contents": [b""]}, "INVALID_ARGUMENT", "at least one text"),
    ({"raw_input_contents": [raw("w1"), raw("w1")]}, "INVALID_ARGUMENT", "2 elements for one input tensor"),
    ({"inputs": [BYTES | {"contents": {"bytes_contents": [b"w1"]}}]}, "INVALID_ARGUMENT", "use one of them"),
    (
        {"inputs": [BYTES | {"contents": {"int64_contents": [1]}}], "raw_input_contents": []},
        "INVALID_ARGUMENT",
        "contents.int64_contents is set for a tensor of datatype BYTES",
    ),
    ({"raw_input_contents": []}, "INVALID_ARGUMENT", "has 1 elements, bytes_contents has 0"),
    ({"outputs": [{"name": "logits"}]}, "INVALID_ARGUMENT", "no output 'logits'"),
    (
        {"outputs": [{"name": "embedding", "parameters": {"classification": {"int64_param": 3}}}]},
        "INVALID_ARGUMENT",
        "output 'embedding' has parameters",
    ),
    (
        {"inputs": [BYTES | {"parameters": {"shared_memory_region": {"string_param": "x"}}}]},
        "INVALID_ARGUMENT",
        "shared memory",
    ),
    ({"parameters": {"sequence_id": {"int64_param": 3}}}, "INVALID_ARGUMENT", "'sequence_id' is not known"),
    ({"id": "x" * 300}, "INVALID_ARGUMENT", "id has more than 256 bytes"),
    ({"raw_input_contents": [struct.pack("<I", 1) + b"\xff"]}, "INVALID_ARGUMENT", "not valid UTF-8"),
]


async def test_bad_requests_are_refused_and_the_server_goes_on(running: DialectServer) -> None:
    for fields, code, message in BAD_REQUESTS:
        actual, details = await refusal(running.call(f"{SERVICE}/ModelInfer", request("w1", **fields)))
        assert actual == code
        assert message in details
        assert embeddings(await running.call(f"{SERVICE}/ModelInfer", request("w1"))) == [embedding_of("w1")]


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x02\xff\xff"])
async def test_bytes_that_are_no_message_are_refused(running: DialectServer, data: bytes) -> None:
    for path in (f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelMetadata", f"{SERVICE}/ServerLive"):
        code, _ = (
            await refusal(running.call(path, data)) if path != f"{SERVICE}/ServerLive" else ("INVALID_ARGUMENT", "")
        )
        assert code == "INVALID_ARGUMENT"


async def test_message_of_many_small_fields_is_refused_before_it_is_parsed(running: DialectServer) -> None:
    many = {"bytes_contents": [b""] * 100_000}
    fields = {"inputs": [BYTES | {"shape": [100_000], "contents": many}], "raw_input_contents": []}
    assert await refusal(running.call(f"{SERVICE}/ModelInfer", request(**fields))) == (
        "INVALID_ARGUMENT",
        "the message has more than 8 texts",
    )


async def test_text_of_megabytes_is_answered(running: DialectServer) -> None:
    response = await running.call(f"{SERVICE}/ModelInfer", request("w1 " * 1_000_000, "w2"))
    assert embeddings(response)[1] == embedding_of("w2")


async def test_stream_answers_in_order_and_survives_a_bad_request(running: DialectServer) -> None:
    requests = [request(f"w{number}", id=str(number)) for number in range(50)]
    requests.insert(20, request("w1", id="bad", model_name="other"))
    responses = [one async for one in running.call(f"{SERVICE}/ModelStreamInfer", requests)]
    bad = responses.pop(20)
    assert "no other" in bad.error_message
    assert bad.infer_response.id == "bad"
    assert [one.infer_response.id for one in responses] == [str(number) for number in range(50)]
    assert [embeddings(one.infer_response) for one in responses] == [[embedding_of(f"w{n}")] for n in range(50)]


async def test_stream_ends_with_a_status_for_a_client_that_asks_for_it(running: DialectServer) -> None:
    requests = [request("w1"), request("w1", model_name="other"), request("w2")]
    call = running.call(f"{SERVICE}/ModelStreamInfer", requests, metadata=(("triton_grpc_error", "true"),))
    responses, code = await read_until_error(call)
    assert code == "NOT_FOUND"
    assert len(responses) == 1


async def test_cancelled_stream_withdraws_its_texts(running: DialectServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    call = running.call(f"{SERVICE}/ModelStreamInfer", [request(f"w{number}") for number in range(20)])
    await engine.hold()
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    call.cancel()
    await until(lambda: not pipeline.scheduler.accounting.waiting_items)
    engine.gate.set()
    assert embeddings(await running.call(f"{SERVICE}/ModelInfer", request("w5"))) == [embedding_of("w5")]


async def test_draining_stream_answers_what_it_accepted(running: DialectServer, engine: FakeEngine) -> None:
    engine.gate.clear()

    async def requests() -> Any:
        yield request("w1")
        await asyncio.Event().wait()

    call = running.call(f"{SERVICE}/ModelStreamInfer", requests())
    await engine.hold()
    running.service.drain()
    engine.gate.set()
    responses, code = await read_until_error(call)
    assert code == "UNAVAILABLE"
    assert [embeddings(one.infer_response) for one in responses] == [[embedding_of("w1")]]


async def test_expired_timeout_of_a_request_is_obeyed(running: DialectServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(running.call(f"{SERVICE}/ModelInfer", request("w1")))
    await engine.hold()
    late = asyncio.ensure_future(
        running.call(f"{SERVICE}/ModelInfer", request("w2", parameters={"timeout": {"int64_param": 1}}))
    )
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    await until(lambda: pipeline.scheduler.accounting.waiting_items or late.done())
    engine.gate.set()
    await first
    code, _ = await refusal(late)
    assert code in {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


async def test_statistics_and_index_name_the_model(running: DialectServer) -> None:
    await running.call(f"{SERVICE}/ModelInfer", request("w1", "w2"))
    (stats,) = (await running.call(f"{SERVICE}/ModelStatistics", {"name": "fake"})).model_stats
    assert (stats.name, stats.inference_count) == ("fake", 2)
    # perf_analyzer ends with "Server side statistics compute counts must be the same" otherwise.
    times = stats.inference_stats
    assert {times.compute_input.count, times.compute_infer.count, times.compute_output.count} == {2}
    (index,) = (await running.call(f"{SERVICE}/RepositoryIndex")).models
    assert (index.name, index.state) == ("fake", "READY")
