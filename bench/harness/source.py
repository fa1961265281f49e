"""The commit that a measurement belongs to. Requires the standard library and git alone.

A measurement belongs to every commit with the same files that it depends on: a change of the server leaves the figures
of training as they are.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIRTY = "-dirty"
# Files that no measurement depends on: results and pages, which are committed after it, what writes the pages, and what
# runs the programs and decides whether their figures are current.
UNMEASURED = (
    "bench/results",
    "bench/report",
    "bench/release",
    "bench/harness/recorded_runs.py",
    "bench/harness/source.py",
    "docs",
    "*.md",
)
_TRAINING = ("bench/harness", "bundle", "constraints.txt", "rows", "training")
# What serves a bundle depends on what has trained and exported it, too.
_SERVER = (*_TRAINING, "bench/loadgen", "client", "export", "proto", "server")
_BULK = (*_SERVER, "bulk")
_TESTS = (*_BULK, "adapters", "tests/support")
# Files and folders that the measurements of a program, or of those of a package, depend on besides that package. Those
# of any other program depend on all files.
_DEPENDENCIES = {
    "bench.bulk": _BULK,
    "bench.comparison": _SERVER,
    "bench.export": _SERVER,
    "bench.server": _SERVER,
    "bench.server.ray_serve": (*_SERVER, "deploy/ray"),
    "bench.training": _TRAINING,
    "bench.training.domains": _BULK,
    "bench.training.drift": _BULK,
    "bench.training.families": (*_SERVER, "tests/support"),
    "bench.training.novelty": _BULK,
    "bench.training.selective_accuracy": _BULK,
    "tests.interoperability": _TESTS,
    "tests.reliability": _TESTS,
}
_UNMEASURED = re.compile("|".join(f"{fnmatch.translate(path)}|{re.escape(path)}/" for path in UNMEASURED))
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
    try:
        listing = _git(root, "ls-tree", "-r", commit, *dependencies(program))
    except subprocess.CalledProcessError:
        return ""
    lines = [line for line in listing.splitlines() if not _UNMEASURED.match(line.partition("\t")[2])]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def dependencies(program: str) -> tuple[str, ...]:
    """Returns the files and folders that the measurements of a program depend on; empty for all of the repository."""
    package = program.rpartition(".")[0]
    found = _DEPENDENCIES.get(program) or _DEPENDENCIES.get(package)
    return (*found, package.replace(".", "/")) if found else ()


def program_of(command: str) -> str:
    """Returns the module in a command like ``python -m bench.server.startup``; empty for any other command."""
    words = shlex.split(command)
    return words[2] if words[1:2] == ["-m"] else ""


def _git(root: Path, *arguments: str) -> str:
    command: Sequence[str] = ["git", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
