"""The inference client of huggingface_hub, which speaks to text-embeddings-inference."""

from __future__ import annotations

from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient

from tests.interoperability.calls import Answers, Server, call, key_mistakes, mistake

HTTP = "text-embeddings-inference, HTTP"


def client_of(server: Server, path: str = "") -> Any:
    # TLS certificates come from SSL_CERT_FILE, as the client has no option for them.
    return InferenceClient(model=server.http + path, token=server.key)


def scores(elements: list[Any]) -> dict[str, float]:
    return {one.label: one.score for one in elements}


@call("InferenceClient.feature_extraction, URL of the server", HTTP)
@key_mistakes(HTTP)
def features(server: Server) -> Answers:
    client = client_of(server)
    return {"embedding": [client.feature_extraction(text)[0] for text in server.texts]}


@call("feature_extraction of a list, URL of /embed", HTTP)
def features_of_list(server: Server) -> Answers:
    return {"embedding": client_of(server, "/embed").feature_extraction(server.texts)}


@call("feature_extraction, normalize, truncate, truncation_direction", HTTP)
def features_options(server: Server) -> Answers:
    client = client_of(server)
    return {
        "embedding": client.feature_extraction(
            server.texts, normalize=True, truncate=True, truncation_direction="right"
        )
    }


@call("InferenceClient.text_classification, URL of the server", HTTP)
def classification(server: Server) -> Answers:
    client = client_of(server)
    return {"topic": [scores(client.text_classification(text)) for text in server.texts]}


@call("text_classification, URL of /predict, top_k", HTTP)
def classification_top(server: Server) -> Answers:
    client = client_of(server, "/predict")
    return {"topic_label": [client.text_classification(text, top_k=1)[0].label for text in server.texts]}


@call("AsyncInferenceClient.feature_extraction and text_classification", HTTP)
async def features_async(server: Server) -> Answers:
    async with AsyncInferenceClient(model=server.http, token=server.key) as client:
        return {
            "embedding": [(await client.feature_extraction(text))[0] for text in server.texts],
            "topic": [scores(await client.text_classification(text)) for text in server.texts],
        }


@mistake("too many texts", HTTP)
def too_many(server: Server) -> Answers:
    return {"embedding": client_of(server).feature_extraction(["a"] * (server.max_items + 1))}


@mistake("empty list", HTTP)
def empty(server: Server) -> Answers:
    return {"embedding": client_of(server).feature_extraction([])}


@mistake("token ids in place of texts", HTTP)
def token_ids(server: Server) -> Answers:
    return {"embedding": client_of(server).feature_extraction([[101, 2054, 102]])}


@mistake("flat list to /predict", HTTP)
def flat_list(server: Server) -> Answers:
    client_of(server, "/predict").text_classification(["a", "b"])
    return {}


@mistake("a method that the server does not have", HTTP)
def similarity(server: Server) -> Answers:
    client_of(server, "/similarity").sentence_similarity("a", ["b"])
    return {}
