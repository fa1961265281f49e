from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from polyhead_training import train as train_module
from polyhead_training.cli import main
from polyhead_training.errors import HubError
from safetensors import SafetensorError

from tests.support.tiny_training import subprocess_environment


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the default run directory, runs/<name>, out of the project's folder."""
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_run_prints_its_directory_and_nothing_else_to_stdout(config_file: Path, tmp_path: Path) -> None:
    result = invoke(config_file, "--output-dir", tmp_path / "out", "--max-steps", "1")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "run.json").is_file()
    assert "validation" in result.stderr
    assert "majority" in result.stderr


def test_default_directory_is_named_after_the_run(config_file: Path, tmp_path: Path) -> None:
    result = invoke(config_file, "--max-steps", "1", "--set", "name=other", "--set", "training.seed=4")
    assert result.stdout == "runs/other\n"
    assert json.loads((tmp_path / "runs/other/run.json").read_text())["config"]["training"]["seed"] == 4


def test_help_has_examples_and_the_minimal_configuration() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "a label may be absent or null in any row" in result.stdout
    assert "--set KEY=VALUE" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.batch_size=0"], "training.batch_size: 0"),
        (["--set", "data.train=${NO_SUCH_VARIABLE}/a.jsonl"], "NO_SUCH_VARIABLE, which is not set"),
        (["--set", "model.backbone=./nowhere"], "is neither a folder nor a hub id"),
        (["--output-dir", "."], "is not a run"),
    ],
)
def test_user_error_is_one_line_and_exit_code_2(config_file: Path, arguments: list[str], message: str) -> None:
    result = invoke(config_file, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("polyhead-train: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr


def test_invalid_rows_are_listed_with_exit_code_2(
    config_file: Path, rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    path = write_jsonl("train.jsonl", [*rows, {"text": "a", "sentiment": "maybe"}])
    result = invoke(config_file)
    assert result.exit_code == 2
    assert f"{path}:25: field 'sentiment': 'maybe' is not a valid label" in result.stderr


def test_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    assert invoke(tmp_path / "nowhere.toml").exit_code == 2


def test_hub_failure_is_exit_code_1(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise HubError("someone/some-bert", "the hub did not deliver it")

    monkeypatch.setattr(train_module, "train", fail)
    result = invoke(config_file)
    assert result.exit_code == 1
    assert result.stderr == "polyhead-train: backbone someone/some-bert: the hub did not deliver it\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_full_disk_is_one_line_and_exit_code_1(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(train_module, "train", fail)
    result = invoke(config_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"polyhead-train: {error}\n"


def test_dry_run_reports_on_the_data_and_trains_nothing(config_file: Path, tmp_path: Path) -> None:
    result = invoke(config_file, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "median 1" in result.stderr
    assert "warning: test: rows that also occur in train" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_dry_run_rejects_a_stage_with_too_many_layers(config_file: Path) -> None:
    result = invoke(config_file, "--dry-run", "--set", "training.stages.1.train=['layers:3']")
    assert result.exit_code == 2
    assert "'layers:3' exceeds the backbone's 2 layers" in result.stderr


def test_dry_run_lists_every_invalid_row_with_exit_code_2(
    config_file: Path, rows: list[dict[str, Any]], write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    train = write_jsonl("train.jsonl", [*rows, {"text": "a", "sentiment": "positve"}, {"text": ""}])
    test = write_jsonl("test.jsonl", [{"text": "b", "label": 4.5}])
    labels = "model.heads.0.labels=['account', 'app', 'billing', 'delivery', 'product', 'support']"
    sentiment = "{name='sentiment', kind='sigmoid', labels=['negative', 'positive']}"
    heads = f"model.heads=[{{name='topic', kind='softmax', field='label'}}, {sentiment}]"
    result = invoke(config_file, "--dry-run", "--set", heads, "--set", labels)
    assert result.exit_code == 2
    assert (
        f"{train}:25: field 'sentiment': 'positve' is not a valid label of head 'sentiment': did you mean 'positive'?"
        in (result.stderr)
    )
    assert f"{train}:26: field 'text': '' is not a valid text" in result.stderr
    assert f"{test}:1: field 'label': '4.5' is not a valid label of head 'topic'" in result.stderr


# Runs several command lines; prints the exit code of each, and which heavy packages are imported after it.
PROGRAM = """
import json, sys
from polyhead_training.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        heavy = {'torch', 'transformers', 'accelerate', 'pyarrow', 'sklearn'} & {*sys.modules}
        print(json.dumps([end.code, sorted(heavy)]))
"""


def test_mistakes_are_reported_before_torch_is_imported(
    config_file: Path, write_jsonl: Callable[[str, Sequence[object]], Path]
) -> None:
    write_jsonl("wrong.jsonl", [{"text": "a", "sentiment": "positve"}])
    write_jsonl("empty.jsonl", [])
    mistakes = {
        "config.toml: training.batch_size: 0": ["training.batch_size=0", "model.poolin=cls"],
        "data.test: the file": ["data.test=nowhere.jsonl"],
        "wrong.jsonl:1: field 'sentiment': 'positve'": ["data.train=wrong.jsonl"],
        "empty.jsonl: has no rows": ["data.train=empty.jsonl"],
        # Control: a dry run without a mistake.
        "median": [],
    }
    lines = [
        [str(config_file), "--dry-run", *(part for override in overrides for part in ("--set", override))]
        for overrides in mistakes.values()
    ]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        env=subprocess_environment(),
    )
    *found, (code, imported) = map(json.loads, result.stdout.splitlines())
    assert found == [[2, []]] * (len(mistakes) - 1)
    assert (code, "torch" in imported) == (0, True)
    for message in mistakes:
        assert message in result.stderr


def test_run_in_progress_requires_resume_or_restart(config_file: Path, tmp_path: Path) -> None:
    invoke(config_file, "--output-dir", tmp_path / "out", "--max-steps", "1")
    (tmp_path / "out").rename(tmp_path / "out.in_progress")
    (tmp_path / "out.in_progress" / "identity.json").write_text("{}")
    (tmp_path / "out.in_progress" / "last.safetensors").write_text("")
    result = invoke(config_file, "--output-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert "continue it with --resume, or discard it with --restart" in result.stderr
    assert invoke(config_file, "--output-dir", tmp_path / "out", "--max-steps", "1", "--restart").exit_code == 0
    again = invoke(config_file, "--output-dir", tmp_path / "out", "--max-steps", "1", "--resume")
    assert again.exit_code == 0
    assert "is complete; nothing to resume" in again.stderr
