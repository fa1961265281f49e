"""LitServe: two worker processes, JSON over HTTP with base64 embeddings."""

from __future__ import annotations

import base64
from typing import Any

import litserve  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting


class Polyhead(litserve.LitAPI):  # type: ignore[misc]
    """Runs the graph on texts."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Loads the graph in a worker."""
        self.graph = Graph()

    def decode_request(self, request: dict[str, str]) -> str:
        """Returns the text of a request."""
        return request["text"]

    def predict(self, texts: Any) -> list[Any]:
        """Runs a list of texts, or a single text where batching is off."""
        return list(zip(*self.graph.run([texts] if isinstance(texts, str) else texts), strict=True))

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Returns the answer to a text."""
        embedding, probabilities, sentiment = output[0] if isinstance(output, list) else output
        return {
            "embedding": base64.b64encode(embedding.tobytes()).decode(),
            "probabilities": probabilities.tolist(),
            "sentiment": float(sentiment[0]),
        }


if __name__ == "__main__":
    setting = Setting.from_environment()
    api = Polyhead(max_batch_size=setting.batch, batch_timeout=setting.wait_ms / 1000 if setting.batch > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, timeout=60)
    server.run(host="127.0.0.1", port=setting.port, generate_client_file=False, log_level="warning")
