"""Numbers in units that people read at a glance, for tables. JSON output keeps base units."""

from __future__ import annotations

_MAX_PLAIN = 100_000


def format_bytes(size: int) -> str:
    """Formats a size: ``16 MiB``, ``1.5 GiB``, ``900 bytes``."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def format_duration(seconds: float) -> str:
    """Formats a duration with at most two units: ``250 ms``, ``2.5 s``, ``42 s``, ``3 min 5 s``, ``2 d 4 h``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError(whole)


def format_count(number: float, decimals: int = 0) -> str:
    """Formats a count or rate in at most seven characters: ``4``, ``12.5``, ``99,999``, ``250k``, ``1.2M``."""
    if number < 1000 and decimals:
        return f"{number:.{decimals}f}"
    if number < _MAX_PLAIN - 0.5:
        return f"{number:,.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}" if number < 100 * size else f"{number / size:,.0f}{unit}"
    raise AssertionError(number)
