"""Images of the pages exist, are used and described, and are small; the program makes every screenshot."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.screenshots import FOLDER, MAX_BYTES, SHOTS, WIDTH
from tests.support.demo import ROOT

IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = sorted(path for pattern in ("*.png", "*.svg") for path in (ROOT / "docs").rglob(pattern))
# A description names what is seen; the shortest is that of a badge.
MIN_DESCRIPTION, MIN_SCREENSHOT_DESCRIPTION = 10, 60


def images(page: Path) -> Iterator[tuple[str, Path]]:
    """Yields the description and the path of each image of a page."""
    for description, target in IMAGE.findall(page.read_text(encoding="utf-8")):
        yield description, Path(os.path.normpath(page.parent / target))


def png_size(path: Path) -> tuple[int, int]:
    """Returns the width and the height of a PNG in pixels."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    return width, height


def test_every_image_of_a_page_exists_and_is_described() -> None:
    found = [(page, *image) for page in PAGES for image in images(page)]
    assert len(found) > len(SHOTS)
    assert [(page, path) for page, _, path in found if not path.exists()] == []
    assert [(page, path) for page, description, path in found if len(description) < MIN_DESCRIPTION] == []


def test_every_image_is_used() -> None:
    used = {path for page in PAGES for _, path in images(page)}
    assert [path for path in FILES if path not in used] == []


def test_the_program_makes_every_screenshot() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.png" for name in SHOTS}


@pytest.mark.parametrize("name", SHOTS)
def test_screenshot_is_small_and_described_on_one_page(name: str) -> None:
    path = FOLDER / f"{name}.png"
    assert path.stat().st_size <= MAX_BYTES
    assert png_size(path)[0] == WIDTH
    ((page, description),) = [(page, text) for page in PAGES for text, shown in images(page) if shown == path]
    # The readme of the package index has no images of the pages.
    assert page != ROOT / "README.md"
    assert len(description) >= MIN_SCREENSHOT_DESCRIPTION
