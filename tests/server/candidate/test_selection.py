"""Which texts belong to a share."""

from __future__ import annotations

import pytest
from polyhead_server.candidate.selection import is_selected, place_of

KEYS = [f"text {number}" for number in range(2000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_share_of_many_keys_is_selected(share: float) -> None:
    selected = sum(is_selected(key, share) for key in KEYS)
    assert selected == pytest.approx(share * len(KEYS), rel=0.4)


def test_larger_share_contains_the_smaller_one() -> None:
    for key in KEYS:
        assert is_selected(key, 0.5) or not is_selected(key, 0.1)


def test_whole_share_selects_everything_and_none_nothing() -> None:
    assert all(is_selected(key, 1.0) for key in KEYS)
    assert not any(is_selected(key, 0.0) for key in KEYS)


def test_place_is_the_same_in_every_process() -> None:
    # Another number would move callers to another model in the middle of a canary.
    assert place_of("text") == pytest.approx(0.8435573359385845)
    assert 0 <= place_of("\ud800") < 1
