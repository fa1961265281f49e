"""The driver of a release check, with steps of a few milliseconds in a repository of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.harness import source
from bench.release import check as program
from bench.release.check import Check, State, perform
from bench.release.steps import RESULTS, Step, steps
from tests.support.demo import ROOT

COUNT = "import pathlib, sys; p = pathlib.Path('build/count'); p.write_text(p.read_text() + sys.argv[1])"
MEASURE = (
    "import json, pathlib; from bench.harness import source; "
    "pathlib.Path('bench/results/speed.json').write_text(json.dumps({'commit': source.head(pathlib.Path())}))"
)
PAGE = "import sys; page = open('docs/page.md').read(); sys.exit(page != 'current\\n')"


class Repository:
    """A repository with a page and one result file, and the release check of its last commit."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        for path, text in (
            (".gitignore", "build\n"),
            ("code.py", "1\n"),
            ("docs/page.md", "current\n"),
            (f"{RESULTS}/speed.json", "{}"),
            ("build/count", ""),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        (root / "page_check.py").write_text(PAGE)
        self.git("init", "--quiet")
        self.commit()
        python = (sys.executable, "-c")
        self.steps = [
            Step("first", ((*python, COUNT, "1"),)),
            Step("second", ((*python, COUNT, "2"),)),
            Step("speed", ((*python, MEASURE),), ("speed",)),
        ]

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")

    def check(self) -> Check:
        state = State.load(self.root / program.STATE)
        return Check(self.root, self.steps, [("page_check",)], source.head(self.root), state)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Runs the command line; returns the exit code and the output."""
        lines: list[str] = []
        code = perform(self.check(), program.parse(arguments), lines.append)
        return code, "\n".join(lines)

    def count(self) -> str:
        return (self.root / "build/count").read_text()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path, monkeypatch)


def test_all_steps_run_once_and_are_complete(repository: Repository) -> None:
    code, output = repository.run()
    assert (code, repository.count()) == (0, "12"), output
    assert "[x] speed: bench/results/speed.json" in output
    assert output.endswith("complete")
    assert repository.run()[0] == 0
    assert repository.count() == "12"


def test_a_stopped_check_continues(repository: Repository) -> None:
    assert repository.run("--only", "first")[0] == 1
    assert repository.count() == "1"
    assert repository.run()[0] == 0
    assert repository.count() == "12"


def test_a_step_that_was_stopped_is_not_done(repository: Repository) -> None:
    assert repository.run()[0] == 0
    stop = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    script = (
        "import pathlib, sys; from bench.harness import source; from bench.release.check import Check, State; "
        "from bench.release.steps import Step; root = pathlib.Path(); "
        f"step = Step('speed', ((sys.executable, '-c', {stop!r}),), ('speed',)); "
        f"Check(root, [step], [], source.head(root), State.load(root / {program.STATE!r})).run(step)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=repository.root, check=False)
    assert "[ ] speed: was stopped: build/release/logs/speed.log" in repository.run("--list")[1]
    assert repository.run()[0] == 0


def test_a_result_file_without_all_runs_is_not_done(repository: Repository) -> None:
    assert repository.run()[0] == 0
    path = repository.root / RESULTS / "speed.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    assert "[ ] speed: bench/results/speed.json is incomplete" in repository.run("--list")[1]


def test_a_step_that_failed_is_reported_and_runs_again(repository: Repository) -> None:
    good = repository.steps[0]
    repository.steps[0] = Step("first", ((sys.executable, "-c", "print('words'); raise SystemExit(3)"), *good.commands))
    code, output = repository.run()
    assert code == 1
    assert "first: failed with exit code 3: build/release/logs/first.log" in output
    assert "words" in (repository.root / "build/release/logs/first.log").read_text()
    assert repository.count() == "2"
    repository.steps[0] = good
    assert repository.run()[0] == 0
    assert repository.count() == "21"


def test_a_change_of_code_makes_every_step_run_again(repository: Repository) -> None:
    assert repository.run()[0] == 0
    (repository.root / "code.py").write_text("2\n")
    code, output = repository.run()
    assert (code, "commit the changes first" in output) == (2, True)
    repository.commit()
    code, output = repository.run("--list")
    assert code == 1
    assert "first: run on commit" in output
    assert "bench/results/speed.json is of commit" in output
    assert repository.run()[0] == 0
    assert repository.count() == "1212"


def test_a_change_of_results_and_pages_does_not(repository: Repository) -> None:
    assert repository.run()[0] == 0
    (repository.root / "README.md").write_text("new\n")
    repository.commit()
    assert repository.run("--list")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "docs/page.md").write_text("old\n"), "[ ] python -m page_check"),
        (lambda root: (root / "docs/new.md").write_text("at commit `0123456789ab`"), "docs/new.md: names commit"),
        (lambda root: (root / f"{RESULTS}/other.json").write_text("{}"), "other.json: no step writes it"),
        (lambda root: (root / f"{RESULTS}/speed.json").write_text("{}"), "speed.json is of an unknown commit"),
        (lambda root: (root / f"{RESULTS}/speed.json").unlink(), "speed.json is missing"),
    ],
    ids=["outdated page", "other commit", "unknown result", "unknown commit", "missing result"],
)
def test_check_does_not_end_while(repository: Repository, change: Callable[[Path], Any], message: str) -> None:
    assert repository.run()[0] == 0
    change(repository.root)
    code, output = repository.run("--list")
    assert code == 1
    assert message in output
    assert output.endswith("not complete")


def test_a_page_may_name_the_commit(repository: Repository) -> None:
    assert repository.run()[0] == 0
    (repository.root / "docs/new.md").write_text(f"Measured on commit {source.head(repository.root)[:12]}.\n")
    assert repository.run("--list")[0] == 0


def test_a_change_of_other_code_leaves_figures_as_they_are(repository: Repository) -> None:
    file = repository.root / f"{RESULTS}/speed.json"
    assert repository.run()[0] == 0
    commit = json.loads(file.read_text())["commit"]
    file.write_text(json.dumps({"commit": commit, "command": "python -m bench.training.heads DATA"}))
    (repository.root / "docs/new.md").write_text(f"Measured on commit {commit[:12]}.\n")
    repository.commit()
    for path, problems in (("code.py", 0), ("training/loss.py", 2)):
        (repository.root / path).parent.mkdir(exist_ok=True)
        (repository.root / path).write_text("2\n")
        repository.commit()
        output = repository.run("--list")[1]
        assert output.count(commit[:12]) - 2 == problems, output  # the two steps without results were run on it


def test_a_waived_step_does_not_run_and_needs_a_reason_for_each_commit(repository: Repository) -> None:
    assert repository.run("--waive", "first")[0] == 2
    code, output = repository.run("--waive", "first=no machine")
    assert (code, repository.count()) == (0, "2")
    assert "[ ] first: waived: no machine" in output
    (repository.root / "code.py").write_text("2\n")
    repository.commit()
    assert repository.run()[0] == 0
    assert repository.count() == "212"


def test_a_step_that_this_machine_cannot_run_is_not_done(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYHEAD_DATA", raising=False)
    repository.steps.append(Step("training", ((sys.executable, "-c", COUNT, "3"),), needs=("data",)))
    code, output = repository.run()
    assert (code, repository.count()) == (1, "12")
    assert "training: not run, requires the folder with data sets" in output


def test_dry_run_prints_commands_and_runs_none(repository: Repository) -> None:
    code, output = repository.run("--dry-run", "--only", "first")
    assert (code, repository.count()) == (0, "")
    assert output.startswith("# first\n")
    assert "second" not in output


def test_unknown_step_is_rejected(repository: Repository) -> None:
    code, output = repository.run("--only", "third")
    assert (code, output) == (2, "not a step: third; the steps are first, second, speed")


def test_results_of_another_commit_are_set_aside(repository: Repository) -> None:
    """Some programs continue the runs in their result file."""
    file = repository.root / f"{RESULTS}/speed.json"
    file.write_text(json.dumps({"commit": "0" * 40, "runs": [1]}))
    assert repository.run()[0] == 0
    assert "runs" not in json.loads(file.read_text())
    assert json.loads((repository.root / "build/release/old/speed.json").read_text())["runs"] == [1]


def test_every_result_file_has_one_step() -> None:
    written = [file for step in steps() for file in step.files()]
    assert len(set(written)) == len(written)
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / RESULTS).glob("*.json")} == set(written)


def test_programs_of_the_steps_exist() -> None:
    modules = {command[2] for step in steps() for command in step.commands if command[1] == "-m"}
    assert {module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()} == set()
    targets = {command[1] for step in steps() for command in step.commands if command[0] == "make"}
    makefile = (ROOT / "Makefile").read_text()
    for variable, value in (("BUNDLE", "build/demo/bundle"), ("RUN", "build/model_quality/blitzer-both-heads-0")):
        makefile = makefile.replace(f"$({variable})/", f"{value}/")
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()
