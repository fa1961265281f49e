"""Generates the pages and charts of measured figures from bench/results; measures nothing.

    python -m bench.report.page              # write the pages, the blocks and docs/benchmarks/*.svg
    python -m bench.report.page --check      # write nothing; exit code 1 if a page, block or the overview is outdated

Pages: docs/benchmarks.md and docs/performance.md, from bench/report/templates. A section whose result file is missing
is omitted.

Blocks: any other page may hold a generated block between two comments, which this program fills from the template
bench/report/templates/blocks/NAME.md.jinja:

    <!-- generated: NAME -->
    <!-- end of generated -->

--check does not compare the charts that matplotlib draws, and does not require matplotlib. Writing them requires the
extra `bench`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from bench.harness.arguments import make_parser
from bench.harness.texts import ROOT

from . import drift, runs, tables, trust
from .context import Report, context
from .markdown import tidy
from .overview import overview

TEMPLATES = Path(__file__).parent / "templates"
PAGES = {"benchmarks.md.jinja": "docs/benchmarks.md", "performance.md.jinja": "docs/performance.md"}
CHARTS = "docs/benchmarks"
OVERVIEW = f"{CHARTS}/overview.svg"
BLOCK = re.compile(r"(?P<begin><!-- generated: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end of generated -->)", re.DOTALL)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is outdated")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="folder with bench/results and docs (default: this one)"
    )
    arguments = parser.parse_args()
    reports = read_results(arguments.root / "bench/results")
    generated = dict(generate(reports, arguments.root))
    if arguments.check:
        outdated = [path for path, text in generated.items() if not _is_current(arguments.root / path, text)]
        if outdated:
            sys.exit(f"outdated: {', '.join(outdated)}; run python -m bench.report.page")
        return
    for path, text in generated.items():
        (arguments.root / path).parent.mkdir(parents=True, exist_ok=True)
        (arguments.root / path).write_text(text, encoding="utf-8")
    from .charts import draw

    draw(reports, arguments.root / CHARTS)


def read_results(folder: Path) -> dict[str, Report]:
    """Returns the result files by their stem, with underscores."""
    return {path.stem.replace("-", "_"): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def generate(reports: Mapping[str, Report], root: Path) -> Iterator[tuple[str, str]]:
    """Yields the path, relative to ``root``, and the content of every generated file and page with blocks."""
    renderer = Renderer(reports)
    for template, path in PAGES.items():
        yield path, renderer.page(template)
    if "comparison" in reports:
        yield OVERVIEW, overview(reports["comparison"])
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        path = page.relative_to(root).as_posix()
        if path not in PAGES.values() and page.exists():
            text = page.read_text(encoding="utf-8")
            if filled := renderer.fill_blocks(text):
                yield path, filled


class Renderer:
    """Renders the templates for one set of result files."""

    def __init__(self, reports: Mapping[str, Report]) -> None:
        self._context: dict[str, Any] = context(reports)
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            # Markdown for humans, not HTML from untrusted input.
            autoescape=False,  # noqa: S701
        )
        self._environment.globals.update(tables.FUNCTIONS, **runs.FUNCTIONS, **trust.FUNCTIONS, **drift.FUNCTIONS)

    def page(self, template: str) -> str:
        """Renders a page."""
        return tidy(self._environment.get_template(template).render(self._context))

    def block(self, name: str) -> str:
        """Renders a block.

        Raises:
            jinja2.TemplateNotFound: There is no such block.
        """
        return self.page(f"blocks/{name}.md.jinja")

    def fill_blocks(self, text: str) -> str | None:
        """Returns a page with its generated blocks filled; None for a page without blocks."""
        filled, count = BLOCK.subn(lambda match: f"{match['begin']}\n{self.block(match['name'])}\n{match['end']}", text)
        return filled if count else None


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
