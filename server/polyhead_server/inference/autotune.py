"""Measures the engine at startup to determine the batch size limit and the fixed cost of a batch.

A smaller batch pays its fixed cost again and again; a larger one only makes every text in it wait.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead_server.engines import Engine

logger = logging.getLogger(__name__)

# Length of the texts to measure with: a sentence or two.
_TEXT_TOKENS = 32
_MIN_BATCH_TOKENS = 64
_MAX_BATCH_TOKENS = 32_768
# A longer batch gains less than it costs those who wait for it, and measuring ever longer ones would delay the start.
_MAX_BATCH_S = 0.04
# The batch size is doubled as long as the token rate grows at least by this factor, for a doubled batch takes twice as
# long.
MIN_SPEEDUP = 1.02
# Time that Python spends on a batch beside the engine: choosing the entries, padding, postprocessing, delivery.
PYTHON_OVERHEAD_S = 0.0005
# The fastest of so many runs counts: other activity of the machine can only slow a run down.
_RUNS = 3


@dataclass(frozen=True)
class Tuning:
    """Result of the measurement.

    Attributes:
        batch_tokens: Batch size in tokens.
        tokens_per_s: Token rate of one thread at that size.
        overhead_tokens: Fixed cost of a batch, as the number of tokens that are computed in that time.
    """

    batch_tokens: int
    tokens_per_s: float
    overhead_tokens: float


def measure(engine: Engine, max_tokens: int, batch_tokens: int = 0) -> Tuning:
    """Doubles the batch size until the engine hardly gets faster.

    Args:
        engine: Engine to measure.
        max_tokens: Largest number of tokens of a text.
        batch_tokens: Batch size where it is given; 0 to find it, as a power of two.
    """
    length = min(_TEXT_TOKENS, max_tokens)
    tokens = batch_tokens or _MIN_BATCH_TOKENS
    rates = {tokens: (rate := _tokens_per_s(engine, length, tokens))}
    while not batch_tokens and tokens < _MAX_BATCH_TOKENS and tokens / rate < _MAX_BATCH_S:
        try:
            doubled = _tokens_per_s(engine, length, 2 * tokens)
        except Exception:  # for example a GPU without memory for more
            logger.warning("a batch of %d tokens failed; batches stay smaller", 2 * tokens, exc_info=True)
            break
        rates[2 * tokens] = doubled
        if doubled < MIN_SPEEDUP * rate:
            break
        tokens, rate = 2 * tokens, doubled
    return Tuning(tokens, rate, _overhead_tokens(engine, length, tokens, rates))


def _overhead_tokens(engine: Engine, length: int, tokens: int, rates: dict[int, float]) -> float:
    """Computes the fixed cost from the times of one text and of a few texts: the first less the cost of its tokens.

    The time of a full batch is not used, since its tokens may cost more than those of a small batch; nor that of a
    larger batch than will run, which the engine may not be able to compute.
    """
    few = min(4, max(2, tokens // length)) * length
    one_s = length / _tokens_per_s(engine, length, length)
    few_s = few / (rates.get(few) or _tokens_per_s(engine, length, few))
    token_s = (few_s - one_s) / (few - length)
    return max(one_s / token_s - length, PYTHON_OVERHEAD_S / token_s) if token_s > 0 else math.inf


def _tokens_per_s(engine: Engine, length: int, tokens: int) -> float:
    """Measures the token rate of batches of so many tokens, in texts of one length."""
    input_ids = np.zeros((max(1, tokens // length), length), dtype=np.int64)  # (B, T)
    attention_mask = np.ones_like(input_ids)  # (B, T)
    # The first run of a shape plans its memory.
    engine.run(input_ids, attention_mask)
    fastest_s = min(_seconds(engine, input_ids, attention_mask) for _ in range(_RUNS))
    return input_ids.size / (fastest_s + PYTHON_OVERHEAD_S)


def _seconds(engine: Engine, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> float:
    # On a CPU the engine runs in the calling thread, whose own clock excludes all other activity of the machine.
    clock = time.thread_time if engine.runtime.device == "cpu" else time.perf_counter
    started = clock()
    engine.run(input_ids, attention_mask)
    return max(clock() - started, 1e-9)
