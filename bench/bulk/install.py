"""Installs the libraries that bulk jobs are compared with, each into an environment build/bulk-libraries/NAME.

    python -m bench.bulk.install                    # all libraries
    python -m bench.bulk.install fastembed ray      # some of them

Versions are pinned in bench/bulk/libraries/requirements/NAME.txt.
"""

from __future__ import annotations

import subprocess
import sys

from bench.harness.arguments import make_parser

from .libraries import ENVIRONMENTS, FOLDER

_REQUIREMENTS = FOLDER / "requirements"


def main() -> None:
    """Runs the command line."""
    names = sorted(path.stem for path in _REQUIREMENTS.glob("*.txt"))
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: {', '.join(names)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"unknown library: {', '.join(sorted(unknown))}; available: {', '.join(names)}")
    failed = [name for name in arguments.names or names if not install(name)]
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}; see the output of pip above")


def install(name: str) -> bool:
    """Recreates the environment of a library; returns whether pip succeeded."""
    print(f"{name}: installing", flush=True)
    environment = ENVIRONMENTS / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    requirements = (_REQUIREMENTS / f"{name}.txt").read_text().split()
    # torch first and by its exact version, so that an index with a CPU wheel can provide it.
    torch = [[one] for one in requirements if one.startswith("torch==")]
    return all(subprocess.run([*pip, *part], check=False).returncode == 0 for part in [*torch, requirements])


if __name__ == "__main__":
    main()
