"""LangChain's embeddings of OpenAI and of Hugging Face."""

from __future__ import annotations

from typing import Any

import openai
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from langchain_openai import OpenAIEmbeddings

from tests.interoperability.calls import Answers, Server, call, key_mistakes, limitation, mistake

OPENAI, TEI = "OpenAI, HTTP", "text-embeddings-inference, HTTP"


def openai_embeddings(server: Server, **options: Any) -> OpenAIEmbeddings:
    verified = (
        {}
        if server.ca is None
        else {
            "http_client": openai.DefaultHttpxClient(verify=server.ca),
            "http_async_client": openai.DefaultAsyncHttpxClient(verify=server.ca),
        }
    )
    defaults: dict[str, Any] = {
        "model": server.model,
        "base_url": f"{server.http}/v1",
        "api_key": server.key or "none",
        "check_embedding_ctx_length": False,
        "max_retries": 0,
    }
    return OpenAIEmbeddings(**defaults | verified | options)


@call("OpenAIEmbeddings(check_embedding_ctx_length=False).embed_documents", OPENAI)
@key_mistakes(OPENAI)
def documents(server: Server) -> Answers:
    return {"embedding": openai_embeddings(server).embed_documents(server.texts)}


@call("OpenAIEmbeddings.embed_query", OPENAI)
def query(server: Server) -> Answers:
    embeddings = openai_embeddings(server)
    return {"embedding": [embeddings.embed_query(text) for text in server.texts]}


@call("OpenAIEmbeddings.aembed_documents", OPENAI)
async def documents_async(server: Server) -> Answers:
    return {"embedding": await openai_embeddings(server).aembed_documents(server.texts)}


@call("OpenAIEmbeddings(dimensions=128)", OPENAI)
def short(server: Server) -> Answers:
    return {"embedding": openai_embeddings(server, dimensions=128).embed_documents(server.texts)}


def endpoint_embeddings(server: Server) -> HuggingFaceEndpointEmbeddings:
    embeddings = HuggingFaceEndpointEmbeddings(model="local")
    embeddings.client = InferenceClient(model=server.http, token=server.key)
    embeddings.async_client = AsyncInferenceClient(model=server.http, token=server.key)
    return embeddings


@call("HuggingFaceEndpointEmbeddings, its client replaced by InferenceClient(URL)", TEI)
@key_mistakes(TEI)
def endpoint_documents(server: Server) -> Answers:
    return {"embedding": endpoint_embeddings(server).embed_documents(server.texts)}


@call("HuggingFaceEndpointEmbeddings.aembed_documents, its client replaced", TEI)
async def endpoint_documents_async(server: Server) -> Answers:
    return {"embedding": await endpoint_embeddings(server).aembed_documents(server.texts)}


@mistake("token ids in place of texts", OPENAI)
def token_ids(server: Server) -> Answers:
    # The default of OpenAIEmbeddings. The tokenizer is named, as finding the model's own would require a download.
    embeddings = openai_embeddings(server, check_embedding_ctx_length=True)
    embeddings.client.create(input=[[9906, 1917]], model=server.model)
    return {}


@limitation("HuggingFaceEndpointEmbeddings(model=URL)", TEI)
def endpoint_url(server: Server) -> Answers:
    HuggingFaceEndpointEmbeddings(model=server.http)
    return {}


@mistake("unknown model", OPENAI)
def unknown_model(server: Server) -> Answers:
    return {"embedding": openai_embeddings(server, model="text-embedding-3-small").embed_documents(server.texts)}


@mistake("too many texts", OPENAI)
def too_many(server: Server) -> Answers:
    return {"embedding": openai_embeddings(server, chunk_size=2049).embed_documents(["a"] * 2049)}
