"""The environment of each client: build/interoperability/CLIENT, with the versions of requirements/CLIENT.txt."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

from . import perf_analyzer

_HERE = Path(__file__).parent
ENVIRONMENTS = _HERE.parents[1] / "build/interoperability"
REQUIREMENTS = _HERE / "requirements"
CLIENTS = sorted(path.stem for path in (_HERE / "clients").glob("[!_]*.py"))


def install(client: str) -> Path:
    """Returns the interpreter of a client's environment; installs it if its versions have changed.

    Raises:
        subprocess.CalledProcessError: pip failed. What it had installed is removed.
    """
    requirements = REQUIREMENTS / f"{client}.txt"
    if not requirements.exists():
        # A program that is no Python package.
        return Path(sys.executable)
    folder = ENVIRONMENTS / client
    stamp, wanted = folder / "installed.txt", requirements.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return folder / "bin/python"
    print(f"{client}: installing", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # The file names every package, so that pip need not look for versions that fit together.
    if client == "perf_analyzer":
        perf_analyzer.install(folder, wanted.partition("==")[2].strip())
        stamp.write_text(wanted, encoding="utf-8")
        return folder / "bin/python"
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(folder)
        raise
    stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin/python"


def versions(client: str) -> dict[str, str]:
    """Returns the installed versions of the packages that a client consists of: those before the first comment."""
    requirements = REQUIREMENTS / f"{client}.txt"
    if not requirements.exists():
        return {}
    names = [line.partition("==")[0] for line in requirements.read_text().partition("#")[0].split()]
    folders = [str(path) for path in (ENVIRONMENTS / client).glob("lib/python*/site-packages")]
    folders.append(str(ENVIRONMENTS / client / "site"))
    found = {
        canonicalize_name(one.metadata["name"]): one.version for one in importlib.metadata.distributions(path=folders)
    }
    return {name: found[canonicalize_name(name)] for name in names}
