from __future__ import annotations

import re
from pathlib import Path

import pytest
from polyhead_training.config_file import read_config
from polyhead_training.errors import ConfigError

MINIMAL = 'name = "tickets"\n[data]\ntrain = "rows.jsonl"\n'
WITH_STAGE = MINIMAL + '[[training.stages]]\nname = "one"\ntrain = ["heads"]\nlearning_rate = 2e-3\n'

TRAINING = Path(__file__).resolve().parents[2] / "training"
SHIPPED = [TRAINING / "demo" / "config.toml", *sorted((TRAINING / "configs").glob("*.toml"))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tickets.toml"


def test_config_has_the_path_of_its_file(path: Path) -> None:
    path.write_text(WITH_STAGE)
    config = read_config(path)
    assert config.name == "tickets"
    assert config.data.train == ("rows.jsonl",)
    assert config.training.stages[0].learning_rate == 2e-3
    assert config.source == path


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("name = \n", "", "is not valid TOML.*line 1"),
        ('name = "x"\n', "data", "is missing"),
        (MINIMAL + "[training]\nbatch_sise = 4\n", "training.batch_sise", "did you mean batch_size"),
        (MINIMAL + "[training]\nzzz = 4\n", "training.zzz", "the fields are seed, batch_size"),
        (
            MINIMAL + "[training]\nbatch_size = 0\n",
            "training.batch_size",
            r"^0: .*greater than.*Texts per forward",
        ),
        (MINIMAL + '[[model.heads]]\nname = "a"\n', "model.heads.0.kind", "is missing: softmax .one of"),
        (MINIMAL + '[model]\npooling = "max"\n', "model.pooling", "'max': Input should be 'cls', 'mean'"),
        (WITH_STAGE + "epochs = 0\n", "training.stages.0.epochs", "Number of epochs over the training rows"),
        (MINIMAL + "[training]\nseed = -1\nbatch_size = 0\n", "training.seed", "and 1 more"),
    ],
)
def test_error_names_file_field_and_fix(path: Path, text: str, field: str, reason: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        read_config(path)
    assert caught.value.field == field
    assert re.search(reason, caught.value.reason)
    assert "\n" not in str(caught.value)


def test_missing_file_is_a_config_error(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(path)


def test_overrides_replace_fields_by_dotted_keys(path: Path) -> None:
    path.write_text(WITH_STAGE)
    config = read_config(
        path,
        [
            "training.batch_size=8",
            "training.stages.0.epochs = 5",
            "data.train=['a.jsonl', 'b.jsonl']",
            "model.backbone=./some/folder",
            "name=1a",
        ],
    )
    assert config.training.batch_size == 8
    assert config.training.stages[0].epochs == 5
    assert config.data.train == ("a.jsonl", "b.jsonl")
    assert config.model.backbone == "./some/folder"
    assert config.name == "1a"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batch_size", "is not a valid override"),
        ("training.stages.7.epochs=1", "training.stages.7.epochs: --set refers to a field that does not exist"),
        ("training.stages.last.epochs=1", "refers to a field that does not exist"),
        ("name.first=1", "refers to a field that does not exist"),
        ("training.bach_size=1", "training.bach_size: is not a valid field: did you mean batch_size"),
    ],
)
def test_override_of_a_missing_field_is_rejected(path: Path, override: str, message: str) -> None:
    path.write_text(WITH_STAGE)
    with pytest.raises(ConfigError, match=message):
        read_config(path, [override])


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_config_is_valid(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_DATA", "/data")
    monkeypatch.setenv("POLYHEAD_SPLIT", "/data")
    config = read_config(shipped)
    for split in ("train", "validation", "test"):
        for text in getattr(config.data, split):
            path = config.resolve(f"data.{split}", text)
            assert path.is_file() or path.parent == Path("/data")
