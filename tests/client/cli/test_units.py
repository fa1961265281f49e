"""Sizes, durations and counts in units that people read at a glance."""

from __future__ import annotations

import pytest
from polyhead_client.cli.units import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (16 * 2**20, "16 MiB"), (1_500_000_000, "1.4 GiB")],
)
def test_size(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (2.5, "2.5 s"),
        (9.99, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7200, "2 h"),
        (86400 + 4 * 3600 + 59, "1 d 4 h"),
        (1000 * 86400, "1,000 d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [
        (4, 0, "4"),
        (4.25, 1, "4.2"),
        (999.96, 1, "1000.0"),
        (1234.5, 1, "1,234"),
        (99_999, 0, "99,999"),
        (99_999.7, 1, "100.0k"),
        (250_000, 0, "250k"),
        (1_250_000, 0, "1.2M"),
        (999_999_999, 0, "1,000M"),
        (12e9, 0, "12.0G"),
    ],
)
def test_count_is_short(number: float, decimals: int, text: str) -> None:
    assert format_count(number, decimals) == text
    assert len(text) <= 7
