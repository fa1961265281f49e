"""The badges of README.md are files of the repository, and they are true."""

from __future__ import annotations

import re
import tomllib

import yaml  # type: ignore[import-untyped]

from tests.support.demo import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def badge(name: str) -> str:
    """The value that a badge shows."""
    path = f"docs/assets/badge-{name}.svg"
    assert path in README
    found = re.search(r"<title>\w+: (.+)</title>", (ROOT / path).read_text())
    assert found
    return found[1]


def test_version_and_licence_are_those_of_the_project() -> None:
    assert badge("version") == PROJECT["version"]
    assert badge("license") == PROJECT["license"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_python_versions_are_those_that_are_checked() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    checked = workflow["jobs"]["check"]["strategy"]["matrix"]["python-version"]
    assert badge("python").split(" | ") == checked
    assert PROJECT["requires-python"] == f">={checked[0]}"


def test_readme_shows_nothing_from_elsewhere() -> None:
    assert re.findall(r"!\[[^\]]*\]\(https?:[^)]*\)", README) == []
