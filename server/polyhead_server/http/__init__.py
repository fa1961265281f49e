"""The HTTP API: OpenAI, text-embeddings-inference and Open Inference Protocol requests, ``/v1/analyze``, and a page."""
