"""What a pass costs and how many tokens fill one, measured where it will serve: machines and variants differ.

Below that a pass pays for its start again and again; beyond it a larger pass only makes everybody in it wait.
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

# The length of a text that is measured with: a sentence or two.
_TEXT_TOKENS = 32
_LEAST_TOKENS = 64
_MOST_TOKENS = 32_768
# A longer pass is not worth its gain to those who wait for it; and trying ever longer ones would hold up the start.
_LONGEST_PASS_S = 0.04
# Twice the tokens must give so many times the rate, for they take twice as long.
_WORTH = 1.02
# What Python does for a pass besides: choosing the batch, padding, the heads, handing the answers over.
_OTHERWISE_S = 0.0005
# The fastest of so many passes counts: whatever else goes on can only slow a pass down.
_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """What fills the engine.

    Attributes:
        batch_tokens: Tokens of a pass.
        tokens_per_s: How many of them a second one thread computes then.
        start_tokens: What starting a pass costs, as the tokens that are computed in that time.
    """

    batch_tokens: int
    tokens_per_s: float
    overhead_tokens: float


def measure(engine: Engine, max_tokens: int, batch_tokens: int = 0) -> Cost:
    """Doubles the tokens of a pass until the engine is hardly faster for it.

    Args:
        engine: What is measured.
        max_tokens: The most tokens that a text may have.
        batch_tokens: Tokens of a pass, where they are given; 0 to find what fills the engine, a power of two.
    """
    length = min(_TEXT_TOKENS, max_tokens)
    tokens = batch_tokens or _LEAST_TOKENS
    rates = {tokens: (rate := _tokens_per_s(engine, length, tokens))}
    while not batch_tokens and tokens < _MOST_TOKENS and tokens / rate < _LONGEST_PASS_S:
        try:
            doubled = _tokens_per_s(engine, length, 2 * tokens)
        except Exception:  # such as a GPU that has no memory for more
            logger.warning("a pass of %d tokens failed; passes stay below", 2 * tokens, exc_info=True)
            break
        rates[2 * tokens] = doubled
        if doubled < _WORTH * rate:
            break
        tokens, rate = 2 * tokens, doubled
    return Cost(tokens, rate, _start_tokens(engine, length, tokens, rates))


def _start_tokens(engine: Engine, length: int, tokens: int, rates: dict[int, float]) -> float:
    """From the times of one text and of a few: what is left of the first when its tokens are paid.

    Not from that of a full pass, whose tokens may cost more than those of a small one, nor from a larger one than will
    run, which the engine may not be able to compute.
    """
    few = min(4, max(2, tokens // length)) * length
    one_s = length / _tokens_per_s(engine, length, length)
    few_s = few / (rates.get(few) or _tokens_per_s(engine, length, few))
    token_s = (few_s - one_s) / (few - length)
    return max(one_s / token_s - length, _OTHERWISE_S / token_s) if token_s > 0 else math.inf


def _tokens_per_s(engine: Engine, length: int, tokens: int) -> float:
    """The rate of passes with so many tokens, in texts of one length."""
    input_ids = np.zeros((max(1, tokens // length), length), dtype=np.int64)  # (B, T)
    attention_mask = np.ones_like(input_ids)  # (B, T)
    # The first pass of a shape plans its memory.
    engine.run(input_ids, attention_mask)
    fastest_s = min(_seconds(engine, input_ids, attention_mask) for _ in range(_PASSES))
    return input_ids.size / (fastest_s + _OTHERWISE_S)


def _seconds(engine: Engine, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> float:
    # On a CPU a pass runs in the thread that asks for it, whose own time knows nothing of what else the machine does.
    clock = time.thread_time if engine.runtime.device == "cpu" else time.perf_counter
    started = clock()
    engine.run(input_ids, attention_mask)
    return max(clock() - started, 1e-9)
