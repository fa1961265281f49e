"""The commit that a measurement belongs to. Requires the standard library and git alone."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIRTY = "-dirty"
# Files that no measurement depends on: results and pages, which are committed after it, and what writes the pages.
UNMEASURED = ("bench/results", "bench/report", "docs", "*.md")
_EXCLUDED = (".", *(f":(exclude){path}" for path in UNMEASURED))


def head(root: Path = ROOT) -> str:
    """Returns the commit of a working tree, with ``-dirty`` if measured files differ from it; empty outside git."""
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", *_EXCLUDED)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + (DIRTY if changed else "")


def of_all(commits: Iterable[str], root: Path = ROOT) -> str:
    """Returns the last of the commits whose figures one file holds; empty if their measured files differ."""
    found = list(commits)
    return found[-1] if found and all(is_same(one, found[-1], root) for one in found) else ""


def is_same(one: str, other: str, root: Path = ROOT) -> bool:
    """Returns whether two commits have the same measured files; an unknown or dirty commit equals none."""
    if not one or not other or DIRTY in one + other:
        return False
    return one == other or digest(one, root) == digest(other, root) != ""


@functools.cache
def digest(commit: str, root: Path = ROOT) -> str:
    """Returns a digest of the measured files of a commit; empty if the commit is unknown."""
    try:
        listing = _git(root, "ls-tree", "-r", commit)
    except subprocess.CalledProcessError:
        return ""
    lines = [line for line in listing.splitlines() if _is_measured(line.partition("\t")[2])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_measured(path: str) -> bool:
    return not path.endswith(".md") and not path.startswith(("bench/results/", "bench/report/", "docs/"))


def _git(root: Path, *arguments: str) -> str:
    command: Sequence[str] = ["git", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
