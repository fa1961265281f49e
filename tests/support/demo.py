"""The demo model for the tests, trained and exported by the commands that users type.

Training takes a minute of both cores, so the result is kept in ``build/test-demo`` under a digest of everything that
decides it. A test session makes it once; later sessions of the same sources find it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CACHE = ROOT / "build/test-demo"
CONFIG = ROOT / "training/demo/config.toml"
SOURCES = (
    "bundle/polyhead_bundle",
    "export/polyhead_export",
    "rows/polyhead_rows",
    "training/polyhead_training",
    "training/demo",
)


def demo_run() -> Path:
    """Returns the run directory of the demo model; trains it if there is none of these sources."""
    folder = _folder()
    with FileLock(folder / "run.lock"):
        if not (folder / "run").exists():
            _run("polyhead-train", CONFIG, "--output-dir", folder / "run")
    return folder / "run"


def demo_bundle() -> Path:
    """Returns the verified bundle of the demo model; exports it if there is none of these sources."""
    run, folder = demo_run(), _folder()
    with FileLock(folder / "bundle.lock"):
        if not (folder / "bundle").exists():
            _run("polyhead-export", run, folder / "bundle")
    return folder / "bundle"


def _run(command: str, *arguments: str | Path) -> None:
    subprocess.run([BIN / command, *arguments], check=True, cwd=_folder())


def _folder() -> Path:
    """Returns the directory of these sources, and removes those of others."""
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    for path in _sources():
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for other in CACHE.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _sources() -> Iterator[Path]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield path


if __name__ == "__main__":
    demo_bundle()
