"""curl, with the commands of the guide."""

from __future__ import annotations

import gzip
import json
import subprocess
from typing import Any

from tests.interoperability.calls import Answers, Server, call, key_mistakes, limitation, mistake

TEI, OPENAI, OIP, POLYHEAD = (
    "text-embeddings-inference, HTTP",
    "OpenAI, HTTP",
    "Open Inference Protocol, HTTP",
    "polyhead, HTTP",
)


def versions() -> dict[str, str]:
    return {"curl": curl("--version").split()[1]}


def curl(*arguments: str, body: bytes | None = None) -> str:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
    done = subprocess.run(command, input=body, capture_output=True, timeout=100, check=False)
    if done.returncode:
        raise OSError(f"exit code {done.returncode}: {done.stderr.decode().strip()} {done.stdout.decode()}")
    return done.stdout.decode()


def post(server: Server, path: str, document: Any, *flags: str) -> Any:
    authority = ["--cacert", server.ca] if server.ca else []
    headers = [argument for name, value in server.headers.items() for argument in ("--header", f"{name}: {value}")]
    return json.loads(curl(server.http + path, "--json", json.dumps(document), *authority, *headers, *flags))


def sentiment(answer: Any) -> dict[str, float]:
    probability = answer["sentiment"]["probability"]
    return {"negative": 1 - probability, "positive": probability}


def topics(answer: Any) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in answer["classification"]["scores"]}


@call("/v1/analyze", POLYHEAD)
@key_mistakes(POLYHEAD)
def analyze(server: Server) -> Answers:
    found = post(server, "/v1/analyze", {"texts": server.texts})["answers"]
    return {"embedding": [one["embedding"] for one in found], "topic": [topics(one) for one in found]}


@call("/v1/analyze, JSON lines, gzip", POLYHEAD)
def lines(server: Server) -> Answers:
    body = "".join(json.dumps({"id": str(index), "text": text}) + "\n" for index, text in enumerate(server.texts))
    authority = ["--cacert", server.ca] if server.ca else []
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip", **server.headers}
    flags = [argument for name, value in headers.items() for argument in ("--header", f"{name}: {value}")]
    url = f"{server.http}/v1/analyze?tasks=embedding"
    reply = curl(url, "--data-binary", "@-", *authority, *flags, body=gzip.compress(body.encode()))
    return {"embedding": [json.loads(line)["embedding"] for line in reply.splitlines()]}


@call("/v1/embeddings, --http2", OPENAI)
def openai(server: Server) -> Answers:
    found = post(server, "/v1/embeddings", {"model": server.model, "input": server.texts}, "--http2")
    return {"embedding": [one["embedding"] for one in found["data"]]}


@call("/embed and /predict", TEI)
@key_mistakes(TEI)
def tei(server: Server) -> Answers:
    predictions = post(server, "/predict", {"inputs": [[text] for text in server.texts]})
    return {
        "embedding": post(server, "/embed", {"inputs": server.texts}),
        "topic": [{one["label"]: one["score"] for one in labels} for labels in predictions],
    }


@call("/v2/models/MODEL/infer", OIP)
@key_mistakes(OIP)
def open_inference(server: Server) -> Answers:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(server.texts), 1], "data": server.texts}
    reply = post(server, f"/v2/models/{server.model}/infer", {"inputs": [tensor]})
    outputs = {one["name"]: (one["data"], one["shape"]) for one in reply["outputs"]}
    values, (rows, width) = outputs["embedding"]
    return {
        "embedding": [values[row * width : (row + 1) * width] for row in range(rows)],
        "topic_label": outputs["topic_label"][0],
    }


@mistake("not JSON", POLYHEAD)
def not_json(server: Server) -> Answers:
    curl(f"{server.http}/v1/analyze", "--json", "{texts: [a]}")
    return {}


@limitation("plain HTTP to the gRPC port", POLYHEAD)
def wrong_port(server: Server) -> Answers:
    curl(f"http://{server.grpc}/v1/analyze", "--json", "{}")
    return {}
