"""The distributions of this source tree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.demo import ROOT
from tests.support.package_index import Environment

_BUILD = """
import sys
from hatchling import build

print(build.build_wheel(sys.argv[1]))
print(build.build_sdist(sys.argv[1]))
"""


@dataclass(frozen=True)
class Distributions:
    """Paths of the built files."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the source distribution, built by the locked build backend."""
    folder = tmp_path_factory.mktemp("distributions")
    environment = Environment(folder / "build")
    environment.pip("install", "--require-hashes", "--requirement", ROOT / "locks/build.txt")
    wheel, sdist = environment.run(environment.python, "-c", _BUILD, folder).split()
    return Distributions(folder / wheel, folder / sdist)
