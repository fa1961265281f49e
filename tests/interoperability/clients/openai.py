"""OpenAI's Python client."""

from __future__ import annotations

import os
import ssl
from typing import Any

import openai

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

HTTP = "OpenAI, HTTP"
# OpenAI's client refuses to start without a key, even where the server requires none.
NO_KEY = "none"


def options(server: Server) -> dict[str, Any]:
    return {"base_url": f"{server.http}/v1", "api_key": server.key or NO_KEY, "max_retries": 0}


def client_of(server: Server) -> openai.OpenAI:
    context = ssl.create_default_context(cafile=server.ca)
    return openai.OpenAI(**options(server), http_client=openai.DefaultHttpxClient(verify=context))


def vectors(response: Any) -> Answers:
    return {"embedding": [one.embedding for one in sorted(response.data, key=lambda one: one.index)]}


@call("OpenAI().embeddings.create (base64, the default)", HTTP)
@key_mistakes(HTTP)
def create(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=server.texts))


@call("embeddings.create, encoding_format float", HTTP)
def create_float(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=server.texts, encoding_format="float"))


@call("embeddings.create, dimensions 128", HTTP)
def create_short(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=server.texts, dimensions=128))


@call("embeddings.create, one text in place of a list", HTTP)
def create_one(server: Server) -> Answers:
    client = client_of(server)
    responses = [client.embeddings.create(model=server.model, input=text) for text in server.texts]
    return {"embedding": [response.data[0].embedding for response in responses]}


@call("embeddings.create, 2,048 texts", HTTP)
def create_many(server: Server) -> Answers:
    texts = (server.texts * 2048)[:2048]
    found = vectors(client_of(server).embeddings.create(model=server.model, input=texts))["embedding"]
    assert len(found) == len(texts)
    return {
        "embedding": found[-len(server.texts) :] if len(texts) % len(server.texts) == 0 else found[: len(server.texts)]
    }


@call("AsyncOpenAI().embeddings.create", HTTP)
async def create_async(server: Server) -> Answers:
    context = ssl.create_default_context(cafile=server.ca)
    async with openai.AsyncOpenAI(
        **options(server), http_client=openai.DefaultAsyncHttpxClient(verify=context)
    ) as client:
        return vectors(await client.embeddings.create(model=server.model, input=server.texts))


@call("OpenAI() configured by environment variables", HTTP)
def create_by_environment(server: Server) -> Answers:
    os.environ |= {"OPENAI_BASE_URL": f"{server.http}/v1", "OPENAI_API_KEY": server.key or NO_KEY}
    return vectors(openai.OpenAI().embeddings.create(model=server.model, input=server.texts))


@call("models.list and models.retrieve", HTTP)
def models(server: Server) -> Answers:
    client = client_of(server)
    assert [one.id for one in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).object == "model"
    return {}


@mistake("unknown model", HTTP)
def unknown_model(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model="text-embedding-3-small", input=server.texts))


@mistake("too many texts", HTTP)
def too_many(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=["a"] * 2049))


@mistake("empty list", HTTP)
def empty(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=[]))


@mistake("token ids in place of texts", HTTP)
def token_ids(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=[[9906, 1917], [15339]]))


@mistake("too many dimensions", HTTP)
def dimensions(server: Server) -> Answers:
    return vectors(client_of(server).embeddings.create(model=server.model, input=server.texts, dimensions=1536))


@mistake("a method that the server does not have", HTTP)
def chat(server: Server) -> Answers:
    client_of(server).chat.completions.create(model=server.model, messages=[{"role": "user", "content": "hello"}])
    return {}
