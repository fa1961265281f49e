"""Virtual environments of the software that polyhead is compared with. Requires the standard library alone."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def parse_names(parser: argparse.ArgumentParser, known: Mapping[str, Sequence[str]]) -> argparse.Namespace:
    """Parses the command line of a program that installs environments.

    Args:
        parser: Its parser.
        known: Requirements of each environment.

    Returns:
        The arguments, with the chosen environments as ``names``; without any on the command line, all of them.
    """
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: {', '.join(known)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; available: {', '.join(known)}")
    arguments.names = arguments.names or list(known)
    return arguments


def install(folder: Path, requirements: Mapping[str, Sequence[str]], python: str = sys.executable) -> None:
    """Creates environments, each in a folder of its name; those with the same requirements and Python stay.

    Args:
        folder: Parent of the environments.
        requirements: Requirements of each.
        python: Interpreter of all.

    Raises:
        SystemExit: pip failed; names the environments.
    """
    failed = [name for name, packages in requirements.items() if not _install(folder / name, packages, python)]
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}; see the output of pip above")


def _install(environment: Path, requirements: Sequence[str], python: str) -> bool:
    # Written when all packages are installed.
    installed, content = environment / "installed.txt", "\n".join([python, *requirements, ""])
    if installed.exists() and installed.read_text(encoding="utf-8") == content:
        print(f"{environment.name}: installed", flush=True)
        return True
    print(f"{environment.name}: installing", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    # torch first and by its exact version, so that an index with a CPU wheel can provide it.
    torch = [[one] for one in requirements if one.startswith("torch==")]
    if any(subprocess.run([*pip, *part], check=False).returncode for part in [*torch, requirements]):
        return False
    installed.write_text(content, encoding="utf-8")
    return True
