"""The demo model for the tests, trained and exported by the commands that users type.

Training takes a minute of both cores, so the result is kept in ``build/test-demo`` under a digest of everything that
decides it. A test session makes it once; later sessions of the same sources find it.

    python -m tests.support.demo        # makes it if necessary, and prints the path of the bundle
"""

from __future__ import annotations

import functools
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
    cache = folder()
    with FileLock(cache / "run.lock"):
        if not (cache / "run").exists():
            _run("polyhead-train", CONFIG, "--output-dir", cache / "run")
    return cache / "run"


def demo_bundle() -> Path:
    """Returns the verified bundle of the demo model; exports it if there is none of these sources."""
    run, cache = demo_run(), folder()
    with FileLock(cache / "bundle.lock"):
        if not (cache / "bundle").exists():
            _run("polyhead-export", run, cache / "bundle")
    return cache / "bundle"


def _run(command: str, *arguments: str | Path) -> None:
    # Standard output is for the path that this program prints.
    subprocess.run([BIN / command, *arguments], check=True, cwd=folder(), stdout=subprocess.DEVNULL)


@functools.cache
def folder() -> Path:
    """Returns the directory of these sources, and removes those of others."""
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    for path in _sources():
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    path = CACHE / digest.hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    for other in CACHE.iterdir():
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def _sources() -> Iterator[Path]:
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield path


if __name__ == "__main__":
    print(demo_bundle())  # noqa: T201
