"""Renders docs/reliability.md from the stored results of the scenarios."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench/results/reliability.json"
PAGE = ROOT / "docs/reliability.md"
_TEMPLATES = Path(__file__).with_name("templates")


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
    environment.filters["cell"] = _cell
    return environment.get_template("reliability.md.jinja").render(report)


def _cell(text: str) -> str:
    """Returns a sentence as the cell of a Markdown table, which a vertical bar would end."""
    return (text[:1].upper() + text[1:]).replace("|", "/")


def write_page() -> None:
    """Writes the page from the stored results."""
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
