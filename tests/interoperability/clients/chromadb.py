"""chroma's embedding functions for text-embeddings-inference and OpenAI, and a collection that uses them."""

from __future__ import annotations

import chromadb
from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

TEI, OPENAI = "text-embeddings-inference, HTTP", "OpenAI, HTTP"


def tei(server: Server) -> HuggingFaceEmbeddingServer:
    return HuggingFaceEmbeddingServer(url=f"{server.http}/embed", api_key=server.key)


def openai(server: Server, model: str = "") -> OpenAIEmbeddingFunction:
    return OpenAIEmbeddingFunction(
        api_base=f"{server.http}/v1", api_key=server.key or "none", model_name=model or server.model
    )


@call("HuggingFaceEmbeddingServer", TEI)
@key_mistakes(TEI)
def tei_function(server: Server) -> Answers:
    return {"embedding": list(tei(server)(server.texts))}


@call("OpenAIEmbeddingFunction", OPENAI)
@key_mistakes(OPENAI)
def openai_function(server: Server) -> Answers:
    return {"embedding": list(openai(server)(server.texts))}


@call("Collection.add and query with HuggingFaceEmbeddingServer", TEI)
def collection(server: Server) -> Answers:
    client = chromadb.EphemeralClient()
    name = "tls" if server.ca else "plain"
    texts = client.create_collection(name, embedding_function=tei(server))
    ids = [str(index) for index in range(len(server.texts))]
    texts.add(ids=ids, documents=server.texts)
    nearest = texts.query(query_texts=server.texts, n_results=1)["ids"]
    assert nearest == [[one] for one in ids]
    return {"embedding": list(texts.get(ids=ids, include=["embeddings"])["embeddings"])}


@mistake("too many texts", TEI)
def too_many(server: Server) -> Answers:
    return {"embedding": list(tei(server)(["a"] * (server.max_items + 1)))}


@mistake("unknown model", OPENAI)
def unknown_model(server: Server) -> Answers:
    return {"embedding": list(openai(server, "text-embedding-3-small")(["a"]))}
