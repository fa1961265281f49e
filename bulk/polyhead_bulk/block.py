"""One block of texts on its way through the model: tokenized, computed batch by batch, finished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from polyhead_server.errors import TextTooLongError
from polyhead_server.inference.model import Model
from polyhead_server.inference.postprocessing import pool_windows, probabilities
from polyhead_server.inference.types import ModelOutput

from .answers import NOT_FINITE, Answers
from .layout import Layout
from .texts import Texts
from .token_block import TokenBlock

Batch = NDArray[np.intp]


@dataclass(frozen=True)
class _Windows:
    """The outputs of all windows of a long text, to be pooled when the last one is computed."""

    outputs: list[ModelOutput | None]
    tokens: list[int]


class Block:
    """Texts that are sorted by length together.

    Threads: one thread makes the block, compute threads call ``compute`` for one batch each, and one thread waits in
    ``finish``. Batches write to different rows of the arrays; ``_lock`` guards the number of batches that are left.
    """

    def __init__(self, parts: list[Texts], model: Model, layout: Layout) -> None:
        """Tokenizes the texts.

        Args:
            parts: The texts, in the parts that the caller gets back.
            model: The model.
            layout: The columns of the answers.
        """
        self.parts = parts
        self._model = model
        self._layout = layout
        prefix = layout.prefix
        texts = [prefix + text for part in parts for text in part.values]
        self._answers = Answers.allocate(layout, len(texts))
        begin = 0
        for part in parts:
            self._answers.errors.update({begin + row: reason for row, reason in part.errors.items()})
            begin += len(part)
        options = layout.options
        max_windows = options.max_windows if options.truncation == "window" else 1
        self._tokens = TokenBlock.encode(model.tokenizer, texts, max_windows, len(prefix))
        self._answers.tokens[:] = self._tokens.seen
        self._answers.truncated[:] = self._tokens.truncated
        if options.truncation == "error":
            self._reject_long_texts()
        counts = np.bincount(self._tokens.rows, minlength=len(texts))
        # Windows of each text that has several, and their outputs.
        self._pooled: dict[int, _Windows] = {}
        self._first_window = np.cumsum(counts) - counts
        for row in np.flatnonzero(counts > 1).tolist():
            first = self._first_window[row]
            lengths = self._tokens.lengths[first : first + counts[row]].tolist()
            self._pooled[row] = _Windows([None] * len(lengths), lengths)
        self._lock = threading.Lock()
        self._left = 0
        self._done = threading.Event()

    def batches(self) -> list[Batch]:
        """Returns the batches, each for one call of ``compute``."""
        failed = np.zeros(len(self._answers.tokens), np.bool_)
        failed[list(self._answers.errors)] = True
        windows = np.flatnonzero(~failed[self._tokens.rows])
        batches = list(self._tokens.batches(windows, self._model.max_batch_tokens))
        self._left = len(batches)
        if not batches:
            self._done.set()
        return batches

    def compute(self, batch: Batch) -> bool:
        """Computes a batch and stores its answers; where that fails, each of its texts by itself.

        Returns:
            Whether the model computed any of its texts.
        """
        try:
            return self._run(batch)
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._done.set()

    def abandon(self) -> None:
        """Releases a thread that waits in ``finish``."""
        self._done.set()

    def finish(self) -> Iterator[tuple[Texts, Answers]]:
        """Waits for all batches; yields each part with its answers."""
        self._done.wait()
        for row, windows in self._pooled.items():
            self._pool(row, windows)
        begin = 0
        for part in self.parts:
            yield part, self._answers.slice(begin, begin + len(part))
            begin += len(part)

    def _reject_long_texts(self) -> None:
        errors, seen = self._answers.errors, self._tokens.seen
        for row in np.flatnonzero(self._tokens.truncated).tolist():
            errors.setdefault(row, str(TextTooLongError(int(seen[row]), self._layout.facts.max_tokens)))

    def _run(self, batch: Batch) -> bool:
        try:
            inputs = self._tokens.pad(batch, self._model.source.manifest.pad_token_id)  # (B, T) x 2
            embedding, *logits = self._model.engine.run(*inputs)
            self._store(batch, embedding, logits)
        except Exception as error:  # noqa: BLE001 - one bad text must not fail its batch-mates
            if len(batch) > 1:
                computed = [self._run(np.array([window])) for window in batch]
                return any(computed)
            self._answers.errors[int(self._tokens.rows[batch[0]])] = f"the model failed: {type(error).__name__}"
            return False
        return True

    def _store(self, batch: Batch, embedding: NDArray[np.float32], logits: list[NDArray[np.float32]]) -> None:
        with np.errstate(all="ignore"):  # values that are not finite are found below
            scores = [probabilities(head, logits[index]) for index, head in self._layout.heads]
        every = (embedding, *logits, *scores)
        finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in every])  # (B,)
        rows = self._tokens.rows[batch]
        if self._pooled:
            whole = np.array([row not in self._pooled for row in rows.tolist()])
            for number in np.flatnonzero(~whole):
                output = ModelOutput(embedding[number], tuple(values[number] for values in logits), ())
                row = int(rows[number])
                window = batch[number] - self._first_window[row]
                self._pooled[row].outputs[window] = output if finite[number] else None
            rows, embedding, finite = rows[whole], embedding[whole], finite[whole]
            scores = [values[whole] for values in scores]
        self._answers.put(rows, embedding, scores, finite, self._novelty(embedding))

    def _pool(self, row: int, windows: _Windows) -> None:
        """Combines the outputs of a text's windows as the server does."""
        manifest = self._model.source.manifest
        outputs = [output for output in windows.outputs if output is not None]
        if row in self._answers.errors:
            return
        pooled = None
        if len(outputs) == len(windows.outputs):
            normalized = manifest.embedding.normalized
            pooled = pool_windows(manifest.heads, outputs, windows.tokens, normalized=normalized)
        if pooled is None:
            self._answers.errors[row] = NOT_FINITE
            return
        scores = [pooled.probabilities[index][None] for index, _ in self._layout.heads]
        embedding = pooled.embedding[None]
        self._answers.put(np.array([row]), embedding, scores, np.array([True]), self._novelty(embedding))

    def _novelty(self, embedding: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Returns the novelty of each text, (B,); None where it is not wanted."""
        if not self._layout.options.novelty or self._model.novelty is None:
            return None
        with np.errstate(all="ignore"):  # that of an embedding that is not finite is never stored
            return self._model.novelty.score(embedding)
