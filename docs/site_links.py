"""Checks the links of the built documentation site.

Sphinx reports references that it cannot resolve, but neither links that a page lost on the way nor links to files that
are not part of the site.

python -m docs.site_links docs build/site
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Parts of a Markdown page in which a link is text.
_CODE = re.compile(r"^ *(`{3,}).*?^ *\1$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
# Links, images, and the links of cards.
_LINK = re.compile(r"\]\(([^)\s]+)\)|^ *:link: (\S+)$", re.MULTILINE)
_INCLUDE = re.compile(r"^```\{include\} (\S+)", re.MULTILINE)


class _Page(HTMLParser):
    """Targets of the links, images, scripts and styles of a page, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects the attributes of an element."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")


def main() -> None:
    """Runs the command line: prints each bad link; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="folder of the pages in Markdown")
    parser.add_argument("site", type=Path, help="folder of the built site")
    arguments = parser.parse_args()
    found = [*dead_links(arguments.site), *lost_links(arguments.docs, arguments.site)]
    if found:
        sys.exit("\n".join(found))


def dead_links(site: Path) -> Iterator[str]:
    """Yields each link of the site to a file or anchor of the site that does not exist.

    Args:
        site: Folder of the site. Links to other hosts are not followed.
    """
    pages = {path.resolve(): _Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    for path, page in sorted(pages.items()):
        for target in page.targets:
            resolved = _resolve(path, target)
            if resolved is None:
                continue
            file, anchor = resolved
            if not file.exists():
                yield f"{path.relative_to(site.resolve())}: {target}: no such file"
            elif anchor and file in pages and anchor not in pages[file].anchors:
                yield f"{path.relative_to(site.resolve())}: {target}: no such anchor"


def lost_links(docs: Path, site: Path) -> Iterator[str]:
    """Yields each link of a Markdown page to another page that is no link on the site.

    Args:
        docs: Folder of the pages. A page may include a file of the parent folder, whose links are checked too.
        site: Folder of the site.
    """
    sources = dict(_sources(docs))
    # A link to an included file leads to the page that includes it.
    html = {source: site / page.relative_to(docs).with_suffix(".html") for source, page in sources.items()}
    for source, built in html.items():
        if not built.exists():
            yield f"{source}: is not a page of the site"
            continue
        linked = {resolved[0] for target in _Page(built).targets if (resolved := _resolve(built.resolve(), target))}
        for target in _links(source):
            name = urlsplit(target).path
            path = Path(os.path.normpath(source.parent / name))
            wanted = html.get(path) or html.get(path.with_name(path.name + ".md"))
            if name and wanted and wanted.resolve() not in linked:
                yield f"{source}: {target}: is no link on {built.relative_to(site)}"


def _sources(docs: Path) -> Iterator[tuple[Path, Path]]:
    """Yields every Markdown file of the site with the page that shows it."""
    for page in sorted(docs.rglob("*.md")):
        yield page, page
        for included in _INCLUDE.findall(page.read_text("utf-8")):
            yield Path(os.path.normpath(page.parent / included)), page


def _links(source: Path) -> Iterator[str]:
    for found in _LINK.finditer(_CODE.sub("", source.read_text("utf-8"))):
        target = found[1] or found[2]
        if not urlsplit(target).scheme:
            yield target


def _resolve(page: Path, target: str) -> tuple[Path, str] | None:
    """Returns the file and the anchor that a link of a built page leads to; None for a link to another host."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    file = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    return file / "index.html" if file.is_dir() else file, unquote(parts.fragment)


if __name__ == "__main__":
    main()
