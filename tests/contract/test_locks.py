"""The lock files contain the tested versions, with hashes, and every requirement of the server."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.demo import ROOT

LOCKS = ("build", "server", "server-gpu")


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


@pytest.mark.parametrize("lock", ["server", "server-gpu"])
def test_lock_satisfies_the_requirements_of_the_server(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(f"locks/{lock}.txt")
    if lock == "server-gpu":
        assert "onnxruntime" not in locked
        locked["onnxruntime"] = locked["onnxruntime-gpu"]
    for line in project["dependencies"] + project["optional-dependencies"]["server"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), (
            f"{requirement}: run `make lock`"
        )


def test_server_locks_do_not_contain_torch() -> None:
    assert {"torch", "transformers"} & (pins("locks/server.txt").keys() | pins("locks/server-gpu.txt").keys()) == set()
