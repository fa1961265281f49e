"""Known vulnerabilities of the locked packages: each is mended, or explained in docs/supply-chain.md, or this fails.

``pip-audit`` asks; this only judges what it answers, because by itself it says "No known vulnerabilities found" where
the service knows none of the packages, as behind an index that is a mirror::

    locks --pip-audit--> per package: vulnerabilities, or why it was not audited --> exit code

    python deploy/audit.py                # a warning where the service does not answer, so that work goes on
    python deploy/audit.py --required     # exit code 1 then: for a release

Exit codes: 0 nothing unexplained is known, 1 something is, or the service answers and does not know a package.
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
PAGE = ROOT / "docs/supply-chain.md"
# What ships, and what builds it. For a developer's packages: python deploy/audit.py constraints.txt
FILES = ("locks/build.txt", "locks/server.txt", "locks/server-gpu.txt")


@dataclass
class Findings:
    """What the service answered.

    Attributes:
        audited: Packages that it knows, as ``name version``.
        unknown: Why not, by package that it does not know.
        unasked: Why not, by file that it was not asked about, or gave no answer.
        vulnerabilities: Each with its ids, among them those of other databases; the package; the versions that mend it.
    """

    audited: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)
    vulnerabilities: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / name for name in FILES], help="locks to audit")
    parser.add_argument("--required", action="store_true", help="fail where the service does not answer")
    parser.add_argument("--osv-url", help="ask this OSV service instead of PyPI")
    parser.add_argument("--explained", type=Path, default=PAGE, help="page whose table explains what is left open")
    options = parser.parse_args(arguments)
    findings = Findings()
    for file in options.files:
        ask(file, options.osv_url, findings)
    return judge(findings, explained(options.explained), required=options.required)


def ask(file: Path, osv_url: str | None, findings: Findings) -> None:
    """Adds what the service knows about the packages of one file."""
    service = ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    command = [
        str(Path(sys.executable).with_name("pip-audit")),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
    ]
    command += ["--format", "json", *service, "--requirement", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        # It ends without an answer where it cannot connect; the last line says why.
        findings.unasked[file.name] = (done.stderr.splitlines() or ["pip-audit said nothing"])[-1]
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
    """The ids in the first column of the tables of a page."""
    return set(re.findall(r"^\| `([A-Z]+-[\w-]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))


def judge(findings: Findings, known: set[str], *, required: bool) -> int:
    """Says what was found; returns the exit code."""
    open_ones = {ids: found for ids, found in findings.vulnerabilities.items() if not known.intersection(ids)}
    for ids, (package, fixed) in open_ones.items():
        _say(f"{package}: {', '.join(ids)}; mended in {fixed}. Renew the lock, or explain it in docs/supply-chain.md")
    if not findings.audited:
        reasons = (findings.unasked | findings.unknown).values()
        _say(f"NOT DONE: the service answered for none of the packages ({min(reasons)})")
        return int(required)
    for file, reason in findings.unasked.items():
        _say(f"NOT DONE for {file}: {reason}")
    if findings.unknown:
        _say(f"not audited, since the service does not know them: {', '.join(sorted(findings.unknown))}")
    counts = f"{len(findings.vulnerabilities)} vulnerabilities, {len(open_ones)} unexplained"
    _say(f"{len(findings.audited)} packages, {counts}")
    return int(bool(open_ones or findings.unknown or (required and findings.unasked)))


def _say(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
