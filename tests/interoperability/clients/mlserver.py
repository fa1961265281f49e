"""MLServer's codecs, types and gRPC stubs, and its command for batches."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import grpc
from mlserver.codecs import NumpyCodec, StringCodec, StringRequestCodec
from mlserver.grpc import dataplane_pb2_grpc
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.types import InferenceRequest, InferenceResponse

from tests.interoperability.calls import Answers, Server, call, key_mistakes

GRPC, HTTP = "Open Inference Protocol, gRPC", "Open Inference Protocol, HTTP"
INSECURE_ONLY = "the command cannot be given a certificate authority"


def answers(response: InferenceResponse) -> Answers:
    outputs = {output.name: output for output in response.outputs}
    return {
        "embedding": NumpyCodec.decode_output(outputs["embedding"]),
        "topic": NumpyCodec.decode_output(outputs["topic_probabilities"]),
        "sentiment": NumpyCodec.decode_output(outputs["sentiment_probabilities"]),
        "topic_label": StringCodec.decode_output(outputs["topic_label"]),
    }


def by_grpc(server: Server, request: InferenceRequest, *, raw: bool) -> Answers:
    credentials = grpc.ssl_channel_credentials(server.ca_bytes)
    channel = grpc.secure_channel(server.grpc, credentials) if server.ca else grpc.insecure_channel(server.grpc)
    with channel:
        stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
        sent = ModelInferRequestConverter.from_types(request, model_name=server.model, use_raw=raw)
        received = stub.ModelInfer(sent, metadata=server.metadata)
    return answers(ModelInferResponseConverter.to_types(received))


@call("StringCodec, GRPCInferenceServiceStub", GRPC)
@key_mistakes(GRPC)
def grpc_codec(server: Server) -> Answers:
    return by_grpc(server, InferenceRequest(inputs=[StringCodec.encode_input("text", server.texts)]), raw=False)


@call("StringRequestCodec, GRPCInferenceServiceStub, raw contents", GRPC)
def grpc_raw(server: Server) -> Answers:
    return by_grpc(server, StringRequestCodec.encode_request(server.texts), raw=True)


@call("StringRequestCodec, types as JSON", HTTP)
@key_mistakes(HTTP)
def rest(server: Server) -> Answers:
    body = StringRequestCodec.encode_request(server.texts, use_bytes=False).model_dump_json().encode()
    headers = {"content-type": "application/json", **server.headers}
    request = urllib.request.Request(f"{server.http}/v2/models/{server.model}/infer", body, headers)  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        return answers(InferenceResponse.model_validate_json(response.read()))


@call("mlserver infer", HTTP, plain_only=INSECURE_ONLY)
def batch(server: Server) -> Answers:
    return infer(server)


@call("mlserver infer --binary-data --batch-size 3", HTTP, plain_only=INSECURE_ONLY)
def batch_binary(server: Server) -> Answers:
    return infer(server, "--binary-data", "--batch-size", "3")


def infer(server: Server, *flags: str) -> Answers:
    requests = [
        InferenceRequest(id=str(index), inputs=[StringCodec.encode_input("text", [text], use_bytes=False)])
        for index, text in enumerate(server.texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "requests.jsonl"), Path(folder, "responses.jsonl")
        source.write_text("".join(f"{request.model_dump_json()}\n" for request in requests))
        address = server.http.partition("://")[2]
        command = [str(Path(sys.executable).parent / "mlserver"), "infer", "-u", address, "-m", server.model]
        subprocess.run([*command, "-i", str(source), "-o", str(target), *flags], check=True, timeout=100)
        lines: list[Any] = [json.loads(line) for line in target.read_text().splitlines()]
    lines.sort(key=lambda line: line["parameters"]["batch_index"])
    parts = [answers(InferenceResponse.model_validate(line)) for line in lines]
    return {name: [part[name][0] for part in parts] for name in parts[0]}
