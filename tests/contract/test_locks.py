"""The lock files contain the tested versions, with hashes, and every requirement of their extras."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.demo import ROOT

# The extras that each lock contains.
EXTRAS = {
    "server": ("server", "http"),
    "server-gpu": ("server", "http"),
    "bulk": ("server", "http", "bulk"),
    "ray": ("server", "http", "bulk", "ray"),
}
LOCKS = ("build", *EXTRAS)


def pins(name: str) -> dict[str, str]:
    """Returns the version of each package in a file of pins."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_agrees_with_constraints(lock: str) -> None:
    tested = pins("constraints.txt")
    locked = pins(f"locks/{lock}.txt")
    assert locked
    differ = {name: version for name, version in locked.items() if tested.get(name, version) != version}
    assert differ == {}, "run `make lock` and commit what it writes"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes(lock: str) -> None:
    entries = re.split(r"^(?=[\w.-]+==)", (ROOT / f"locks/{lock}.txt").read_text(), flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []


@pytest.mark.parametrize("lock", EXTRAS)
def test_lock_satisfies_the_requirements_of_its_extras(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(f"locks/{lock}.txt")
    if lock == "server-gpu":
        assert "onnxruntime" not in locked
        locked["onnxruntime"] = locked["onnxruntime-gpu"]
    extras = [one for extra in EXTRAS[lock] for one in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, project["dependencies"] + extras):
        if requirement.name == project["name"]:  # of another extra
            continue
        version = locked.get(canonicalize_name(requirement.name))
        satisfied = version is not None and requirement.specifier.contains(version)
        assert satisfied, f"{requirement}: run `make lock`"


@pytest.mark.parametrize("lock", EXTRAS)
def test_lock_does_not_contain_torch(lock: str) -> None:
    assert {"torch", "transformers"} & pins(f"locks/{lock}.txt").keys() == set()
