"""Programs that check or use the files of deploy/ and that no Python package of the environment installs."""

from __future__ import annotations

import shutil

from tests.support.demo import ROOT

# `make deploy-tools` installs Helm, kubectl and Envoy here.
FOLDER = ROOT / "build/deploy-tools/bin"


def find_tool(name: str) -> str | None:
    """Returns the path of a program, preferably the one of `make deploy-tools`; None if it is not installed."""
    return shutil.which(name, path=str(FOLDER)) or shutil.which(name)
