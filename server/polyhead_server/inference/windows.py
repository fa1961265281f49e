"""Long texts that are read in overlapping windows: where the windows begin and end, and how their outcomes combine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polyhead_bundle as bundle

from polyhead_server.errors import InternalError, ServerError

from . import postprocessing
from .types import ItemOutcome, OutcomeFuture, Result, TokenizedText

# Share of a window's tokens that the next window reads again, so that no sentence is only ever seen cut in two.
_OVERLAP = 1 / 8


def spans(tokens: int, max_length: int, max_windows: int) -> list[tuple[int, int]]:
    """Divides a text into overlapping windows of about one length, which need little padding in a batch.

    Args:
        tokens: Tokens of the text, more than ``max_length``.
        max_length: Longest window.
        max_windows: Largest number of windows. Where more are needed, the text is read from its beginning as far as
            these reach.

    Returns:
        Begin and end of each window, in tokens.
    """
    overlap = int(max_length * _OVERLAP)
    step = max_length - overlap
    count = -(-(tokens - overlap) // step)
    if count > max_windows:
        return [(number * step, number * step + max_length) for number in range(max_windows)]
    length = -(-(tokens + (count - 1) * overlap) // count)
    begins = [round(number * (tokens - length) / max(count - 1, 1)) for number in range(count)]
    return [(begin, begin + length) for begin in begins]


def window_futures(
    whole: OutcomeFuture, count: int, combine: Callable[[list[ItemOutcome]], ItemOutcome]
) -> list[OutcomeFuture]:
    """Returns one future per window of a text, which together resolve the future of the whole text. Event loop only.

    Args:
        whole: Future of the text. When it is cancelled, or resolved otherwise, the windows' futures are cancelled.
        count: Number of windows, at least 1.
        combine: Makes the text's outcome from those of its windows, in order. Must not raise.
    """
    windows: list[OutcomeFuture] = [whole.get_loop().create_future() for _ in range(count)]
    unresolved = set(windows)

    def on_window_done(window: OutcomeFuture) -> None:
        unresolved.discard(window)
        if not unresolved and not whole.done():
            whole.set_result(combine([one.result() for one in windows]))

    for window in windows:
        window.add_done_callback(on_window_done)
    whole.add_done_callback(lambda _: [window.cancel() for window in windows])
    return windows


def combine_outcomes(manifest: bundle.Manifest, tokens: TokenizedText, outcomes: Sequence[ItemOutcome]) -> ItemOutcome:
    """Returns the outcome of a text: its windows' outputs pooled, or the first error among them.

    The timings are those of the window that took longest.
    """
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    if len(results) < len(outcomes):
        return next(outcome for outcome in outcomes if isinstance(outcome, ServerError))
    output = postprocessing.pool_windows(
        manifest.heads,
        [result.output for result in results],
        [len(window) for window in tokens.windows],
        normalized=manifest.embedding.normalized,
    )
    if output is None:
        return InternalError.logged("the pooled output is not finite")
    slowest = max((result.timings for result in results), key=lambda timings: timings.total_ns)
    return Result(output, tokens, slowest)
