"""Renders docs/interoperability.md from the stored results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench/results/interoperability.json"
PAGE = ROOT / "docs/interoperability.md"
_TEMPLATES = Path(__file__).with_name("templates")
_MAX_MESSAGE_CHARACTERS = 160


def render(report: Mapping[str, Any]) -> str:
    """Returns the page for the results of a run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown for humans, not HTML from untrusted input.
        autoescape=False,  # noqa: S701
    )
    environment.filters |= {"packages": _packages, "result": _result, "message": _message, "largest": _largest}
    return environment.get_template("interoperability.md.jinja").render(report)


def _packages(versions: Mapping[str, str]) -> str:
    """Returns the packages of a client with their versions as a cell."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _result(result: Mapping[str, Any]) -> str:
    """Returns the result of a call over one transport as a cell."""
    if "skipped" in result:
        return f"not possible: {result['skipped']}"
    return f"**fails**: {_message(result['error'])}" if "error" in result else "ok"


def _largest(row: Mapping[str, Any]) -> str:
    """Returns the largest difference over both transports as a cell."""
    found = [row[name].get("difference") for name in ("plain", "protected")]
    numbers = [one for one in found if one is not None]
    return f"{max(numbers):.1e}" if numbers else ""


def _message(text: str) -> str:
    """Returns a message as code in a table: short, and without what would end the cell or the code."""
    short = text if len(text) <= _MAX_MESSAGE_CHARACTERS else f"{text[:_MAX_MESSAGE_CHARACTERS]}..."
    return f"`{short.replace('|', '/').replace('`', chr(39))}`"


def write_page() -> None:
    """Writes the page from the stored results."""
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
