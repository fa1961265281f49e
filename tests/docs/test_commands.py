"""Every command in README.md and docs/ is run, against a real server and a real model, or says why it is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.servers import free_port
from tests.conftest import BIN, ROOT
from tests.e2e.conftest import Start, start  # noqa: F401, the fixture
from tests.support.pages import Desk, blocks

# Each page trains or exports: on a machine that is busy, longer than other tests.
pytestmark = pytest.mark.timeout(1200)
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
# Enough to train on, few enough to be quick.
ROWS = {"tickets.jsonl": ("train.jsonl", 48), "tickets-test.jsonl": ("test.jsonl", 24)}


@pytest.fixture
def desk(tmp_path: Path, start: Start) -> Iterator[Desk]:  # noqa: F811
    """The labelled files that the pages speak of, and nothing else."""
    for name, (source, count) in ROWS.items():
        lines = (ROOT / "training/demo" / source).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:: len(lines) // count][:count]))
    (tmp_path / "reviews.txt").write_text("love this kettle\nthe parcel never came\n")
    (tmp_path / "texts.jsonl").write_text('{"id": "1", "text": "Where is my refund?"}\n')
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "POLYHEAD_TARGET": f"127.0.0.1:{port}",
    }
    desk = Desk(tmp_path, environment, start, port)
    yield desk
    desk.stop()


@pytest.fixture
def furnished_desk(desk: Desk, demo_run: Path, demo_bundle: Path) -> Desk:
    """What README.md's commands leave behind, for the pages that come after it, and a server."""
    readme = (ROOT / "README.md").read_text()
    (desk.folder / "tickets.toml").write_text(next(one.code for one in blocks(readme) if one.file() == "tickets.toml"))
    shutil.copytree(demo_run, desk.folder / "runs/tickets")
    shutil.copytree(demo_bundle, desk.folder / "bundles/tickets")
    desk.serve(desk.folder / "bundles/tickets")
    return desk


@pytest.mark.model
def test_readme_does_what_it_says(desk: Desk) -> None:
    assert desk.follow(PAGES["README.md"].read_text()) > 10


@pytest.mark.model
@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("docs/")])
def test_page_does_what_it_says(page: str, furnished_desk: Desk) -> None:
    text = PAGES[page].read_text()
    runs = any(block.language in ("console", "python") and not block.mark for block in blocks(text))
    assert (furnished_desk.follow(text) > 0) == runs


def test_command_that_fails_is_found_with_its_line(desk: Desk) -> None:
    with pytest.raises(AssertionError, match=r"line 3: polyhead-train missing\.toml"):
        desk.follow("# Page\n\n```console\n$ true\n$ polyhead-train missing.toml\n```\n")


def test_program_that_is_neither_run_nor_marked_is_found(desk: Desk) -> None:
    block = "```js\nconsole.log(1);\n```\n"
    with pytest.raises(AssertionError, match="line 1: js is not run"):
        desk.follow(block)
    assert desk.follow(f"<!-- not run: there is no JavaScript here -->\n\n{block}") == 0


def test_commands_of_a_block_are_told_from_what_they_print(desk: Desk) -> None:
    page = "```console\n$ echo one > \\\n    said\nan answer\n$ cat said\n```\n"
    assert [block.commands() for block in blocks(page)] == [["echo one > \\\n    said", "cat said"]]
    assert desk.follow(page) == 2
    assert (desk.folder / "said").read_text() == "one\n"
