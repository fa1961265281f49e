"""Layout of generated Markdown: paragraphs are wrapped, runs of empty lines are reduced to one."""

from __future__ import annotations

import re
import textwrap

_WIDTH = 120
# Tables, headings, images, comments and HTML keep their lines.
_VERBATIM = re.compile(r"[|#!<]")
_BULLET = re.compile(r"(?m)^(?=- )")


def tidy(text: str) -> str:
    """Wraps the paragraphs and bullets of a page and removes superfluous empty lines."""
    parts = re.split(r"(?ms)(^```.*?^```$)", text)
    return "".join(part if part.startswith("```") else _tidy_prose(part) for part in parts).strip() + "\n"


def _tidy_prose(text: str) -> str:
    blocks = re.split(r"\n{2,}", text)
    return "\n\n".join(block if _VERBATIM.match(block) else _wrap(block) for block in blocks)


def _wrap(block: str) -> str:
    """Wraps a paragraph or a list, keeping the newlines around it."""
    stripped = block.strip("\n")
    if not stripped or _VERBATIM.match(stripped):
        return block
    items = [
        textwrap.fill(
            " ".join(item.split()),
            _WIDTH,
            subsequent_indent="  " if item.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in _BULLET.split(stripped)
        if item
    ]
    before, _, after = block.partition(stripped)
    return before + "\n".join(items) + after
