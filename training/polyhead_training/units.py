"""Durations and sizes as text with units that fit their magnitude."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Formats a duration with at most two units: ``0.4 s``, ``35 s``, ``2 min 5 s``, ``1 h 12 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    # A duration of hours is rounded to minutes.
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def format_size(count: int) -> str:
    """Formats a number of bytes with a decimal unit and three digits: ``812 B``, ``3.5 MB``, ``1.25 GB``."""
    if count < 1000:
        return f"{count} B"
    value, units = count / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and (larger := next(units, None)):
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"
