"""The wheel and the source distribution contain every file that an installation needs."""

from __future__ import annotations

import email
import email.message
import subprocess
import tarfile
import zipfile

import pytest

from tests.support.demo import ROOT

from .conftest import Distributions

pytestmark = pytest.mark.slow

# Source root of each package of the wheel.
ROOTS = {
    "polyhead": "proto/gen",
    "polyhead_bundle": "bundle",
    "polyhead_client": "client",
    "polyhead_export": "export",
    "polyhead_server": "server",
    "polyhead_adapters": "adapters",
    "polyhead_rows": "rows",
    "polyhead_training": "training",
}


@pytest.fixture(scope="module")
def wheel(distributions: Distributions) -> zipfile.ZipFile:
    return zipfile.ZipFile(distributions.wheel)


def tracked(*folders: str) -> set[str]:
    """Returns the files that are committed, or not ignored and could be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


@pytest.mark.parametrize("package", ROOTS)
def test_wheel_contains_every_file_of_a_package(wheel: zipfile.ZipFile, package: str) -> None:
    root = ROOTS[package]
    expected = {path.removeprefix(f"{root}/") for path in tracked(f"{root}/{package}")}
    assert f"{package}/py.typed" in expected
    assert {name for name in wheel.namelist() if name.startswith(f"{package}/")} == expected


@pytest.mark.parametrize(
    "name",
    [
        "polyhead/v1/inference_service_pb2.pyi",
        "polyhead/v1/inference_service_pb2_grpc.pyi",
        "polyhead_bundle/bundle.schema.json",
        "polyhead_server/http/openapi.json",
        "polyhead_server/http/playground/static/index.html",
        "polyhead_server/rpc/dialects/descriptors.binpb",
        "polyhead_training/reporting/report.html.jinja",
    ],
)
def test_wheel_contains_data_that_is_read_at_run_time(wheel: zipfile.ZipFile, name: str) -> None:
    assert wheel.getinfo(name).file_size > 0


def test_wheel_contains_nothing_else(wheel: zipfile.ZipFile) -> None:
    packages = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == set(ROOTS)


def test_metadata_names_licence_readme_and_python(wheel: zipfile.ZipFile) -> None:
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.11"
    readme = metadata.get_payload(decode=True)
    assert isinstance(readme, bytes)
    assert readme.decode().strip() == (ROOT / "README.md").read_text().strip()
    licence = wheel.read(path.replace("METADATA", "licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_source_distribution_contains_the_repository(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = tracked() - names
    assert missing == set()
    assert names - tracked() <= {"PKG-INFO"}


@pytest.mark.parametrize("client", ["clients/go", "clients/npm"])
def test_clients_ship_the_licence(client: str) -> None:
    assert (ROOT / client / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
