"""Installs the compared servers, each into its own virtual environment build/comparison/NAME.

    python -m bench.comparison.install                              # all servers
    python -m bench.comparison.install mosec ray                    # some of them
    python -m bench.comparison.install pytriton --python /usr/bin/python3.11

Versions are pinned in bench/comparison/servers/NAME/requirements.txt. PyTriton 0.7.0 bundles an early interpreter of
each Python version, which fails on the standard library of Python 3.11.7 and later; it requires 3.11.6 or earlier.
"""

from __future__ import annotations

import subprocess
import sys

from bench.harness.arguments import make_parser

from .launch import ENVIRONMENTS, SERVERS_FOLDER


def main() -> None:
    """Runs the command line."""
    names = sorted(one.parent.name for one in SERVERS_FOLDER.glob("*/requirements.txt"))
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: {', '.join(names)})")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments (default: this one)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"unknown server: {', '.join(sorted(unknown))}; available: {', '.join(names)}")
    failed = [name for name in arguments.names or names if not install(name, arguments.python)]
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}; see the output of pip above")


def install(name: str, python: str) -> bool:
    """Recreates the environment of a server; returns whether pip succeeded."""
    print(f"{name}: installing", flush=True)
    environment = ENVIRONMENTS / name
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    requirements = (SERVERS_FOLDER / name / "requirements.txt").read_text().split()
    # torch first and by its exact version, so that an index with a CPU wheel can provide it.
    torch = [[one] for one in requirements if one.startswith("torch==")]
    return all(subprocess.run([*pip, *part], check=False).returncode == 0 for part in [*torch, requirements])


if __name__ == "__main__":
    main()
