from __future__ import annotations

import copy
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
    (tmp_path / "rows.jsonl").touch()
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
        ("name = \n", "", "is not valid TOML: Invalid value .column 8"),
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
        ('model = "small"\n' + MINIMAL, "model", "'small'"),
        (WITH_STAGE + "epochs = 0\n", "training.stages.0.epochs", "Number of epochs over the training rows"),
    ],
)
def test_error_names_file_field_and_fix(path: Path, text: str, field: str, reason: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        read_config(path)
    assert caught.value.field == field
    assert re.search(reason, caught.value.reason)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_listed_in_the_order_of_the_file(path: Path) -> None:
    path.write_text(
        """\
nam = "x"
batch_size = 3

[model]
pooling = "maen"
[[model.heads]]
name = "topic"
kind = "softmax"
threshold = 0.3
class_weights = {ap = 2.0}
labels = ["app", "billing"]
[[model.heads]]
name = "mood"
kind = "sigmoid"
labels = ["a"]

[data]
train = ["nowhere.jsonl", "row.jsonl", "${NOPE}/x.csv"]
validation = "v.csv"

[training]
loss_weights = {tpic = 3.0}
batch_size = 0
"""
    )
    with pytest.raises(ConfigError) as caught:
        read_config(path, ["x", "training.seed=-1"])
    found = [line.removeprefix(str(path)) for line in str(caught.value).splitlines()]
    expected = [
        ": --set 'x' is not a valid override",
        ": name: is missing: Name of the model",
        ": training.seed: -1: Input should be greater",
        ":1: nam: is not a valid field: did you mean name?",
        ":2: batch_size: is not a valid field: did you mean training.batch_size?",
        ":5: model.pooling: 'maen': Input should be 'cls', 'mean', 'cls_mean' or 'embedding'; did you mean 'mean'? (",
        ":6: model.heads.0: threshold 0.3",
        ":6: model.heads.0: class_weights has the label 'ap', but labels has only app, billing; did you mean 'app'?",
        ":12: model.heads.1: kind 'sigmoid' and labels ('a',)",
        ":18: data.train: the file",
        ":18: data.train: the file",
        ":18: data.train: '${NOPE}/x.csv' requires the environment variable NOPE",
        ":19: data.validation: the file",
        ":23: training.batch_size: 0",
    ]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
    assert found[10].endswith("did you mean 'rows.jsonl'?")


def test_mistakes_between_sections_are_listed_beside_those_within(path: Path) -> None:
    path.write_text(MINIMAL + '[training]\nbatch_size = 0\nloss_weights = {tpic = 3.0}\n[model]\nmax_tokens = "many"\n')
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{path}:5: training.batch_size")
    assert second == (
        f"{path}:6: training.loss_weights.tpic refers to head 'tpic', but model.heads has only sentiment, topic; "
        "did you mean 'topic'?"
    )
    assert third.startswith(f"{path}:8: model.max_tokens: 'many'")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_windows_editors_are_read(path: Path, encoding: str, end: str) -> None:
    path.write_bytes(MINIMAL.replace("\n", end).encode(encoding))
    assert read_config(path).name == "tickets"


def test_file_in_another_encoding_is_an_error_with_its_line(path: Path) -> None:
    path.write_bytes(MINIMAL.encode() + b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"tickets\.toml:4: is not UTF-8: save the file as UTF-8"):
        read_config(path)


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


@pytest.mark.parametrize("recipe", ["standard", "few-shot"])
def test_override_of_a_default_stage_keeps_everything_else(path: Path, recipe: str) -> None:
    path.write_text(MINIMAL)
    expected = read_config(path, [f"training.recipe={recipe}"]).model_dump()
    defaults = copy.deepcopy(expected)
    # The index refers to the stages of the recipe, also of one that a later override sets.
    config = read_config(path, ["training.stages.0.epochs=7", f"training.recipe={recipe}"])
    expected["training"]["stages"][0]["epochs"] = 7
    assert config.model_dump() == expected
    assert read_config(path, [f"training.recipe={recipe}"]).model_dump() == defaults


def test_override_of_a_default_head_keeps_everything_else(path: Path) -> None:
    path.write_text(MINIMAL)
    expected = read_config(path).model_dump()
    expected["model"]["heads"][1]["threshold"] = "best"
    assert read_config(path, ["model.heads.1.threshold=best"]).model_dump() == expected


def test_override_that_replaces_a_default_stage(path: Path) -> None:
    path.write_text(MINIMAL)
    config = read_config(path, ["training.stages.1={name='all', train=['all'], learning_rate=1e-5}"])
    assert [stage.name for stage in config.training.stages] == ["heads", "all"]
    with pytest.raises(ConfigError, match=r"training\.stages\.2\.epochs: --set refers to a field that does not exist"):
        read_config(path, ["training.stages.2.epochs=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batch_size", "is not a valid override"),
        ("training.stages.7.epochs=1", "training.stages.7.epochs: --set refers to a field that does not exist"),
        ("training.stages.last.epochs=1", "refers to a field that does not exist"),
        ("name.first=1", "refers to a field that does not exist"),
        ("training.bach_size=1", "training.bach_size: is not a valid field: did you mean batch_size"),
        (
            "training.heads.prediction_sets.cover=0.9",
            "prediction_sets.cover: is not a valid field: did you mean coverage",
        ),
        (
            "model.heads=[{name='topic', kind='softmax', prediction_sets={cover=0.9}}]",
            "model.heads.0.prediction_sets.cover: is not a valid field: did you mean coverage",
        ),
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
