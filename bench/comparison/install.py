"""Installs the compared servers, each into its own virtual environment build/comparison/NAME.

    python -m bench.comparison.install                              # all servers
    python -m bench.comparison.install mosec ray                    # some of them
    python -m bench.comparison.install pytriton --python /usr/bin/python3.11

Versions are pinned in bench/comparison/servers/NAME/requirements.txt. PyTriton 0.7.0 bundles an early interpreter of
each Python version, which fails on the standard library of Python 3.11.7 and later; it requires 3.11.6 or earlier.
"""

from __future__ import annotations

import sys

from bench.harness.arguments import make_parser
from bench.harness.environments import install, parse_names

from .launch import ENVIRONMENTS, SERVERS_FOLDER


def main() -> None:
    """Runs the command line."""
    paths = sorted(SERVERS_FOLDER.glob("*/requirements.txt"))
    known = {path.parent.name: path.read_text().split() for path in paths}
    parser = make_parser(__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments (default: this one)")
    arguments = parse_names(parser, known)
    install(ENVIRONMENTS, {name: known[name] for name in arguments.names}, arguments.python)


if __name__ == "__main__":
    main()
