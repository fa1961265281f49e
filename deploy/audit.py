"""Fails if a locked package has a known vulnerability that docs/guides/supply-chain.md does not explain.

``pip-audit`` queries the advisory service; this evaluates its report. On its own, pip-audit reports "No known
vulnerabilities found" even if the service knows none of the packages, for example behind a mirror::

    lock files --pip-audit--> for each package: vulnerabilities, or why it was not audited --> exit code

    python deploy/audit.py                # only warns if the service does not answer, so that work can continue
    python deploy/audit.py --required     # exits with 1 in that case: for a release

Exit codes: 0 no unexplained vulnerability is known; 1 one is, or the service answers but does not know a package.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guides/supply-chain.md"
# Packages that ship, and those that build them. For development packages: python deploy/audit.py constraints.txt
FILES = ("locks/build.txt", "locks/server.txt", "locks/server-gpu.txt", "locks/bulk.txt", "locks/ray.txt")


@dataclass
class Findings:
    """The report of the advisory service.

    Attributes:
        audited: Packages that the service knows, as ``name version``.
        unknown: The reason for each package that it does not know.
        failed: The reason for each file without an answer.
        vulnerabilities: Package and fixed versions of each vulnerability, by all of its ids.
    """

    audited: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    vulnerabilities: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / name for name in FILES], help="lock files")
    parser.add_argument("--required", action="store_true", help="fail if the service does not answer")
    parser.add_argument("--osv-url", help="query this OSV service instead of PyPI")
    parser.add_argument("--explained", type=Path, default=PAGE, help="page that lists the explained vulnerabilities")
    options = parser.parse_args(arguments)
    findings = Findings()
    for file in options.files:
        query(file, options.osv_url, findings)
    return evaluate(findings, explained(options.explained), required=options.required)


def query(file: Path, osv_url: str | None, findings: Findings) -> None:
    """Adds the report on the packages of one file."""
    service = ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    command = [
        str(Path(sys.executable).with_name("pip-audit")),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
    ]
    command += ["--format", "json", *service, "--requirement", str(file)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages = json.loads(completed.stdout)["dependencies"]
    except ValueError:
        # pip-audit prints no report if it cannot connect; its last line states why.
        findings.failed[file.name] = (completed.stderr.splitlines() or ["pip-audit printed nothing"])[-1]
        return
    for package in packages:
        if "skip_reason" in package:
            findings.unknown[package["name"]] = package["skip_reason"]
            continue
        name = f"{package['name']} {package['version']}"
        findings.audited.add(name)
        for one in package["vulns"]:
            ids = (one["id"], *sorted(one["aliases"]))
            findings.vulnerabilities[ids] = (name, ", ".join(one["fix_versions"]) or "no version yet")


def explained(page: Path) -> set[str]:
    """Returns the ids in the first column of the tables of a page."""
    return set(re.findall(r"^\| `([A-Z]+-[\w-]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))


def evaluate(findings: Findings, known: set[str], *, required: bool) -> int:
    """Prints a summary; returns the exit code."""
    unexplained = {ids: found for ids, found in findings.vulnerabilities.items() if not known.intersection(ids)}
    for ids, (package, fixed) in unexplained.items():
        _print(f"{package}: {', '.join(ids)}; fixed in {fixed}. Update the lock, or explain it in {PAGE.name}")
    if not findings.audited:
        reasons = (findings.failed | findings.unknown).values()
        _print(f"NOT DONE: the service knows none of the packages ({min(reasons)})")
        return int(required)
    for file, reason in findings.failed.items():
        _print(f"NOT DONE for {file}: {reason}")
    if findings.unknown:
        _print(f"packages that the service does not know: {', '.join(sorted(findings.unknown))}")
    counts = f"{len(findings.vulnerabilities)} vulnerabilities, {len(unexplained)} unexplained"
    _print(f"{len(findings.audited)} packages, {counts}")
    return int(bool(unexplained or findings.unknown or (required and findings.failed)))


def _print(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
