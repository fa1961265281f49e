"""The report fits screens of 360 to 1,600 pixels and A4: only the boxes of wide tables scroll, and paper shows all."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.model_config import HeadConfig
from polyhead_training.reporting.report import write_report

from tests.support.finished_run import HEADS, write_finished_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
MANY_LABELS = tuple(f"a_rather_long_label_of_a_ticket_queue_{number:02d}" for number in range(30))
RUNS = {
    "few labels": HEADS,
    "many long labels": (HeadConfig(name="topic", kind="softmax", labels=MANY_LABELS), *HEADS[1:]),
}
# A4 without the margins of the style sheet, in CSS pixels.
PAPER_WIDTH = round((210 - 2 * 14) / 25.4 * 96)
WIDTHS = (360, 600, 768, 1024, 1600)
# For a frame of each width: the width of the page, each element beyond it outside of a scroll box, and the boxes with
# hidden content.
MEASURE = """<!doctype html><pre id="found"></pre>
<script>
const found = {}, widths = %s;
for (const wide of widths) {
  const frame = document.createElement("iframe");
  frame.src = "%s";
  frame.style = `border: 0; width: ${wide}px; height: 900px`;
  frame.onload = () => {
    const page = frame.contentDocument, width = page.documentElement.clientWidth, outside = [], hidden = [];
    const name = (one) => one.tagName + "." + one.className;
    for (const one of page.querySelectorAll("body *")) {
      if (!one.closest(".wrap, svg") && one.getBoundingClientRect().right > width + 1) outside.push(name(one));
      if (one.closest(".wrap") && one.getBoundingClientRect().right > width + 1) hidden.push(name(one));
    }
    found[wide] = {scroll: page.documentElement.scrollWidth, width, outside, hidden};
    if (Object.keys(found).length == widths.length)
      document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


@pytest.fixture(params=RUNS)
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_finished_run(tmp_path, RUNS[request.param])
    write_report(tmp_path)
    return tmp_path / "report.html"


def measure(page: Path, *widths: int) -> dict[int, dict[str, Any]]:
    """Opens a page in frames of these widths and returns what does not fit each."""
    outer = page.with_name("measure.html")
    outer.write_text(MEASURE % (json.dumps(widths), page.name))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    flags += ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=1700,1000", "--dump-dom"]
    profile = page.parent / "profile"
    command = [str(BROWSER), *flags, f"--user-data-dir={profile}", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert found, done.stdout[-1000:]
    return {int(width): measured for width, measured in json.loads(html.unescape(found[1])).items()}


@needs_browser
def test_page_does_not_scroll_sideways(report: Path) -> None:
    for width, found in measure(report, *WIDTHS).items():
        assert found["width"] == width
        assert (found["scroll"], found["outside"]) == (width, [])


@needs_browser
def test_paper_shows_every_table_in_full(report: Path) -> None:
    text = report.read_text()
    assert text.count("@media print {") == 1
    report.write_text(text.replace("@media print {", "@media all {").replace("@page { size: A4; margin: 14mm; }", ""))
    found = measure(report, PAPER_WIDTH)[PAPER_WIDTH]
    assert (found["outside"], found["hidden"]) == ([], [])


@needs_browser
@pytest.mark.parametrize("report", ["few labels"], indirect=True)
def test_table_outside_of_a_scroll_box_is_found(report: Path) -> None:
    report.write_text(report.read_text().replace('class="wrap"', ""))
    assert measure(report, 360)[360]["outside"]


class _Tables(HTMLParser):
    """Counts the tables, and those whose parent is a scroll box that the keyboard reaches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count = self.boxed = 0
        self._before: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.count += 1
            self.boxed += self._before == ("div", {"class": "wrap", "tabindex": "0"})
        self._before = (tag, dict(attrs))


def test_every_table_is_in_a_scroll_box(report: Path) -> None:
    tables = _Tables(report.read_text())
    assert tables.count > 5
    assert tables.boxed == tables.count
