"""Pages in a real Chromium: what they show, their colors, and errors."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from docs.browser import PROGRAM, open_page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
PAGE = """<!doctype html><title>page</title>
<style>body { margin: 0 } main { height: 1234px } footer { height: 500px }</style>
<main id="main"></main><footer></footer>"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True])
def test_page_has_the_width_the_colors_and_the_height_of_an_element(url: str, *, dark: bool) -> None:
    with open_page(url, width=390, dark=dark) as page:
        assert page.evaluate("document.title") == "page"
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        page.evaluate("setTimeout(() => { document.title = 'later' }, 1); 0")
        page.wait_for("document.title === 'later'")
        image = page.screenshot("#main")
    assert struct.unpack(">II", image[16:24]) == (390, 1250)


def test_errors_of_a_page_are_raised(url: str) -> None:
    with open_page(url, width=390) as page:
        with pytest.raises(RuntimeError, match="gone is not defined"):
            page.evaluate("gone()")
        with pytest.raises(RuntimeError, match="ERR_FILE_NOT_FOUND"):
            page.load(f"{url}.gone")
