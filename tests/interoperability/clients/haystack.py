"""Haystack's embedders of text-embeddings-inference, over HTTP and gRPC, and of OpenAI."""

from __future__ import annotations

from typing import Any

from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.dataclasses import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

HTTP, GRPC, OPENAI = "text-embeddings-inference, HTTP", "text-embeddings-inference, gRPC", "OpenAI, HTTP"
NO_TLS = "the component opens gRPC connections without TLS"


def options(server: Server, *, grpc: bool = False) -> dict[str, Any]:
    return {
        "api_type": "text_embeddings_inference",
        "api_params": {"url": server.grpc if grpc else server.http},
        "token": Secret.from_token(server.key) if server.key else None,
    } | ({"use_grpc": True} if grpc else {})


def openai_options(server: Server) -> dict[str, Any]:
    return {
        "api_base_url": f"{server.http}/v1",
        "api_key": Secret.from_token(server.key or "none"),
        "model": server.model,
        "max_retries": 0,
        "http_client_kwargs": {"verify": server.ca} if server.ca else None,
    }


def of_documents(embedder: Any, server: Server) -> Answers:
    documents = embedder.run(documents=[Document(content=text) for text in server.texts])["documents"]
    return {"embedding": [document.embedding for document in documents]}


@call("HuggingFaceAPITextEmbedder", HTTP)
@key_mistakes(HTTP)
def text(server: Server) -> Answers:
    embedder = HuggingFaceAPITextEmbedder(**options(server))
    return {"embedding": [embedder.run(text=one)["embedding"] for one in server.texts]}


@call("HuggingFaceAPITextEmbedder.run_async", HTTP)
async def text_async(server: Server) -> Answers:
    embedder = HuggingFaceAPITextEmbedder(**options(server))
    vectors = [(await embedder.run_async(text=one))["embedding"] for one in server.texts]
    await embedder.close_async()
    return {"embedding": vectors}


@call("HuggingFaceAPIDocumentEmbedder", HTTP)
def documents(server: Server) -> Answers:
    return of_documents(HuggingFaceAPIDocumentEmbedder(**options(server)), server)


@call("HuggingFaceAPITextEmbedder(use_grpc=True)", GRPC, plain_only=NO_TLS)
def text_grpc(server: Server) -> Answers:
    embedder = HuggingFaceAPITextEmbedder(**options(server, grpc=True))
    return {"embedding": [embedder.run(text=one)["embedding"] for one in server.texts]}


@call("HuggingFaceAPIDocumentEmbedder(use_grpc=True)", GRPC, plain_only=NO_TLS)
def documents_grpc(server: Server) -> Answers:
    return of_documents(HuggingFaceAPIDocumentEmbedder(**options(server, grpc=True)), server)


@call("OpenAITextEmbedder", OPENAI)
@key_mistakes(OPENAI)
def openai_text(server: Server) -> Answers:
    embedder = OpenAITextEmbedder(**openai_options(server))
    return {"embedding": [embedder.run(text=one)["embedding"] for one in server.texts]}


@call("OpenAIDocumentEmbedder", OPENAI)
def openai_documents(server: Server) -> Answers:
    return of_documents(OpenAIDocumentEmbedder(**openai_options(server), raise_on_failure=True), server)


@mistake("unknown model", OPENAI)
def unknown_model(server: Server) -> Answers:
    embedder = OpenAITextEmbedder(**openai_options(server) | {"model": "text-embedding-3-small"})
    return {"embedding": [embedder.run(text="a")["embedding"]]}


@mistake("too many texts", HTTP)
def too_many(server: Server) -> Answers:
    embedder = HuggingFaceAPIDocumentEmbedder(**options(server), batch_size=server.max_items + 1, progress_bar=False)
    embedder.run(documents=[Document(content="a")] * (server.max_items + 1))
    return {}


@mistake("text beyond the token limit", GRPC)
def long_text(server: Server) -> Answers:
    embedder = HuggingFaceAPITextEmbedder(**options(server, grpc=True), truncate=False)
    return {"embedding": [embedder.run(text="word " * 2000)["embedding"]]}
