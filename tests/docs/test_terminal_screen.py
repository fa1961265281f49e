"""A program in a terminal becomes a page."""

from __future__ import annotations

import sys

import pytest

from docs.terminal_screen import as_html, capture

# Draws a screen with its number and the size of the terminal until it is ended.
PROGRAM = r"""
import os, sys, time
size = os.get_terminal_size()
for number in range({screens}):
    print(f"\x1b[H\x1b[1mscreen {{number}}\x1b[0m of {{size.columns}} x {{size.lines}} <&>\nthe end", flush=True)
    time.sleep(0.01)
"""


def program(screens: int) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(screens=screens)]


def test_last_of_several_screens_is_captured() -> None:
    screen = capture(program(10_000), columns=90, lines=7, last="the end", draws=3)
    first, last, *_ = screen.splitlines()
    assert int(first.removeprefix("\x1b[1mscreen ").partition("\x1b")[0]) >= 2
    assert first.endswith(" of 90 x 7 <&>")
    assert last == "the end"


def test_program_that_ends_too_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="fewer than 3 screens"):
        capture(program(2), columns=90, lines=7, last="the end", draws=3)


def test_page_has_title_text_and_styles() -> None:
    page = as_html("\x1b[1mPID\x1b[0m   \n7 <&>\n\n\n", "polyhead {top}")
    assert "<title>polyhead {top}</title>" in page
    assert '<span style="font-weight: bold">PID</span>\n7 &lt;&amp;&gt;\n</pre>' in page
