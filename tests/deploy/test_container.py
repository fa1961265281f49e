"""The images have every package: their build sees only the files that .dockerignore names."""

from __future__ import annotations

import tomllib

from tests.support.demo import ROOT


def test_build_of_the_images_sees_every_package() -> None:
    ignored, *allowed = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith(("#", "**/"))
    ]
    assert ignored == "*"
    assert all(line.startswith("!") for line in allowed)
    seen = tuple(line[1:] for line in allowed)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = build["targets"]["wheel"]["packages"]
    assert "bulk/polyhead_bulk" in packages
    assert [package for package in packages if not f"{package}/".startswith(seen)] == []
