from __future__ import annotations

import asyncio
import dataclasses
import itertools

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.errors import ExpiredError, InternalError
from polyhead_server.inference.types import (
    ItemOutcome,
    ModelOutput,
    OutcomeFuture,
    Result,
    Timings,
    TokenizedText,
)
from polyhead_server.inference.windows import combine_outcomes, spans, window_futures

FAILED = InternalError("1")


def test_spans_cover_the_text_overlap_and_are_of_about_one_length() -> None:
    for tokens in (*range(81, 400), 5000):
        parts = spans(tokens, max_length=80, max_windows=100)
        assert (parts[0][0], parts[-1][1]) == (0, tokens)
        sizes = {end - begin for begin, end in parts}
        assert max(sizes) <= 80
        assert max(sizes) - min(sizes) <= 1
        # An eighth of a window, less a token of rounding.
        assert all(end - begin >= 9 for (_, end), (begin, _) in itertools.pairwise(parts))
        # As few windows as the overlap allows.
        assert len(parts) == -(-(tokens - 10) // 70)


def test_spans_of_a_text_beyond_the_last_window_are_full_windows_from_its_beginning() -> None:
    assert spans(1000, max_length=80, max_windows=3) == [(0, 80), (70, 150), (140, 220)]
    assert spans(1000, max_length=80, max_windows=1) == [(0, 80)]


def test_spans_cover_the_text_where_the_largest_number_of_windows_is_just_enough() -> None:
    assert spans(140, max_length=80, max_windows=2) == [(0, 75), (65, 140)]


def futures(count: int) -> tuple[OutcomeFuture, list[OutcomeFuture], list[list[ItemOutcome]]]:
    """Makes the future of a text, those of its windows, and a record of what was combined."""
    combined: list[list[ItemOutcome]] = []

    def combine(outcomes: list[ItemOutcome]) -> ItemOutcome:
        combined.append(outcomes)
        return FAILED

    whole: OutcomeFuture = asyncio.get_running_loop().create_future()
    return whole, window_futures(whole, count, combine), combined


@pytest.mark.parametrize("resolved", [0, 1])
async def test_cancelled_text_cancels_its_windows(resolved: int) -> None:
    whole, windows, combined = futures(2)
    for window in windows[:resolved]:
        window.set_result(FAILED)
    whole.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [window.cancelled() for window in windows] == [number >= resolved for number in range(2)]
    assert combined == []


async def test_text_that_is_resolved_otherwise_cancels_its_windows() -> None:
    whole, windows, combined = futures(2)
    whole.set_result(FAILED)
    for _ in range(3):
        await asyncio.sleep(0)
    assert all(window.cancelled() for window in windows)
    assert combined == []


def window_result(embedding: list[float], total_ns: int) -> Result:
    output = ModelOutput(
        np.array(embedding, np.float32), (np.array([0.0], np.float32),) * 2, (np.array([0.5], np.float32),) * 2
    )
    return Result(output, TOKENS, Timings(1, 2, 3, total_ns, 1, 8, 0))


TOKENS = TokenizedText(([1, 2, 3], [4]), 6)


@pytest.mark.parametrize("normalized", [True, False])
def test_outcome_of_a_text_has_the_pooled_output_and_the_timings_of_the_slowest_window(
    manifest: bundle.Manifest, normalized: bool
) -> None:
    embedding = dataclasses.replace(manifest.embedding, normalized=normalized)
    heads = tuple(dataclasses.replace(manifest.heads[1], name=name) for name in ("first", "second"))
    changed = dataclasses.replace(manifest, embedding=embedding, heads=heads)
    windows = [window_result([4, 0], 10), window_result([0, 4], 30)]
    outcome = combine_outcomes(changed, TOKENS, windows)
    assert isinstance(outcome, Result)
    # Windows of 3 tokens and of 1 token.
    expected = np.array([3, 1]) / (np.sqrt(10) if normalized else 1)
    assert outcome.output.embedding == pytest.approx(expected)
    assert outcome.tokens is TOKENS
    assert outcome.timings is windows[1].timings


def test_outcome_of_a_text_is_the_first_error_of_its_windows(manifest: bundle.Manifest) -> None:
    first, second = InternalError("1"), ExpiredError()
    assert combine_outcomes(manifest, TOKENS, [window_result([1, 0], 1), first, second]) is first
