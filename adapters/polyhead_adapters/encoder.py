"""``encode()`` as in sentence-transformers, for libraries that accept any object with this method.

Install it with ``pip install 'polyhead[client]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, Unpack

from ._extras import provided_by

with provided_by("client"):
    import numpy as np
    from numpy.typing import NDArray

    from ._connection import Connection, ConnectionOptions


class PolyheadEncoder:
    """An encoder of texts with the most common methods of ``sentence_transformers.SentenceTransformer``.

    Use it as a context manager, or call ``close``::

        with PolyheadEncoder("127.0.0.1:50051") as encoder:
            matrix = encoder.encode(["Where is my refund?", "Love it!"], normalize_embeddings=True)
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        dimensions: int | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        """Configures the encoder; it connects at the first call.

        Args:
            target: ``HOST:PORT`` of the server, or another target that ``polyhead_client.Client`` accepts.
            api_key: API key, sent over TLS or to this machine only.
            dimensions: Number of leading values of each embedding to return; None for all.
            **options: See ``ConnectionOptions``.

        Raises:
            InvalidRequestError: An argument has an invalid value.
            TypeError: An option is unknown.
        """
        self._connection = Connection(target, api_key=api_key, dimensions=dimensions, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._connection.close()

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        batch_size: int = 32,  # noqa: ARG002
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        prompt_name: str | None = None,
    ) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            sentences: The texts, or one text.
            batch_size: Ignored: the server forms its own batches.
            show_progress_bar: Show a progress bar.
            convert_to_numpy: True; nothing else is supported.
            convert_to_tensor: False; nothing else is supported.
            normalize_embeddings: Scale every embedding to length 1. Most models do so themselves.
            prompt_name: Name of the model's prompt to put before each text; None for the option ``prompt``.

        Returns:
            Array of float32, shape (number of texts, dimensions), in the order of the texts; shape (dimensions,) for a
            single ``str``.

        Raises:
            ValueError: A tensor or a list was requested.
            ItemFailedError: A text has an error, the first of them; its id is the position of the text.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        if convert_to_tensor or not convert_to_numpy:
            raise ValueError("encode() returns a numpy array; pass it to torch.from_numpy, or to list")
        texts = [sentences] if isinstance(sentences, str) else sentences
        matrix = self._connection.embeddings(texts, prompt=prompt_name, show_progress=bool(show_progress_bar))
        if normalize_embeddings:
            lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
            matrix = matrix / np.maximum(lengths, np.finfo(np.float32).tiny)
        return matrix[0] if isinstance(sentences, str) else matrix

    def get_sentence_embedding_dimension(self) -> int:
        """Returns the number of values of an embedding."""
        return self._connection.embeddings([]).shape[1]
