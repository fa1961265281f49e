"""The commit that a measurement belongs to. Requires the standard library and git alone.

A measurement belongs to every commit with the same files that it depends on: a change of the server leaves the figures
of training as they are.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIRTY = "-dirty"
# Files that no measurement depends on: results and pages, which are committed after it, and what writes the pages.
UNMEASURED = ("bench/results", "bench/report", "docs", "*.md")
_SHARED = ("bench/harness", "constraints.txt")
_SERVER = (*_SHARED, "bench/loadgen", "bundle", "client", "proto", "server")
_TRAINING = (*_SHARED, "bundle", "rows", "training")
_EXPORT = (*_TRAINING, *_SERVER, "export")
_TESTS = (*_EXPORT, "adapters", "bulk", "tests/support")
# Files and folders that the measurements of a program, or of those of a package, depend on besides that package. Those
# of any other program depend on all files.
_DEPENDENCIES = {
    "bench.bulk": (*_SERVER, "bulk", "rows"),
    "bench.comparison": _SERVER,
    "bench.export": _EXPORT,
    "bench.server": _SERVER,
    "bench.server.gpu": _EXPORT,
    "bench.server.scaling": _EXPORT,
    "bench.training": _TRAINING,
    "bench.training.domains": _EXPORT,
    "bench.training.drift": _EXPORT,
    "bench.training.families": (*_EXPORT, "tests/support"),
    "bench.training.novelty": _EXPORT,
    "bench.training.selective_accuracy": _EXPORT,
    "tests.interoperability": _TESTS,
    "tests.reliability": _TESTS,
}
_EXCLUDED = (".", *(f":(exclude){path}" for path in UNMEASURED))


def head(root: Path = ROOT) -> str:
    """Returns the commit of a working tree, with ``-dirty`` if measured files differ from it; empty outside git."""
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", *_EXCLUDED)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + (DIRTY if changed else "")


def of_all(commits: Iterable[str], root: Path = ROOT, program: str = "") -> str:
    """Returns the last of the commits whose figures one file holds; empty if their measured files differ."""
    found = list(commits)
    return found[-1] if found and all(is_same(one, found[-1], root, program) for one in found) else ""


def is_same(one: str, other: str, root: Path = ROOT, program: str = "") -> bool:
    """Returns whether a measurement is the same on two commits; an unknown or dirty commit equals none.

    Args:
        one: A commit.
        other: Another one.
        root: The repository.
        program: Module that measures; empty for all measured files.
    """
    if not one or not other or DIRTY in one + other:
        return False
    return one == other or digest(one, root, program) == digest(other, root, program) != ""


@functools.cache
def digest(commit: str, root: Path = ROOT, program: str = "") -> str:
    """Returns a digest of the files of a commit that a program depends on; empty if the commit is unknown."""
    package = program.rpartition(".")[0]
    found = _DEPENDENCIES.get(program) or _DEPENDENCIES.get(package)
    paths = (*found, package.replace(".", "/")) if found else ()
    try:
        listing = _git(root, "ls-tree", "-r", commit, *paths)
    except subprocess.CalledProcessError:
        return ""
    lines = [line for line in listing.splitlines() if _is_measured(line.partition("\t")[2])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def program_of(command: str) -> str:
    """Returns the module in a command like ``python -m bench.server.startup``; empty for any other command."""
    words = shlex.split(command)
    return words[2] if words[1:2] == ["-m"] else ""


def _is_measured(path: str) -> bool:
    return not path.endswith(".md") and not path.startswith(("bench/results/", "bench/report/", "docs/"))


def _git(root: Path, *arguments: str) -> str:
    command: Sequence[str] = ["git", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
