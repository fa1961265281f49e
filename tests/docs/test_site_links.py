"""The check of the site's links finds links that lead nowhere, and links that the site lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.site_links import dead_links, lost_links
from tests.support.demo import ROOT


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Two pages, one of which includes a file of the parent folder."""
    folder = tmp_path / "docs"
    (folder / "guides").mkdir(parents=True)
    (tmp_path / "CONTRIBUTING.md").write_text("# Contributing\n\n[Train](docs/guides/train.md)\n")
    (folder / "index.md").write_text(
        "# Start\n\n:::{grid-item-card} Train\n:link: guides/train\n:link-type: doc\n:::\n\n"
        "[Contributing](contributing.md)\n"
    )
    (folder / "contributing.md").write_text("```{include} ../CONTRIBUTING.md\n```\n")
    (folder / "guides/train.md").write_text("# Train\n\n[Contribute](../../CONTRIBUTING.md) `[code](gone.md)`\n")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "guides").mkdir(parents=True)
    (folder / "index.html").write_text(
        '<h1 id="start">Start</h1><a href="guides/train.html#train">Train</a>'
        '<a href="contributing.html">Contributing</a>'
        '<a href="https://example.com/gone">elsewhere</a> <a href="#start">here</a> <img src="image.svg">'
    )
    (folder / "image.svg").touch()
    (folder / "contributing.html").write_text('<a href="guides/train.html">Train</a>')
    (folder / "guides/train.html").write_text('<h1 id="train">Train</h1><a href="../contributing.html">Contribute</a>')
    return folder


def test_good_site_has_no_findings(docs: Path, site: Path) -> None:
    assert [*dead_links(site), *lost_links(docs, site)] == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("guides/train.html#train", "guides/training.html", "index.html: guides/training.html: no such file"),
        ("guides/train.html#train", "guides/train.html#gone", "index.html: guides/train.html#gone: no such anchor"),
        ("#start", "#gone", "index.html: #gone: no such anchor"),
        ("image.svg", "gone.svg", "index.html: gone.svg: no such file"),
    ],
)
def test_dead_link_is_found(site: Path, old: str, new: str, message: str) -> None:
    page = site / "index.html"
    page.write_text(page.read_text().replace(f'"{old}"', f'"{new}"'))
    assert list(dead_links(site)) == [message]


@pytest.mark.parametrize(
    ("page", "link", "message"),
    [
        ("index.html", '<a href="guides/train.html#train">Train</a>', "docs/index.md: guides/train: is no link"),
        ("index.html", '<a href="contributing.html">', "docs/index.md: contributing.md: is no link"),
        ("contributing.html", '<a href="guides/train.html">', "CONTRIBUTING.md: docs/guides/train.md: is no link"),
        ("guides/train.html", '<a href="../contributing.html">', "train.md: ../../CONTRIBUTING.md: is no link"),
    ],
)
def test_link_that_the_site_lost_is_found(docs: Path, site: Path, page: str, link: str, message: str) -> None:
    """Sphinx replaces a reference by text without a warning when an extension tells it so."""
    path = site / page
    assert link in path.read_text()
    path.write_text(path.read_text().replace(link, "<code>"))
    (found,) = lost_links(docs, site)
    assert message in found


def test_page_that_is_not_on_the_site_is_found(docs: Path, site: Path) -> None:
    (docs / "new.md").write_text("# New\n")
    assert [line for line in lost_links(docs, site) if "new.md: is not a page of the site" in line]


def test_command_fails_for_a_bad_link(docs: Path, site: Path) -> None:
    command = [sys.executable, "-m", "docs.site_links", str(docs), str(site)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    (site / "guides/train.html").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "guides/train.html: no such file" in done.stderr
