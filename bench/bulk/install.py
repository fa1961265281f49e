"""Installs the libraries that bulk jobs are compared with, each into an environment build/bulk-libraries/NAME.

    python -m bench.bulk.install                    # all libraries
    python -m bench.bulk.install fastembed ray      # some of them

Versions are pinned in bench/bulk/libraries/requirements/NAME.txt.
"""

from __future__ import annotations

from bench.harness.arguments import make_parser
from bench.harness.environments import install, parse_names

from .libraries import ENVIRONMENTS, FOLDER


def main() -> None:
    """Runs the command line."""
    known = {path.stem: path.read_text().split() for path in sorted(FOLDER.glob("requirements/*.txt"))}
    arguments = parse_names(make_parser(__doc__), known)
    install(ENVIRONMENTS, {name: known[name] for name in arguments.names})


if __name__ == "__main__":
    main()
