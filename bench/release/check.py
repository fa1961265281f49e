"""Runs everything that a release requires on one commit, and ends with a checklist of the figures and their files.

::

    steps --> logs in build/release --> state.json (commit, exit code, seconds of each step)
      `-----> bench/results/*.json, each with the commit that it was measured on --> pages

    python -m bench.release.check                        # run what is not done on this commit; can be stopped any time
    python -m bench.release.check --list                 # what is done, and on which commit
    python -m bench.release.check --dry-run              # the commands that would run
    python -m bench.release.check --only reliability     # one step, also if it is done
    python -m bench.release.check --waive gpu="no GPU was available"   # accept that a step is not done

The exit code is 0 only if every step is done or waived, every result file was measured on this commit, and every page
is that of its result files and names no other commit. For a figure, a commit counts as another one if a file differs
that its program depends on (bench/harness/source.py): a change of results and pages never counts, and one of the server
not for the figures of training. Takes hours: run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.harness import results, source
from bench.harness.arguments import make_parser

from .steps import RESULTS, Step, root, steps

STATE = "build/release/state.json"
LOGS = "build/release/logs"
# Programs that compare the generated pages with what they are generated from.
PAGES = (
    ("bench.report.page", "--check"),
    ("docs.reference_pages", "--check"),
    ("pytest", "--quiet", "tests/reliability/test_report.py", "tests/interoperability/test_report.py"),
)
_COMMIT = re.compile(r"\bcommit `?([0-9a-f]{7,40})\b")


@dataclass
class State:
    """What has been run, in ``build/release/state.json``.

    Attributes:
        path: The file.
        runs: By step: ``commit``, ``exit_code`` (None until it ends), ``seconds``, ``finished`` and ``log`` of its last
            run.
        waived: By step: why it need not be done, and the commit for which that was said.
    """

    path: Path
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    waived: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        """Reads the file; an empty state if there is none."""
        return cls(path, **json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls(path)

    def save(self) -> None:
        """Writes the file at once, so that a stopped check finds either state."""
        results.write(self.path, {"runs": self.runs, "waived": self.waived})


@dataclass(frozen=True)
class Check:
    """A release check of one commit.

    Attributes:
        root: Root of the repository.
        steps: The steps.
        pages: Modules with arguments that fail if a page is outdated.
        commit: The commit.
        state: What has been run.
    """

    root: Path
    steps: Sequence[Step]
    pages: Sequence[tuple[str, ...]]
    commit: str
    state: State

    def run(self, step: Step) -> bool:
        """Runs the commands of a step and records the outcome; returns whether all succeeded."""
        for path in map(Path, step.files()):
            self._set_aside(path)
        log = self.root / LOGS / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "commit": self.commit,
            "exit_code": None,
            "log": log.relative_to(self.root).as_posix(),
        }
        self.state.runs[step.name] = record
        self.state.save()
        started, code = time.monotonic(), 0
        with log.open("wb") as output:
            for command in step.commands:
                output.write(f"$ {shlex.join(command)}\n".encode())
                output.flush()
                code = subprocess.run(command, cwd=self.root, stdout=output, stderr=output, check=False).returncode
                if code:
                    break
        record["exit_code"] = code
        record["seconds"] = round(time.monotonic() - started)
        record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.state.save()
        return code == 0

    def problem(self, step: Step) -> str:
        """Returns why a step is not done on this commit; empty if it is."""
        run = self.state.runs.get(step.name)
        if run and self._is_current(run["commit"]) and run["exit_code"] != 0:
            code = run["exit_code"]
            return f"{'was stopped' if code is None else f'failed with exit code {code}'}: {run['log']}"
        if step.results:
            return self._problem_of_results(step)
        if run is None:
            return "not run"
        return "" if self._is_current(run["commit"]) else f"run on {_short(run['commit'])}"

    def waiver(self, step: Step) -> str:
        """Returns why a step need not be done on this commit; empty if it must be."""
        waived = self.state.waived.get(step.name, {"commit": "", "reason": ""})
        return waived["reason"] if self._is_current(waived["commit"]) else ""

    def outdated_pages(self) -> list[str]:
        """Returns a message for each page that is outdated or names another commit."""
        found = []
        files = [self.root / file for step in self.steps for file in step.files()]
        measured = [self._origin_of(file)[0] for file in files if self._is_current(*self._origin_of(file))]
        for module, *arguments in self.pages:
            command = [sys.executable, "-m", module, *arguments]
            done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no message"]
                found.append(f"python -m {' '.join((module, *arguments))}: {last[0]}")
        for page in sorted([*self.root.glob("*.md"), *self.root.glob("docs/**/*.md")]):
            commits = set(_COMMIT.findall(page.read_text(encoding="utf-8")))
            # Where a file was measured on an earlier commit, with the same code.
            known = {one for one in commits if any(commit.startswith(one) for commit in measured)}
            others = sorted(one for one in commits - known if not self._is_current(one))
            found += [f"{page.relative_to(self.root)}: names commit {one}" for one in others]
        return found

    def unknown_results(self) -> list[str]:
        """Returns a message for each result file that no step writes."""
        known = {file for step in self.steps for file in step.files()}
        files = {path.relative_to(self.root).as_posix() for path in (self.root / RESULTS).glob("*.json")}
        return [f"{file}: no step writes it" for file in sorted(files - known)]

    def _problem_of_results(self, step: Step) -> str:
        for file in step.files():
            commit, program = self._origin_of(self.root / file)
            if not (self.root / file).exists():
                return f"{file} is missing"
            if not self._is_current(commit, program):
                return f"{file} is {f'of {_short(commit)}' if commit else 'of an unknown commit, or of several'}"
            # Of programs that write their file after each run, and continue there.
            if not _read(self.root / file).get("complete", True):
                return f"{file} is incomplete"
        return ""

    def _set_aside(self, file: Path) -> None:
        """Moves a result file of another commit away: some programs continue the runs in their file."""
        path = self.root / file
        if path.exists() and not self._is_current(*self._origin_of(path)):
            old = self.root / "build/release/old" / file.name
            old.parent.mkdir(parents=True, exist_ok=True)
            path.replace(old)

    def _is_current(self, commit: str, program: str = "") -> bool:
        return source.is_same(commit, self.commit, self.root, program)

    @staticmethod
    def _origin_of(path: Path) -> tuple[str, str]:
        """Returns the commit and the program of a result file; empty if they are unknown."""
        report = _read(path)
        return str(report.get("commit", "")), source.program_of(report.get("command", ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    options = parse(arguments)
    check = Check(root(), steps(), PAGES, source.head(), State.load(root() / STATE))
    return perform(check, options, print)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of a command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--list", action="store_true", help="only print the checklist")
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead of running them")
    parser.add_argument("--only", nargs="+", metavar="STEP", default=[], help="run these steps, also if they are done")
    parser.add_argument(
        "--waive",
        action="append",
        default=[],
        metavar="STEP=REASON",
        help="accept that STEP is not done on this commit",
    )
    return parser.parse_args(arguments)


def perform(check: Check, options: argparse.Namespace, report: Callable[[str], None]) -> int:
    """Runs the steps that the options select; returns the exit code.

    Args:
        check: The release check.
        options: ``list``, ``dry_run``, ``only``, ``waive``.
        report: Called with each line of output.
    """
    by_name = {step.name: step for step in check.steps}
    waivers = dict(one.split("=", 1) for one in options.waive if "=" in one)
    if unknown := sorted({*options.only, *waivers} - by_name.keys()):
        report(f"not a step: {', '.join(unknown)}; the steps are {', '.join(by_name)}")
        return 2
    if not all(waivers.values()) or len(waivers) < len(options.waive):
        report("--waive requires STEP=REASON, once for each step")
        return 2
    check.state.waived.update({name: {"reason": text, "commit": check.commit} for name, text in waivers.items()})
    if waivers:
        check.state.save()
    if options.list:
        return checklist(check, report)
    if source.DIRTY in check.commit or not check.commit:
        report("commit the changes first: measured files differ from the last commit")
        return 2
    for step in _selected(check, options.only):
        if options.dry_run:
            report("\n".join([f"# {step.name}", *map(shlex.join, step.commands)]))
        elif missing := step.missing():
            report(f"{step.name}: not run, requires {missing}")
        elif step.commands:
            report(f"{step.name}: running, log in {LOGS}/{step.name}.log")
            report(f"{step.name}: {'done' if check.run(step) else 'FAILED'}")
    return 0 if options.dry_run else checklist(check, report)


def _selected(check: Check, only: Sequence[str]) -> list[Step]:
    if only:
        return [step for step in check.steps if step.name in only]
    return [step for step in check.steps if check.problem(step) and not check.waiver(step)]


def checklist(check: Check, report: Callable[[str], None]) -> int:
    """Prints what is done, with the file of each figure, and what is not; returns the exit code."""
    report(f"release check of {check.commit or 'no commit'}")
    is_complete = source.DIRTY not in check.commit
    for step in check.steps:
        problem, waiver = check.problem(step), check.waiver(step)
        mark = " " if problem else "x"
        reason = f"waived: {waiver}" if problem and waiver else problem
        details = "; ".join(filter(None, (reason, step.note))) if problem else ", ".join(step.files())
        report(f"[{mark}] {step.name}{f': {details}' if details else ''}")
        is_complete = is_complete and bool(not problem or waiver)
    for problem in (*check.unknown_results(), *check.outdated_pages()):
        report(f"[ ] {problem}")
        is_complete = False
    report("complete" if is_complete else "not complete")
    return 0 if is_complete else 1


def _read(path: Path) -> dict[str, Any]:
    """Returns the content of a result file; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _short(commit: str) -> str:
    return f"commit {commit[:12]}{source.DIRTY if source.DIRTY in commit else ''}"


if __name__ == "__main__":
    sys.exit(main())
