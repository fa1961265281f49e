"""tei-client, a client of text-embeddings-inference over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import grpc
from tei_client import HttpClient
from tei_client.clients.grpc_client import GrpcClient

from tests.interoperability.calls import Answers, Server, call, key_mistakes, limitation, mistake

HTTP, GRPC = "text-embeddings-inference, HTTP", "text-embeddings-inference, gRPC"


def http_client(server: Server) -> Any:
    return HttpClient(server.http, headers=server.headers, timeout=60)


def grpc_client(server: Server) -> Any:
    return GrpcClient(server.grpc, credentials(server))


def credentials(server: Server) -> grpc.ChannelCredentials | None:
    if server.ca is None:
        return None
    tls = grpc.ssl_channel_credentials(server.ca_bytes)
    return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(server.key or ""))


@call("HttpClient.embed", HTTP)
@key_mistakes(HTTP)
def http_embed(server: Server) -> Answers:
    return {"embedding": vectors(http_client(server).embed(server.texts))}


def vectors(returned: Any) -> Any:
    """Raises if the client returned the error's document as if it were the vectors."""
    if isinstance(returned, dict):
        raise TypeError(f"embed() returned {returned}")
    return returned


@call("HttpClient.async_embed", HTTP)
async def http_async_embed(server: Server) -> Answers:
    return {"embedding": await http_client(server).async_embed(server.texts)}


@call("HttpClient.info, health, tokenize, decode", HTTP)
def http_tokens(server: Server) -> Answers:
    client = http_client(server)
    assert client.health()
    assert client.info().max_input_length
    ids = client.tokenize(["where is it"])[0].get_ids()
    assert client.decode(ids)[0] == "where is it"
    return {}


@limitation("HttpClient.classify", HTTP)
def http_classify(server: Server) -> Answers:
    results = http_client(server).classify(server.texts)
    return {"topic": [{one.label: one.score for one in result.scores} for result in results]}


@call("GrpcClient.embed (EmbedStream)", GRPC)
@key_mistakes(GRPC)
def grpc_embed(server: Server) -> Answers:
    return {"embedding": [list(vector) for vector in grpc_client(server).embed(server.texts)]}


@call("GrpcClient.async_embed (EmbedStream)", GRPC)
async def grpc_async_embed(server: Server) -> Answers:
    return {"embedding": [list(vector) for vector in await grpc_client(server).async_embed(server.texts)]}


@call("GrpcClient.info, health, tokenize, decode", GRPC)
def grpc_tokens(server: Server) -> Answers:
    client = grpc_client(server)
    assert client.health()
    assert client.info().max_input_length
    ids = client.tokenize(["where is it"])[0].get_ids()
    assert client.decode(ids) == "where is it"
    return {}


@limitation("GrpcClient.classify", GRPC)
def grpc_classify(server: Server) -> Answers:
    results = grpc_client(server).classify(server.texts)
    return {"topic": [{one.label: one.score for one in result.scores} for result in results]}


@mistake("text beyond the token limit", HTTP)
def http_long(server: Server) -> Answers:
    return {"embedding": vectors(http_client(server).embed(["word " * 2000]))}


@mistake("text beyond the token limit", GRPC)
def grpc_long(server: Server) -> Answers:
    return {"embedding": [list(vector) for vector in grpc_client(server).embed(["word " * 2000])]}


@mistake("a method that the server does not have", GRPC)
def grpc_embed_all(server: Server) -> Answers:
    grpc_client(server).embed_all(["a"])
    return {}
