"""Installs sentence-transformers with its trainer, and SetFit, into environments of build/training-libraries.

python -m bench.training.install_libraries
"""

from __future__ import annotations

import subprocess
import sys

from bench.harness.arguments import make_parser
from bench.harness.texts import ROOT

ENVIRONMENTS = ROOT / "build/training-libraries"
# torch first and by its exact version, so that an index with a CPU wheel can provide it.
REQUIREMENTS = {
    "sentence-transformers": (["torch==2.13.0"], ["sentence-transformers[train]==6.2.0"]),
    "setfit": (["torch==2.13.0"], ["setfit==1.2.0", "sentence-transformers==6.2.0"]),
}


def main() -> None:
    """Runs the command line."""
    make_parser(__doc__).parse_args()
    for name, steps in REQUIREMENTS.items():
        environment = ENVIRONMENTS / name
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        for requirements in steps:
            pip = [str(environment / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *requirements], check=True)


if __name__ == "__main__":
    main()
