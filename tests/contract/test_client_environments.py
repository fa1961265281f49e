"""The client shares an environment with packages that require an older protobuf or grpcio, and works there.

Each case installs the wheel with the extra ``client`` next to another package, and runs the tests of the client with
the versions that pip chooses.
"""

from __future__ import annotations

import json
import tarfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.demo import ROOT
from tests.support.package_index import Environment
from tests.support.shared_environments import OTHER_PACKAGES, OtherPackage

from .conftest import Distributions

# What the tests of the client import, in the versions that the other package permits.
TEST_PACKAGES = (
    "cryptography",
    "filelock",
    "grpcio-health-checking",
    "hypothesis",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "pytest-xdist",
)
# Requires mypy, whose result does not depend on the versions of grpcio and protobuf.
SKIPPED = "tests/client/test_type_checks.py"
# Both in one process. The other rooms are in the wheel, but the client needs none of their requirements.
IMPORT_BOTH = """
import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

for name in sys.argv[1:]:
    importlib.import_module(name)
import polyhead_client
from polyhead.v1 import inference_service_pb2_grpc

assert Path(polyhead_client.__file__).is_relative_to(sys.prefix), polyhead_client.__file__
assert "polyhead_server" not in sys.modules
print(json.dumps({name: metadata.version(name) for name in ("protobuf", "grpcio", "googleapis-common-protos")}))
"""
PRINT_REQUIREMENTS = (
    "import json, sys; from importlib import metadata; print(json.dumps(metadata.requires(sys.argv[1])))"
)


@pytest.fixture(scope="session")
def sources(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the same moment as the wheel: the working tree may change meanwhile."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def install_client(folder: Path, distributions: Distributions, *others: str) -> Environment:
    """Installs the wheel with the extra ``client``, the packages of the tests, and others."""
    environment = Environment(folder)
    environment.pip("install", f"polyhead[client] @ {distributions.wheel.as_uri()}", *others, *TEST_PACKAGES)
    environment.pip("check")
    return environment


def import_both(environment: Environment, *modules: str) -> dict[str, str]:
    """Imports modules and the client in one process; returns the versions that they use."""
    printed = environment.run(environment.python, "-c", IMPORT_BOTH, *modules)
    installed: dict[str, str] = json.loads(printed.splitlines()[-1])
    return installed


def run_client_tests(environment: Environment, sources: Path) -> None:
    options = ("--quiet", "-p", "no:cacheprovider", "--numprocesses", "2", "--dist", "loadfile", f"--ignore={SKIPPED}")
    environment.run(environment.python, "-m", "pytest", *options, "tests/client", cwd=sources)


def upper_limits(environment: Environment, other: OtherPackage) -> dict[str, Version]:
    """Returns the first version of protobuf and of grpcio that an installed package does not accept."""
    wanted = Requirement(other.requirement)
    printed = environment.run(environment.python, "-c", PRINT_REQUIREMENTS, wanted.name)
    required = [requirement for requirement in map(Requirement, json.loads(printed)) if applies(requirement, wanted)]
    return {
        requirement.name: Version(limit.version)
        for requirement in required
        for limit in requirement.specifier
        if limit.operator == "<" and requirement.name in {"protobuf", "grpcio"}
    }


def applies(requirement: Requirement, wanted: Requirement) -> bool:
    """Whether a requirement of a package applies to its installation with the extras of ``wanted``."""
    extras = wanted.extras or {""}
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def versions(texts: Mapping[str, str]) -> dict[str, Version]:
    return {name: Version(text) for name, text in texts.items()}


def oldest_requirements() -> dict[str, str]:
    """Returns the lower limits of the base installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = map(Requirement, project["dependencies"])
    return {each.name: one.version for each in required for one in each.specifier if one.operator == ">="}


@pytest.mark.slow(minutes=5)
@pytest.mark.xdist_group("distributions")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(other, id=other.requirement, marks=() if other.tightest else pytest.mark.environments)
        for other in OTHER_PACKAGES
    ],
)
def test_client_works_beside(
    other: OtherPackage,
    distributions: Distributions,
    sources: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    environment = install_client(tmp_path / "environment", distributions, other.requirement)
    installed = import_both(environment, other.module)
    record_property("versions", installed)
    # Control: if the other package accepts newer versions than it did, the page and the choice of packages change.
    assert upper_limits(environment, other) == versions(other.below)
    for name, limit in other.below.items():
        assert Version(installed[name]) < Version(limit)
    run_client_tests(environment, sources)


@pytest.mark.slow
@pytest.mark.environments
@pytest.mark.timeout(1500)
def test_client_works_with_the_oldest_versions_that_it_accepts(
    distributions: Distributions, sources: Path, tmp_path: Path
) -> None:
    oldest = oldest_requirements()
    pins = [f"{name}=={version}" for name, version in oldest.items()]
    environment = install_client(tmp_path / "environment", distributions, *pins)
    assert versions(import_both(environment)) == versions(oldest)
    run_client_tests(environment, sources)


def test_page_lists_the_packages_and_their_requirements() -> None:
    section = (ROOT / "docs/guides/client.md").read_text().split("## Other packages in the same environment\n")[1]
    rows = [
        f"| `{other.requirement}` | {', '.join(f'`{name}<{limit}`' for name, limit in other.below.items())} |"
        for other in OTHER_PACKAGES
    ]
    assert "\n\n| package | requires |\n| --- | --- |\n" + "\n".join(rows) + "\n\n" in section.split("\n## ")[0]
