"""Environments with the packages of some extras alone, as after ``pip install 'polyhead[EXTRAS]'``."""

from __future__ import annotations

import functools
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .demo import ROOT

_BLOCKER = '''"""Hides the packages that an installation without them would lack."""
import sys

HIDDEN = frozenset({hidden!r})


class Hide:
    """A finder that does not find the hidden packages, and all others as the finder behind it does."""

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


sys.meta_path[:] = map(Hide, sys.meta_path)
'''


def _requirements_of(project: dict[str, Any]) -> list[str]:
    """Returns the requirements of a project as its metadata would list them."""
    lines = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in map(Requirement, requirements):
            marker = f"({requirement.marker}) and " if requirement.marker else ""
            requirement.marker = Marker(f'{marker}extra == "{extra}"')
            lines.append(str(requirement))
    return lines


def requirements(*extras: str) -> set[str]:
    """Returns the names of all distributions that ``pip install polyhead[EXTRAS]`` installs, polyhead included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = [("polyhead", extras)]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            # The metadata of an editable installation may be older than the file.
            lines = metadata.requires(name) or [] if name != "polyhead" else _requirements_of(project)
        except metadata.PackageNotFoundError:  # a requirement of another platform
            continue
        found.add(canonicalize_name(name))
        for requirement in map(Requirement, lines):
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (wanted or ("",))
            ):
                entry = (requirement.name, tuple(sorted(requirement.extras)))
                if entry not in seen:
                    seen.add(entry)
                    waiting.append(entry)
    return found


@functools.cache  # reads the list of files of every installed distribution
def _distributions() -> dict[str, list[str]]:
    """Returns the names of the distributions of each top-level module."""
    return {module: list(names) for module, names in metadata.packages_distributions().items()}


@functools.cache
def hidden_modules(*extras: str) -> frozenset[str]:
    """Returns the top-level modules of installed distributions that the extras do not require."""
    installed = requirements(*extras)
    return frozenset(
        module
        for module, distributions in _distributions().items()
        if installed.isdisjoint(map(canonicalize_name, distributions))
    )


def hide_all_but(folder: Path, *extras: str) -> dict[str, str]:
    """Returns variables for a process in which only polyhead with some extras is installed.

    Args:
        folder: Folder for the module that hides the other packages.
        extras: Names of extras, such as ``server``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_BLOCKER.format(hidden=sorted(hidden_modules(*extras))))
    return {"PYTHONPATH": str(folder)}
