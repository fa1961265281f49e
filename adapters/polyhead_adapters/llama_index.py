"""LlamaIndex: embeddings.

Install it with ``pip install 'polyhead[llama-index]'``.
"""

from __future__ import annotations

from ._extras import provided_by

with provided_by("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import Field

    from ._fields import ConnectionFields


class PolyheadEmbedding(ConnectionFields, BaseEmbedding):
    """Embeddings of a polyhead server.

    The texts of a batch share one request or stream, and failed connections are retried::

        embed_model = PolyheadEmbedding(target="127.0.0.1:50051")
        index = VectorStoreIndex.from_documents(documents, embed_model=embed_model)

    The fields of ``ConnectionFields`` configure it, and these. Serialized forms do not contain the API key:
    ``from_dict`` reads it from ``POLYHEAD_API_KEY`` or from an argument.

    Attributes:
        dimensions: Number of leading values of each embedding to return; None for all.
        query_prompt: Name of the model's prompt for queries, such as ``"query"``; None for none.
        text_prompt: Name of the model's prompt for texts of an index, such as ``"passage"``; None for none.
    """

    model_name: str = "polyhead"
    embed_batch_size: int = Field(default=512, gt=0, le=2048)  # the server forms its own batches
    dimensions: int | None = None
    query_prompt: str | None = None
    text_prompt: str | None = None

    @classmethod
    def class_name(cls) -> str:
        """Returns the name of the class in serialized forms."""
        return "PolyheadEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._connection.vectors([query], self.query_prompt)[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._connection.vectors([text], self.text_prompt)[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._connection.vectors(texts, self.text_prompt)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._connection.avectors([query], self.query_prompt))[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._connection.avectors([text], self.text_prompt))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._connection.avectors(texts, self.text_prompt)
