"""Installs NVIDIA's perf_analyzer, whose wheels require a newer C library than older distributions have.

On such a machine, its wheel runs with the libraries of Debian 13 in the folder ``libraries``: apt downloads them
without installing them, and their own loader starts the program. The machine itself is not changed.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

_MIN_GLIBC = (2, 38)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCE = f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian trixie main\n"
_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libssl3t64")


def install(folder: Path, version: str) -> Path:
    """Installs the program and returns its path.

    Args:
        folder: Environment to install it in.
        version: Of the wheel.

    Raises:
        subprocess.CalledProcessError: pip, apt-get or dpkg-deb failed.
        FileNotFoundError: This is no Debian.
    """
    machine = platform.machine()
    site = folder / "site"
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wheel = ["--only-binary", ":all:", "--platform", f"manylinux_2_38_{machine}", "--target", str(site)]
    subprocess.run([*pip, *wheel, "--upgrade", f"perf-analyzer=={version}"], check=True)
    binary = site / "perf_analyzer/bin/perf_analyzer"
    binary.chmod(0o755)
    command = [str(binary)]
    if tuple(map(int, platform.libc_ver()[1].split("."))) < _MIN_GLIBC:
        libraries = _download(folder / "libraries") / f"usr/lib/{machine}-linux-gnu"
        loader = next(libraries.glob("ld-linux-*"))
        command = [str(loader), "--library-path", str(libraries), *command]
    program = folder / "bin/perf_analyzer"
    program.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
    program.chmod(0o755)
    return program


def _download(folder: Path) -> Path:
    """Unpacks the libraries into a folder and returns it."""
    for part in ("lists/partial", "cache/archives/partial", "root"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(_SOURCE)
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": os.devnull,
        "Dir::Cache": folder / "cache",
    }
    apt = [
        "apt-get",
        "--quiet",
        "--quiet",
        *(argument for one in options.items() for argument in ("-o", "=".join(map(str, one)))),
    ]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *_PACKAGES], check=True, cwd=folder)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)
    return folder / "root"
