from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from bench.comparison.launch import SERVERS, SERVERS_FOLDER, Setting
from tests.support.demo import ROOT

# Modules that a requirement provides under another name.
PROVIDED = {
    "grpc": {"ray"},
    "polyhead": {"ray"},
    "tritonclient": {"mlserver", "nvidia-pytriton"},
    "pytriton": {"nvidia-pytriton"},
}


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_server_has_its_program_client_and_requirements(server: object) -> None:
    name, client, package = (getattr(server, field) for field in ("name", "client", "package"))
    folder = SERVERS_FOLDER / name
    assert (folder / "server.py").exists()
    assert _source(f"bench.comparison.{client}").exists()
    assert package in _requirements(folder)


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_programs_import_only_what_their_environment_has(server: object) -> None:
    name, client = (getattr(server, field) for field in ("name", "client"))
    folder = SERVERS_FOLDER / name
    requirements = _requirements(folder)
    imported = _imports(folder / "server.py") | _imports(_source(f"bench.comparison.{client}"))
    foreign = {one for one in imported if one not in sys.stdlib_module_names and one not in requirements}
    assert {one for one in foreign if not PROVIDED.get(one, set()) & requirements} == set()


def test_setting_is_described_in_words() -> None:
    assert str(Setting(1, 0)) == "no batching"
    assert str(Setting(16, 5)) == "batches of up to 16 texts, 5 ms wait"


def _source(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _requirements(folder: Path) -> set[str]:
    lines = (folder / "requirements.txt").read_text().split()
    return {line.partition("==")[0].partition("[")[0] for line in lines}


def _imports(path: Path) -> set[str]:
    """Returns the top-level packages that a file imports, directly or through other files of bench."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level or module.startswith("bench."):
                own = f"bench.comparison.{module}" if node.level and path.parent.name == "comparison" else module
                source = _source(own) if own.startswith("bench.") else path.parent / f"{module}.py"
                found |= _imports(source)
            else:
                found.add(module.partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return found
