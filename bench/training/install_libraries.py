"""Installs sentence-transformers with its trainer, and SetFit, into environments of build/training-libraries.

    python -m bench.training.install_libraries                      # both
    python -m bench.training.install_libraries setfit               # one of them

Versions are pinned in this file.
"""

from __future__ import annotations

from bench.harness.arguments import make_parser
from bench.harness.environments import install, parse_names
from bench.harness.texts import ROOT

ENVIRONMENTS = ROOT / "build/training-libraries"
REQUIREMENTS = {
    "sentence-transformers": ("torch==2.13.0", "sentence-transformers[train]==6.2.0"),
    # SetFit 1.2.0 fails with transformers 5.
    "setfit": ("torch==2.13.0", "setfit==1.2.0", "sentence-transformers==5.7.0", "transformers==4.57.6"),
}


def main() -> None:
    """Runs the command line."""
    arguments = parse_names(make_parser(__doc__), REQUIREMENTS)
    install(ENVIRONMENTS, {name: REQUIREMENTS[name] for name in arguments.names})


if __name__ == "__main__":
    main()
