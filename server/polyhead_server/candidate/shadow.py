"""The candidate's answers to sampled texts, and their comparison with those of the served model.

::

    packets -> tokenization -> batches -> engine, postprocessing -> HeadCounts, EmbeddingCounts -> ShadowReport
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.engines.collate import pad
from polyhead_server.inference.model import Model
from polyhead_server.inference.postprocessing import pool_windows, postprocess
from polyhead_server.inference.types import ModelOutput, TokenizedText
from polyhead_server.out_of_memory import exit_if_out_of_memory

from .agreement import EmbeddingCounts, HeadCounts, heads_in_both
from .histogram import LogHistogram
from .report import ShadowReport
from .samples import Sample, SampleError, Totals, split_values

logger = logging.getLogger(__name__)

# Smaller than the model's batches: the processor caches are the served model's.
MAX_BATCH_ITEMS = 16


@dataclass(frozen=True, slots=True)
class _Read:
    """A sample as the candidate reads it.

    Attributes:
        sample: The sample.
        numbers: The numbers of the served model's answer: embedding, then each head's.
        tokens: The text as the candidate's tokenizer reads it.
    """

    sample: Sample
    numbers: list[NDArray[np.float32]]
    tokens: TokenizedText


class ShadowWork:
    """Answers samples with the candidate and counts. Not safe for threads."""

    def __init__(self, model: Model, served: bundle.Manifest, served_digest: str, keep_texts: int) -> None:
        """Begins with no texts.

        Args:
            model: The candidate.
            served: Manifest of the served model.
            served_digest: Its digest; answers of other models are not compared.
            keep_texts: Number of changed texts to keep of each head; 0 keeps no text.
        """
        self._model = model
        self._served = served
        self._digest = bytes.fromhex(served_digest)
        manifest = model.source.manifest
        self._pairs, self._not_compared = heads_in_both(served, manifest)
        self._heads = [HeadCounts(served.heads[one], manifest.heads[two], keep_texts) for one, two in self._pairs]
        spaces = {variant.fingerprints.embedding_space for variant in served.variants.values()}
        same_space = model.fingerprints.embedding_space in spaces
        sizes = served.embedding.dimensions, manifest.embedding.dimensions
        self._embedding = EmbeddingCounts(same_space=same_space, sizes=sizes)
        self._totals: dict[int, Totals] = {}
        self._errors: Counter[str] = Counter()
        self._compared = self._other_model = 0
        self._served_latency, self._candidate_latency = LogHistogram(), LogHistogram()
        self._cpu_s = 0.0

    def add(self, samples: Sequence[tuple[Sample, Totals]]) -> None:
        """Answers samples and counts them."""
        for _, totals in samples:
            self._totals[totals.sender] = totals
        read = [one for sample, _ in samples if (one := self._read(sample))]
        for batch in self._batches(read):
            started, cpu_started = time.monotonic(), time.process_time()
            outputs = self._outputs(batch)
            self._cpu_s += time.process_time() - cpu_started
            per_text = (time.monotonic() - started) / len(batch)
            for one, output in zip(batch, outputs, strict=True):
                if output is None:
                    self._errors["INTERNAL"] += 1
                else:
                    self._compare(one, output)
                    self._candidate_latency.add(per_text)

    def report(self) -> ShadowReport:
        """Returns the counts so far."""
        totals = self._totals.values()
        return ShadowReport(
            answered=sum(one.answered for one in totals),
            selected=sum(one.selected for one in totals),
            dropped=sum(one.dropped for one in totals),
            compared=self._compared,
            errors=dict(self._errors),
            other_model=self._other_model,
            embedding=self._embedding.report(),
            heads=tuple(head.report() for head in self._heads),
            not_compared=self._not_compared,
            served=self._served_latency.latency(),
            candidate=self._candidate_latency.latency(),
            candidate_cpu_s=self._cpu_s / max(self._compared, 1),
        )

    def _read(self, sample: Sample) -> _Read | None:
        """Tokenizes a sample; counts one that cannot be compared and returns None."""
        if sample.digest != self._digest:
            self._other_model += 1
            return None
        prompts = self._model.source.manifest.prompts
        if sample.prompt and sample.prompt not in prompts:
            self._errors["UNKNOWN_PROMPT"] += 1
            return None
        prefix = prompts[sample.prompt] if sample.prompt else ""
        try:
            numbers = split_values(sample.values, self._served)
            (tokens,) = self._model.tokenizer.encode([prefix + sample.text], sample.max_windows, len(prefix))
        except SampleError:
            logger.exception("a sample is not valid")
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception
            self._fail("tokenization", error)
        else:
            return _Read(sample, numbers, tokens)
        self._errors["INTERNAL"] += 1
        return None

    def _batches(self, read: Sequence[_Read]) -> Iterator[list[_Read]]:
        """Divides texts into batches of similar length, each within the model's limit."""
        batch: list[_Read] = []
        for one in sorted(read, key=_longest):
            windows = sum(len(other.tokens.windows) for other in (*batch, one))
            too_large = windows * _longest(one) > self._model.max_batch_tokens
            if batch and (too_large or len(batch) >= MAX_BATCH_ITEMS):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _outputs(self, batch: Sequence[_Read]) -> list[ModelOutput | None]:
        """Returns the candidate's output for each text; None where it failed."""
        try:
            rows = self._run([window for one in batch for window in one.tokens.windows])
        except BaseException as error:  # noqa: BLE001 - each text is tried by itself, as the server does
            if len(batch) == 1:
                self._fail("a batch", error)
                return [None]
            return [self._outputs([one])[0] for one in batch]
        outputs: list[ModelOutput | None] = []
        for one in batch:
            windows, rows = rows[: len(one.tokens.windows)], rows[len(one.tokens.windows) :]
            outputs.append(self._pooled(one, windows))
        return outputs

    def _run(self, windows: Sequence[list[int]]) -> list[ModelOutput | None]:
        manifest = self._model.source.manifest
        input_ids, attention_mask = pad(list(windows), manifest.pad_token_id)  # (B, T) x 2
        return postprocess(manifest.heads, self._model.engine.run(input_ids, attention_mask))

    def _pooled(self, one: _Read, windows: Sequence[ModelOutput | None]) -> ModelOutput | None:
        finite = [window for window in windows if window is not None]
        if len(finite) < len(windows) or len(windows) == 1:
            return finite[0] if finite and len(windows) == 1 else None
        manifest = self._model.source.manifest
        tokens = [len(window) for window in one.tokens.windows]
        return pool_windows(manifest.heads, finite, tokens, normalized=manifest.embedding.normalized)

    def _compare(self, one: _Read, output: ModelOutput) -> None:
        self._compared += 1
        embedding, *heads = one.numbers
        self._embedding.add(embedding, output.embedding)
        for counts, (served, candidate) in zip(self._heads, self._pairs, strict=True):
            counts.add(one.sample.text, heads[served], output.probabilities[candidate])
        if one.sample.batch_items:
            self._served_latency.add(one.sample.compute_ns / 1e9 / one.sample.batch_items)

    def _fail(self, what: str, error: BaseException) -> None:
        exit_if_out_of_memory(error)
        # The message of a library may contain the text.
        logger.warning("%s of the candidate failed: %s", what, type(error).__name__)


def _longest(one: _Read) -> int:
    return max(map(len, one.tokens.windows))
