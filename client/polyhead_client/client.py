"""The client for threads."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Self, Unpack
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from polyhead_client.core.stream_state import Text
from polyhead_client.transport.thread_runtime import ThreadRuntime, run

from ._base import BaseClient
from .model_info import ModelInfo
from .options import AnalyzeOptions, EmbedOptions, UnaryDeadline, UnaryOptions, documented, resolve
from .session import Session
from .streaming import Stream
from .types import Answer

_running: WeakSet[Stream] = WeakSet()


@atexit.register
def _stop_streams() -> None:
    """Stops the streams that are open at exit, while their threads still run.

    Later the interpreter stops daemon threads wherever they are, perhaps while they hold a lock of gRPC, and cancelling
    a call would wait for that lock for ever.
    """
    for stream in list(_running):
        run(stream.stop())


# A child process has none of the threads of its parent's streams.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_running.clear)


class Client(BaseClient[Iterable[Text], Iterator[Answer]]):
    """A blocking client of one server, or of several that serve the same model. Threads may share it.

    Use it as a context manager, or call ``close``::

        with Client("127.0.0.1:50051") as client:
            for answer in client.analyze(texts):
                print(answer.item_id, answer.sentiment.label)
            for answer in client.stream(lines):  # any iterable, even an infinite one
                print(answer.item_id, answer.sentiment.label)

    After a fork it connects again in the child process.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; running calls end with UnavailableError."""
        run(self._close())

    @documented(AnalyzeOptions)
    def analyze(self, texts: Iterable[Text], **options: Unpack[AnalyzeOptions]) -> list[Answer]:
        """Analyzes a batch of texts and returns their answers in order; a large batch takes several calls.

        The call is retried while the server is away, or is overloaded and sends a retry delay.

        Args:
            texts: The texts to analyze, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``AnalyzeOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, AnalyzeOptions, options))

    @documented(EmbedOptions)
    def embed(self, texts: Iterable[Text], **options: Unpack[EmbedOptions]) -> list[Answer]:
        """Returns answers with their embeddings, otherwise like ``analyze``.

        Args:
            texts: The texts to embed, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``EmbedOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, EmbedOptions, options, "embedding"))

    @documented(UnaryOptions)
    def classify(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with their classifications, otherwise like ``analyze``.

        Args:
            texts: The texts to classify, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, UnaryOptions, options, "classification"))

    @documented(UnaryOptions)
    def sentiment(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with their sentiments, otherwise like ``analyze``.

        Args:
            texts: The texts to rate, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, UnaryOptions, options, "sentiment"))

    @documented(UnaryOptions)
    def labels(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with the labels of their multilabel heads, otherwise like ``analyze``.

        Args:
            texts: The texts to label, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, UnaryOptions, options, "labels"))

    @documented(UnaryOptions)
    def score(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with the scores of their ordinal and regression heads, otherwise like ``analyze``.

        Args:
            texts: The texts to score, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, UnaryOptions, options, "score"))

    @documented(EmbedOptions)
    def embeddings(self, texts: Iterable[Text], **options: Unpack[EmbedOptions]) -> NDArray[np.float32]:
        """Returns the embeddings of a batch of texts as one matrix.

        Args:
            texts: The texts to embed, as for ``embed``.
            **options: See ``EmbedOptions``.

        Returns:
            Array of float32, shape (number of texts, dimensions), in the order of the texts. Shape (0, dimensions)
            without texts, for which the server is asked for its dimensions unless they are given.

        Raises:
            ItemFailedError: A text has an error, the first of them; no embedding is returned. ``embed`` returns the
                others.
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._embeddings(texts, options))

    @documented(UnaryDeadline)
    def info(self, **options: Unpack[UnaryDeadline]) -> ModelInfo:
        """Describes the model behind the server and how the server runs it.

        Args:
            **options: See ``UnaryDeadline``.

        Raises:
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return run(self._info(**resolve(UnaryDeadline, options)))

    def _create_runtime(self) -> ThreadRuntime:
        return ThreadRuntime()

    def _answers(self, open_stream: Callable[[], tuple[Session, Stream]], texts: Iterable[Text]) -> Iterator[Answer]:
        session, stream = open_stream()
        with session.running(stream):
            _running.add(stream)
            try:
                stream.start(texts)
                while answers := run(stream.next_answers()):
                    yield from answers
            finally:
                if session.runtime.usable():  # in a forked process, gRPC's locks may be held by threads of the parent
                    run(stream.stop())
