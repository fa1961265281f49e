"""The onnxruntime upper bound: the same graph on the same cores without tokenizer, network or waiting."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polyhead_bundle as bundle
from polyhead_server.engines.collate import pad
from polyhead_server.engines.onnx import OnnxEngine
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import usable_cores

from .results import Figures

# The batch size limit in tokens that gives the highest rate for all-MiniLM-L6-v2 on a CPU.
MAX_BATCH_TOKENS = 512
# Texts that are measured one at a time.
_SINGLE_TEXTS = 200
# Characters per token that the server reads of a text before it tokenizes.
_CHARACTERS_PER_TOKEN = 250

_Ids = TypeVar("_Ids", bound=Sized)


def open_tokenizer(source: bundle.Bundle) -> Tokenizer:
    """Opens the tokenizer of a bundle as the server does."""
    longest = source.manifest.max_tokens
    return Tokenizer(source.file("tokenizer.json"), longest, _CHARACTERS_PER_TOKEN * longest)


def batches_of_similar_length(ids: Sequence[_Ids], max_tokens: int) -> list[list[_Ids]]:
    """Sorts texts by length and splits them into batches of at most ``max_tokens`` tokens including padding."""
    batches: list[list[_Ids]] = [[]]
    for one in sorted(ids, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(one) > max_tokens:
            batches.append([])
        batches[-1].append(one)
    return batches


class UpperBound:
    """onnxruntime on every core, over texts that were tokenized, sorted by length and padded beforehand."""

    def __init__(self, path: Path, variant: str, texts: Sequence[str]) -> None:
        source = bundle.load(path)
        pad_token_id = source.manifest.pad_token_id
        ids = [one.windows[0] for one in open_tokenizer(source).encode(list(texts))]
        self._batches = [pad(batch, pad_token_id) for batch in batches_of_similar_length(ids, MAX_BATCH_TOKENS)]
        by_length = sorted(ids, key=len)
        self._singles = [pad([one], pad_token_id) for one in by_length[:: max(1, len(ids) // _SINGLE_TEXTS)]]
        # Batches of all lengths in a random order, so that any part of the sequence represents the whole.
        self._order = np.random.default_rng(0).permutation(len(self._batches))
        self._engine = OnnxEngine(source, variant, "cpu")

    def items_per_s(self, seconds: float) -> float:
        """Measures texts per second with one thread per core for this many seconds."""
        ends = time.perf_counter() + seconds
        work: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(1000):
            for number in self._order:
                work.put(number)

        def compute() -> None:
            while time.perf_counter() < ends:
                batch = self._batches[work.get()]
                self._engine.run(*batch)
                done.put(len(batch[0]))

        began = time.perf_counter()
        _run_on_every_core(compute)
        return sum(done.get() for _ in range(done.qsize())) / (time.perf_counter() - began)

    def whole_pass(self) -> Figures:
        """Computes every text once, with one thread per core; returns ``wall_s`` and ``cpu_s``."""
        work: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # Each thread ends at None.
        for number in [*self._order.tolist(), *([None] * usable_cores())]:
            work.put(number)

        def compute() -> None:
            while (number := work.get()) is not None:
                self._engine.run(*self._batches[number])

        began, began_cpu = time.perf_counter(), time.process_time()
        _run_on_every_core(compute)
        return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}

    def single_text_ms(self) -> float:
        """Measures the median time of a batch of one text on one thread, in milliseconds."""
        return 1000 * statistics.median(self._run_s(*one) for one in self._singles)

    def _run_s(self, *one: Any) -> float:
        began = time.perf_counter()
        self._engine.run(*one)
        return time.perf_counter() - began


def _run_on_every_core(compute: Callable[[], None]) -> None:
    threads = [threading.Thread(target=compute) for _ in range(usable_cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def with_efficiency(figures: Mapping[str, float], upper_bound: float) -> Figures:
    """Adds the efficiency: throughput divided by the onnxruntime upper bound.

    ``efficiency_without_client`` divides by the part of the upper bound that the client's CPU time left to the server.
    """
    efficiency = figures["items_per_s"] / upper_bound
    without_client = efficiency / (1 - figures["client_cores"] / usable_cores())
    return {
        "upper_bound": upper_bound,
        "efficiency": efficiency,
        "efficiency_without_client": without_client,
        **figures,
    }
