"""The locks with hashes are of the versions that were tested, and of everything that the server asks for."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LOCKS = ("build", "server", "server-gpu")


def pins(name: str) -> dict[str, str]:
    """Versions by package of a file of pins, hashes and comments left out."""
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
def test_every_package_of_a_lock_has_hashes(lock: str) -> None:
    entries = re.split(r"^(?=[\w.-]+==)", (ROOT / f"locks/{lock}.txt").read_text(), flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []


@pytest.mark.parametrize("lock", ["server", "server-gpu"])
def test_lock_has_everything_that_the_server_asks_for(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(f"locks/{lock}.txt")
    if lock == "server-gpu":
        assert "onnxruntime" not in locked
        locked["onnxruntime"] = locked["onnxruntime-gpu"]
    for line in project["dependencies"] + project["optional-dependencies"]["server"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), f"{wanted}: run `make lock`"


def test_locks_have_no_torch() -> None:
    assert {"torch", "transformers"} & (pins("locks/server.txt").keys() | pins("locks/server-gpu.txt").keys()) == set()
