"""The conventions that every benchmark program keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.demo import ROOT

SOURCES = sorted((ROOT / "bench").rglob("*.py"))
PROGRAMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in SOURCES
    # The servers and libraries of comparisons are started in their own environments, and take no flags.
    if '__name__ == "__main__"' in path.read_text()
    and not {"servers", "libraries"} & {*path.parts}
    and "_client" not in path.stem
}


def test_programs_are_found() -> None:
    assert {"bench.server.throughput", "bench.comparison.compare", "bench.report.page"} <= set(PROGRAMS)


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_shows_how_to_run_the_program_as_a_module(module: str) -> None:
    source = PROGRAMS[module].read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring
    assert f"python -m {module}" in docstring
    assert "(__doc__)" in source or "description=__doc__" in source


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "Makefile"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_program_is_run_by_its_path(path: Path) -> None:
    assert not re.search(r"python\S* bench/", path.read_text())


@pytest.mark.parametrize("page", ["Makefile", "docs/benchmarks.md", "docs/performance.md"])
def test_commands_name_programs_that_exist(page: str) -> None:
    named = set(re.findall(r"-m (bench[\w.]*\w)", (ROOT / page).read_text()))
    assert named
    assert named <= set(PROGRAMS)


def test_load_generator_prints_its_help() -> None:
    command = [sys.executable, "-m", "bench.loadgen.main", "--help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert shown.startswith("usage: python -m bench.loadgen.main")
    assert "--mode {client,stream,unary}" in shown
