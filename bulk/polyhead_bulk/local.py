"""Answers a stream of texts with a model in this process: tokenization beside computation, one thread per core.

::

    texts -> blocks (tokenized, sorted by length) -> batches -> compute threads -> answers in the order of the texts
             (one thread)                            (queue)    (one per core)     (thread of the caller)

Two blocks are in progress at once, so that compute threads find work while the next block is tokenized and the caller
writes the last one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

import polyhead_bundle as bundle
from polyhead_server.inference.model import Model, self_test

from .answers import Answers
from .block import Batch, Block
from .errors import EngineError
from .layout import Layout, ModelFacts
from .texts import Texts

# Texts that are sorted together. More make padding no smaller; fewer leave the longest texts without batch-mates.
MAX_BLOCK_TEXTS = 16_384
# Characters of the texts, and bytes of what is kept beside them.
_MAX_BLOCK_SIZE = 16 * 2**20
# The first block of a stream, for whose tokenization the compute threads wait. Each next one is twice as large.
_FIRST_BLOCK_TEXTS = 1024
_BLOCKS_IN_PROGRESS = 2
# After so many failed batches in a row the engine is probed.
_MAX_FAILED_BATCHES = 20
_JOIN_TIMEOUT_S = 5.0


def facts(model: Model) -> ModelFacts:
    """Returns what the output depends on."""
    manifest = model.source.manifest
    runtime = model.engine.runtime
    return ModelFacts(
        model_id=model.source.model_id,
        digest=model.source.digest,
        variant=runtime.variant,
        runtime=str(runtime),
        fingerprints=bundle.Fingerprints(model.fingerprints.embedding_space, dict(model.fingerprints.heads)),
        heads=manifest.heads,
        dimensions=manifest.embedding.dimensions,
        normalized=manifest.embedding.normalized,
        max_tokens=manifest.max_tokens,
        prompts=manifest.prompts,
        has_novelty=model.novelty is not None,
    )


def answer(model: Model, layout: Layout, threads: int, texts: Iterable[Texts]) -> Iterator[tuple[Texts, Answers]]:
    """Yields each group of texts with its answers, in order. The texts are read in another thread, some blocks ahead.

    Args:
        model: The model.
        layout: The columns of the answers.
        threads: Number of compute threads.
        texts: Groups of texts, of any sizes.

    Raises:
        Exception: What reading ``texts`` raised, after the answers of everything before it.
    """
    stream = _Stream(model, layout, threads, texts)
    try:
        yield from stream.answers()
    finally:
        stream.close()


class _Stream:
    """The threads and queues of one call of ``answer``."""

    def __init__(self, model: Model, layout: Layout, threads: int, texts: Iterable[Texts]) -> None:
        self._model = model
        self._layout = layout
        self._texts = texts
        self._permits = threading.Semaphore(_BLOCKS_IN_PROGRESS)
        self._batches: queue.SimpleQueue[tuple[Block, Batch] | None] = queue.SimpleQueue()
        self._blocks: queue.SimpleQueue[Block | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._failed_batches = 0
        self._failure: BaseException | None = None
        targets = [self._feed, *[self._compute] * threads]
        self._threads = [threading.Thread(target=target, name="bulk", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def answers(self) -> Iterator[tuple[Texts, Answers]]:
        """Yields the answers, block by block."""
        while (block := self._blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            answered = list(block.finish())
            if self._failure is not None:
                raise self._failure
            self._permits.release()
            yield from answered

    def close(self) -> None:
        """Ends the threads; batches that have not started are dropped."""
        self._stopped.set()
        self._permits.release()
        # The first thread may wait for input that never comes.
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)

    def _feed(self) -> None:
        """Thread boundary: reads texts and enqueues their batches; an exception becomes the last element."""
        try:
            for parts in _blocks(self._texts):
                self._permits.acquire()
                if self._stopped.is_set():
                    break
                block = Block(parts, self._model, self._layout)
                batches = block.batches()
                self._blocks.put(block)
                for batch in batches:
                    self._batches.put((block, batch))
            self._blocks.put(None)
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            self._blocks.put(error)
        finally:
            if close := getattr(self._texts, "close", None):
                close()
            for _ in self._threads:
                self._batches.put(None)

    def _compute(self) -> None:
        """Thread boundary: computes batches until there are no more."""
        while (task := self._batches.get()) is not None:
            block, batch = task
            if self._stopped.is_set():
                block.abandon()
                continue
            try:
                self._count_failure(failed=not block.compute(batch))
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                self._failure = error
                self._stopped.set()
                block.abandon()

    def _count_failure(self, *, failed: bool) -> None:
        """Tells a broken engine from texts that it cannot compute.

        Raises:
            EngineError: Many batches in a row failed, and then the golden texts.
        """
        with self._lock:
            self._failed_batches = self._failed_batches + 1 if failed else 0
            if self._failed_batches < _MAX_FAILED_BATCHES:
                return
            self._failed_batches = 0
        try:
            self_test(self._model.source, self._model.tokenizer, self._model.engine)
        except Exception as error:
            reason = f"{_MAX_FAILED_BATCHES} batches in a row failed, and then the model's self-test: {error}"
            raise EngineError(reason) from error


def _blocks(texts: Iterable[Texts]) -> Iterator[list[Texts]]:
    """Groups texts into blocks that are sorted by length together."""
    parts: list[Texts] = []
    count = size = 0
    limit = _FIRST_BLOCK_TEXTS
    failure: Exception | None = None
    try:
        for part in texts:
            parts.append(part)
            count += len(part)
            size += sum(map(len, part.values)) + part.payload_bytes
            if count >= limit or size >= _MAX_BLOCK_SIZE:
                yield parts
                parts, count, size = [], 0, 0
                limit = min(2 * limit, MAX_BLOCK_TEXTS)
    except Exception as error:  # noqa: BLE001 - raised below, after the texts before it
        failure = error
    if parts:
        yield parts
    if failure is not None:
        raise failure
