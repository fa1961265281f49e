"""Builds the source distribution and the wheel as they are released, and checks them.

::

    source tree --locked build backend--> sdist, wheel --unpacked sdist, built again--> the same bytes
                                             |
                                             +--> twine check, check-wheel-contents, links of the readme

    python deploy/distributions.py build/dist

``SOURCE_DATE_EPOCH`` is the time of the last commit unless it is set, so that everybody who builds a commit gets the
same files. Exit codes: 0 the files are ready to publish; 1 a check failed.
"""

from __future__ import annotations

import argparse
import email
import email.message
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# `](target)` of links and images, where the target is neither an address nor an anchor of the page itself.
_RELATIVE_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)]*)\)")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Distributions:
    """Paths of the built files."""

    sdist: Path
    wheel: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """Both paths."""
        return self.sdist, self.wheel


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the built files; it is replaced")
    output: Path = parser.parse_args(arguments).output.resolve()
    if ROOT.is_relative_to(output):
        parser.error(f"{output} holds the source tree and would be deleted; name another folder")
    shutil.rmtree(output, ignore_errors=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or _commit_time()}
    with tempfile.TemporaryDirectory() as work:
        backend = _build_backend(Path(work, "backend"))
        built = build(ROOT, output, backend, environment)
        rebuilt = build(unpack(built.sdist, Path(work, "source")), Path(work, "again"), backend, environment)
        problems = differences(built, rebuilt)
    problems += [f"{built.wheel.name}: relative link in the readme: {link}" for link in relative_links(readme(built))]
    for tool, *options in (
        ("twine", "check", "--strict", *map(str, built.paths)),
        ("check-wheel-contents", str(built.wheel)),
    ):
        if subprocess.run([Path(sys.executable).with_name(tool), *options], check=False, cwd=ROOT).returncode:
            problems.append(f"{tool} failed")
    for problem in problems:
        _print(problem)
    for path in built.paths:
        _print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return int(bool(problems))


def build(source: Path, output: Path, backend: Path, environment: Mapping[str, str]) -> Distributions:
    """Builds both distributions of a source tree.

    Args:
        source: Folder with pyproject.toml.
        output: Folder of the built files; it is made.
        backend: Python interpreter of an environment with the build backend.
        environment: Environment variables.

    Raises:
        subprocess.CalledProcessError: The build failed; its messages are on standard error.
    """
    command: list[str | Path] = [backend, "-m", "hatchling", "build", "--directory", output]
    subprocess.run(command, cwd=source, env=environment, check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return Distributions(sdist, wheel)


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks a source distribution as the tree that it was built from; returns its root.

    Times and permissions differ from those of the tree. PKG-INFO, which the build adds, would be added a second time.
    """
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    (root / "PKG-INFO").unlink()
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o700 if path.stat().st_mode & 0o100 else 0o600)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


def differences(built: Distributions, rebuilt: Distributions) -> list[str]:
    """Returns a message for each distribution that has other bytes when it is built again."""
    pairs = zip(built.paths, rebuilt.paths, strict=True)
    return [f"{one.name} is not reproducible" for one, other in pairs if one.read_bytes() != other.read_bytes()]


def readme(built: Distributions) -> str:
    """Returns the text that the package index shows."""
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = email.message_from_bytes(archive.read(name)).get_payload(decode=True)
    assert isinstance(text, bytes)  # noqa: S101, as metadata has one part
    return text.decode()


def relative_links(text: str) -> list[str]:
    """Returns the targets of relative links and images of a Markdown text, code excluded."""
    return _RELATIVE_LINK.findall(_CODE.sub("", text))


def _build_backend(folder: Path) -> Path:
    """Makes an environment with the locked build backend; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
    ]
    subprocess.run([*install, "--requirement", ROOT / "locks/build.txt"], check=True)
    return python


def _commit_time() -> str:
    """Returns the time of the last commit, in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _print(line: str) -> None:
    sys.stderr.write(f"distributions: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
