"""Every relative link of a page leads to a file of the repository and, if it names one, to a heading that exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.demo import ROOT
from tests.support.markdown_pages import anchors, links

PATTERNS = ("*.md", "docs/**/*.md", "clients/*.md", "clients/*/README.md", "training/demo/README.md")
PAGES = [path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
# Pages that `make docs` generates and the repository does not hold.
GENERATED = {line[1:] for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/docs/")}


def dead_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    text = page.read_text()
    found = []
    for link in links(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / name)) if name else page
        if target.is_relative_to(ROOT) and target.relative_to(ROOT).as_posix() in GENERATED:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_of_page_lead_somewhere(page: str) -> None:
    assert dead_links(ROOT / page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n\n## A `code` heading\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n[file](missing.md) [anchor](other.md#missing) [own](#missing) ![image](missing.svg)\n"
        "[good](other.md#a-code-heading) [good](#page) [good](https://example.com) `[code](missing.md)`\n"
    )
    assert dead_links(page) == ["missing.md", "other.md#missing", "#missing", "missing.svg"]
    # A guide and a folder may have the same name; a link to the guide does not lead to the folder.
    (tmp_path / "training").mkdir()
    page.write_text("[guide](training.md)\n")
    assert dead_links(page) == ["training.md"]


def missing_files(text: str) -> set[str]:
    """The files of the repository that a text names in backticks and that do not exist; capitals are placeholders."""
    named = set(
        re.findall(r"`((?:bench|bundle|client|deploy|docs|export|proto|server|tests|training)/[\w./-]+\.\w+)`", text)
    )
    return {name for name in named - GENERATED if not re.search(r"[A-Z]{3}", name) and not (ROOT / name).exists()}


# The changelog names files that were renamed.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_named_by_page_exist(page: str) -> None:
    assert missing_files((ROOT / page).read_text()) == set()


def test_missing_file_is_reported() -> None:
    assert missing_files("See `tests/gone.py`, `bench/report/page.py` and `training/configs/CONFIG.toml`.") == {
        "tests/gone.py"
    }
