"""LlamaIndex's embeddings of text-embeddings-inference and of OpenAI-like servers."""

from __future__ import annotations

from typing import Any

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

TEI, OPENAI = "text-embeddings-inference, HTTP", "OpenAI, HTTP"


def tei(server: Server, **options: Any) -> TextEmbeddingsInference:
    return TextEmbeddingsInference(model_name=server.model, base_url=server.http, auth_token=server.key, **options)


def openai_like(server: Server, **options: Any) -> OpenAILikeEmbedding:
    defaults = {"model_name": server.model, "api_base": f"{server.http}/v1", "api_key": server.key or "none"}
    return OpenAILikeEmbedding(**defaults | {"max_retries": 0} | options)


@call("TextEmbeddingsInference.get_text_embedding_batch", TEI)
@key_mistakes(TEI)
def tei_batch(server: Server) -> Answers:
    return {"embedding": tei(server).get_text_embedding_batch(server.texts)}


@call("TextEmbeddingsInference.get_query_embedding", TEI)
def tei_query(server: Server) -> Answers:
    embeddings = tei(server)
    return {"embedding": [embeddings.get_query_embedding(text) for text in server.texts]}


@call("TextEmbeddingsInference.aget_text_embedding_batch", TEI)
async def tei_async(server: Server) -> Answers:
    return {"embedding": await tei(server).aget_text_embedding_batch(server.texts)}


@call("OpenAILikeEmbedding.get_text_embedding_batch", OPENAI)
@key_mistakes(OPENAI)
def openai_batch(server: Server) -> Answers:
    return {"embedding": openai_like(server).get_text_embedding_batch(server.texts)}


@call("OpenAILikeEmbedding.aget_text_embedding_batch", OPENAI)
async def openai_async(server: Server) -> Answers:
    return {"embedding": await openai_like(server).aget_text_embedding_batch(server.texts)}


@mistake("text beyond the token limit", TEI)
def tei_long(server: Server) -> Answers:
    return {"embedding": tei(server, truncate_text=False).get_text_embedding_batch(["word " * 2000])}


@mistake("too many texts", TEI)
def tei_too_many(server: Server) -> Answers:
    texts = ["a"] * (server.max_items + 1)
    return {"embedding": tei(server, embed_batch_size=server.max_items + 1).get_text_embedding_batch(texts)}


@mistake("unknown model", OPENAI)
def unknown_model(server: Server) -> Answers:
    return {"embedding": openai_like(server, model_name="text-embedding-3-small").get_text_embedding_batch(["a"])}
