"""The wheel and the source distribution contain every file that an installation needs."""

from __future__ import annotations

import email
import email.message
import json
import re
import subprocess
import tarfile
import zipfile

import pytest

from tests.support.demo import ROOT

from .conftest import Distributions

# One worker of a parallel run builds the distributions.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributions")]

# Source root of each package of the wheel.
ROOTS = {
    "polyhead": "proto/gen",
    "polyhead_bulk": "bulk",
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


def metadata_path(wheel: zipfile.ZipFile) -> str:
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return path


def test_metadata_names_licence_and_python(wheel: zipfile.ZipFile) -> None:
    path = metadata_path(wheel)
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.11"
    licence = wheel.read(path.replace("METADATA", "licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_readme_of_the_package_index_is_that_of_the_repository_with_absolute_links(wheel: zipfile.ZipFile) -> None:
    readme = email.message_from_bytes(wheel.read(metadata_path(wheel))).get_payload(decode=True)
    assert isinstance(readme, bytes)
    shown, source = readme.decode(), (ROOT / "README.md").read_text()
    host, _, project = repository().removeprefix("https://").partition("/")
    assert host == "github.com"
    addresses = {f"{repository()}/blob/main/", f"https://raw.githubusercontent.com/{project}/main/"}
    for address in addresses:
        assert address in shown
        shown = shown.replace(f"]({address}", "](")
    assert shown.strip() == source.strip()
    # Images are loaded from the raw files: the page about an image is not an image.
    images = re.findall(r"!\[[^\]]*\]\(https://([^/]+)/", readme.decode())
    assert set(images) == {"raw.githubusercontent.com"}


def repository() -> str:
    """Returns the address of the repository, which the module of the Go client names."""
    module = (ROOT / "clients/go/go.mod").read_text().splitlines()[0].removeprefix("module ")
    return f"https://{module.removesuffix('/clients/go')}"


def test_metadata_names_the_project_s_addresses(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read(metadata_path(wheel)))
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert urls.pop("Repository") == repository()
    assert urls.pop("Issues") == f"{repository()}/issues"
    assert set(urls) == {"Documentation", "Changelog"}
    for url in urls.values():
        address, _, file = url.partition("/blob/main/")
        assert (address, (ROOT / file).is_file()) == (repository(), True)


def test_npm_package_names_the_project_s_addresses() -> None:
    manifest = json.loads((ROOT / "clients/npm/package.json").read_text())
    directory = "clients/npm"
    assert manifest["repository"] == {"type": "git", "url": f"git+{repository()}.git", "directory": directory}
    assert manifest["homepage"] == f"{repository()}/tree/main/{directory}#readme"
    assert manifest["bugs"] == {"url": f"{repository()}/issues"}


def test_source_distribution_contains_the_repository(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = tracked() - names
    assert missing == set()
    assert names - tracked() <= {"PKG-INFO"}


@pytest.mark.parametrize("client", ["clients/go", "clients/npm"])
def test_clients_ship_the_licence(client: str) -> None:
    assert (ROOT / client / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
