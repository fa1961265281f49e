from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import grimp
import pytest

from bench.harness import source


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    change(tmp_path, "code.py")
    return tmp_path


def change(root: Path, path: str) -> str:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{path} {len(list(root.rglob('*')))}")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "change")
    return source.head(root)


def test_head_is_the_commit_and_tells_of_changes_of_measured_files(root: Path) -> None:
    commit = source.head(root)
    assert len(commit) == 40
    (root / "README.md").write_text("new")
    assert source.head(root) == commit
    (root / "code.py").write_text("new")
    assert source.head(root) == f"{commit}-dirty"


def test_head_is_empty_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source.head(tmp_path) == ""


def test_commits_are_the_same_if_only_results_and_pages_differ(root: Path) -> None:
    one = source.head(root)
    pages = [change(root, path) for path in ("bench/results/speed.json", "docs/page.md", "README.md")]
    assert [source.is_same(one, page, root) for page in pages] == [True, True, True]
    other = change(root, "bench/speed.py")
    assert not source.is_same(one, other, root)
    assert source.is_same(other[:12], other, root)


def test_a_measurement_is_the_same_while_nothing_changes_that_it_depends_on(root: Path) -> None:
    change(root, "training/polyhead_training/loss.py")
    one = change(root, "server/polyhead_server/queue.py")
    training, heads = source.program_of("python -m bench.training.heads DATA"), "bench.training.drift"
    assert training == "bench.training.heads"
    other = change(root, "server/polyhead_server/batch.py")
    assert source.is_same(one, other, root, training)
    # Drift is counted by the server.
    assert not source.is_same(one, other, root, heads)
    assert not source.is_same(one, other, root, "bench.server.startup")
    assert not source.is_same(one, other, root, "tools.other")
    assert source.of_all([one, other], root, training) == other
    later = change(root, "training/polyhead_training/loop.py")
    assert not source.is_same(other, later, root, training)
    program = change(root, "bench/training/heads.py")
    assert not source.is_same(later, program, root, training)
    assert source.is_same(later, program, root, "bench.server.startup")


def test_every_dependency_exists() -> None:
    paths = {path for found in source._DEPENDENCIES.values() for path in found}
    assert sorted(path for path in paths if not (source.ROOT / path).exists()) == []
    names = [name.replace(".", "/") for name in source._DEPENDENCIES]
    assert [
        name for name in names if not (source.ROOT / name).exists() and not (source.ROOT / f"{name}.py").exists()
    ] == []


def test_programs_import_only_what_they_depend_on() -> None:
    modules = {path: ".".join(path.relative_to(source.ROOT).with_suffix("").parts) for path in _programs()}
    packages = [f"polyhead_{name}" for name in ("bulk", "bundle", "client", "export", "rows", "server", "training")]
    graph = grimp.build_graph("bench", "tests", *packages, cache_dir=None)
    # What programs of training take from these is the number of cores and the paths of commands; the others depend on
    # the server anyway.
    for importer in ("bench.harness.results", "bench.harness.servers"):
        for imported in graph.find_modules_directly_imported_by(importer):
            if imported.startswith("polyhead_server."):
                graph.remove_import(importer=importer, imported=imported)
    found = []
    for module in modules.values():
        allowed = (*source.dependencies(module), *source.UNMEASURED)
        for imported in (module, *graph.find_upstream_modules(module)):
            spec = importlib.util.find_spec(imported)
            assert spec
            assert spec.origin
            path = Path(spec.origin).relative_to(source.ROOT).as_posix()
            if not f"{path}/".startswith(tuple(f"{one}/" for one in allowed)):
                found.append(f"{module} imports {path}")
    assert len(modules) > 40
    assert found == []


def _programs() -> list[Path]:
    """Returns the files of the programs whose dependencies are listed."""
    folders = {
        name.replace(".", "/") for name in source._DEPENDENCIES if (source.ROOT / name.replace(".", "/")).is_dir()
    }
    return sorted(
        path
        for folder in folders
        for path in (source.ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("command", ["", "make compare", "polyhead-train config.toml"])
def test_other_commands_have_no_program(command: str) -> None:
    assert source.program_of(command) == ""


def test_unknown_and_dirty_commits_equal_none(root: Path) -> None:
    commit = source.head(root)
    assert source.is_same(commit, commit, root)
    for other in ("", f"{commit}-dirty", "0" * 40):
        assert not source.is_same(other, commit, root)
    assert not source.is_same("0" * 40, "1" * 40, root)
    assert not source.is_same(f"{commit}-dirty", f"{commit}-dirty", root)


def test_figures_of_several_commits_have_none(root: Path) -> None:
    one = source.head(root)
    same, other = change(root, "README.md"), change(root, "code.py")
    assert source.of_all([one, same], root) == same
    assert source.of_all([one, other], root) == ""
    assert source.of_all(["", other], root) == ""
    assert source.of_all([], root) == ""
