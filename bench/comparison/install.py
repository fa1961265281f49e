"""Installs rivals, each into a virtual environment of its own, build/rivals/NAME, at the versions that stand beside it.

    python bench/comparison/install.py                              # all
    python bench/comparison/install.py mosec ray                    # those named
    python bench/comparison/install.py pytriton --python /usr/bin/python3.11

PyTriton 0.7.0 brings an early interpreter of each Python version, which fails on the standard library of 3.11.7 and
later; it wants a Python 3.11 up to 3.11.6, or another that suits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent.parent / "build/rivals"


def main() -> None:
    """Runs the command line."""
    names = sorted(one.parent.name for one in HERE.glob("*/requirements.txt"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments (default: this one)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no such rival: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed = [name for name in arguments.names or names if not install(name, arguments.python)]
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}; what pip said stands above")


def install(name: str, python: str) -> bool:
    """Makes a rival's environment anew; says whether that went well."""
    print(f"{name}: installing", flush=True)
    environment = ENVIRONMENTS / name
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    requirements = (HERE / name / "requirements.txt").read_text().split()
    # torch first and by its exact version, so that an index with a CPU wheel can give it.
    torch = [[one] for one in requirements if one.startswith("torch==")]
    return all(subprocess.run([*pip, *part], check=False).returncode == 0 for part in [*torch, requirements])


if __name__ == "__main__":
    main()
