from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import jinja2
import pytest

from bench.report.overview import overview
from bench.report.page import CHARTS, PAGES, Renderer, generate, main, read_results
from tests.support.demo import ROOT

REPORTS = read_results(ROOT / "bench/results")


Check = Callable[[Path], None]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """Runs the command line that checks the pages of a folder."""

    def run(root: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["page", "--check", "--root", str(root)])
        main()

    return run


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the results and their generated files, and a page with a block."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/results").symlink_to(ROOT / "bench/results")
    (tmp_path / "docs/guides").mkdir(parents=True)
    page = tmp_path / "docs/guides/deploy.md"
    page.write_text("# Deploy\n\n<!-- generated: sizing -->\nold\n<!-- end of generated -->\n\nEnd.\n")
    for path, text in generate(REPORTS, tmp_path):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_committed_pages_are_current(check: Check) -> None:
    check(ROOT)


@pytest.mark.parametrize("path", ["docs/benchmarks.md", "docs/guides/deploy.md", "docs/benchmarks/overview.svg"])
def test_changed_file_is_reported(copy: Path, check: Check, path: str) -> None:
    check(copy)
    # Another last digit.
    changed = re.sub(r"\d(?=\D*$)", lambda found: str((int(found[0]) + 1) % 10), (copy / path).read_text())
    assert changed != (copy / path).read_text()
    (copy / path).write_text(changed)
    with pytest.raises(SystemExit, match=f"^outdated: {re.escape(path)}; run python -m bench.report.page$"):
        check(copy)


def test_block_is_filled_and_the_rest_of_its_page_is_kept(copy: Path) -> None:
    text = (copy / "docs/guides/deploy.md").read_text()
    assert text.startswith("# Deploy\n\n<!-- generated: sizing -->\n\n|")
    assert text.endswith("|\n\n<!-- end of generated -->\n\nEnd.\n")
    startup = json.loads((ROOT / "bench/results/startup.json").read_text())["servers"]["int8"]
    assert f"| memory of a process, MB | {startup['rss_mb'][0]:.0f} |" in text


def test_unknown_block_is_an_error() -> None:
    with pytest.raises(jinja2.TemplateNotFound):
        Renderer(REPORTS).fill_blocks("<!-- generated: nothing -->\n<!-- end of generated -->")
    assert Renderer(REPORTS).fill_blocks("# A page without blocks\n") is None


@pytest.mark.parametrize("missing", [name for name in REPORTS if name != "quantization"])
def test_section_without_its_results_is_omitted(missing: str) -> None:
    renderer = Renderer({name: report for name, report in REPORTS.items() if name != missing})
    for template in PAGES:
        assert renderer.page(template).startswith("<!-- Written by `python -m bench.report.page`")


def test_fronts_have_a_table_once_they_are_measured() -> None:
    row = {name: [1000.0, 500.0, 2000.0] for name in ("items_per_s", "fronts_us", "engine_us", "engine_loop_us")}
    report = {
        **{name: REPORTS["workers"][name] for name in ("command", "date", "cores", "rounds")},
        "engine": "instant",
        "memory_mb": {"0": 300.0, "2": 400.0},
        "loads": {"unary, 1 item": {"0": row, "2": row}},
    }
    text = Renderer({**REPORTS, "fronts": report}).page("performance.md.jinja")
    assert "| 2 | 1,000 [500, 2,000] |" in text
    assert "| 400 |" in text
    without = Renderer({name: one for name, one in REPORTS.items() if name != "fronts"}).page("performance.md.jinja")
    assert "## Fronts" in without
    assert "with an engine that answers at once" not in without


def test_pages_show_every_chart_that_is_drawn() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    for chart in (ROOT / CHARTS).glob("*.svg"):
        assert f"](benchmarks/{chart.name})" in page


def test_overview_is_valid_and_describes_itself() -> None:
    tree = ET.fromstring(overview(REPORTS["comparison"]))  # noqa: S314, our own file
    space = {"svg": "http://www.w3.org/2000/svg"}
    description = tree.findtext("svg:desc", namespaces=space)
    assert description
    for server, figures in REPORTS["comparison"]["servers"].items():
        assert f"{figures['loads']['64 in flight']['items_per_s'][0]:.0f}" in description, server
    assert "prefers-color-scheme: dark" in (tree.findtext("svg:style", namespaces=space) or "")
