from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from polyhead_training.backbone import find_backbone
from polyhead_training.config import Config
from polyhead_training.data.collation import encode_rows
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import BackboneError, ConfigError, DivergenceError, RunError
from polyhead_training.evaluation.evaluate import Evaluation
from polyhead_training.evaluation.metrics import HeadScore, score
from polyhead_training.loop.loss import Losses, Objective
from polyhead_training.loop.stages import units
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import DEFAULT_HEADS
from polyhead_training.predict import embed, predict
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import build_model, train

from tests.support.tiny_checkpoints import FAMILIES
from tests.support.tiny_training import ignore, metric_lines, write_jsonl

Configure = Callable[..., Config]


def scores_of(evaluation: Evaluation | None, split: str) -> dict[str, HeadScore]:
    assert evaluation is not None
    scores = {name: found.score for name, found in evaluation.splits[split].items()}
    return {name: score for name, score in scores.items() if isinstance(score, HeadScore)}


def weights(config: Config, folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], ...]:
    """Weights of each unit before and after a run of a configuration."""
    torch.manual_seed(config.training.seed)
    fresh = build_model(config, find_backbone(config), read_data(config).heads)
    return tuple({name: unit.state_dict() for name, unit in units(m).items()} for m in (fresh, load_run(folder).model))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_reloads(
    configure: Configure, checkpoints: dict[str, Path], tmp_path: Path, family: str
) -> None:
    config = configure(f"model.backbone={checkpoints[family]}", "training.stages.0.train=['all']")
    evaluation = train(config, tmp_path / "run", max_steps=2, report=ignore)
    run = load_run(tmp_path / "run")
    data, backbone = read_data(config), find_backbone(config)
    rows = encode_rows(data.test, data.heads, backbone.tokenizer, 32, backbone.pad_token_id)
    logits = predict(run.model, rows, 4, Accelerator(cpu=True))
    for column, (head, written) in enumerate(zip(data.heads, run.heads, strict=True)):
        found = scores_of(evaluation, "test")[head.name]
        assert written["temperature"] == found.temperature
        again = score(head.kind, head.labels or (), logits[head.name], rows.labels.arrays()[column])
        assert (again.accuracy, again.confusion) == (found.accuracy, found.confusion)
    before, after = weights(config, tmp_path / "run")
    for name, unit in before.items():
        changed = [key for key, value in unit.items() if not torch.equal(value, after[name][key])]
        assert changed, f"{name} did not train"


def test_frozen_tensors_are_bit_equal_after_a_run_and_unfrozen_ones_are_not(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(
        "training.stages.1.train=['layers:1', 'head:topic']",
        "training.stages.0.train=['head:topic']",
        "training.select=last",
    )
    train(config, tmp_path / "run", report=ignore)
    before, after = weights(config, tmp_path / "run")
    for name in ("embeddings", "layer:1", "pooling", "head:sentiment"):
        assert all(torch.equal(value, after[name][key]) for key, value in before[name].items()), name
    for name in ("layer:2", "head:topic"):
        moved = {key for key, value in before[name].items() if not torch.equal(value, after[name][key])}
        # A key bias adds the same value to all logits of an attention softmax, so it has no gradient.
        assert {key for key in before[name] if "key.bias" not in key} <= moved


def test_training_fits_its_rows(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        # An epoch over 15 copies of the rows is faster than 15 epochs, each with an evaluation and two checkpoints.
        f"data={{train={['train.jsonl'] * 15}, validation='train.jsonl'}}",
        "training.stages=[{name='all', train=['all'], epochs=4, learning_rate=0.003}]",
    )
    scores = scores_of(train(config, tmp_path / "run", report=ignore), "validation")
    assert scores["topic"].accuracy == 1.0
    assert scores["sentiment"].accuracy == 1.0
    assert scores["topic"].majority_baseline == pytest.approx(1 / 6)


def test_same_seed_gives_the_same_weights(configure: Configure, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(configure(), tmp_path / name, max_steps=3, report=ignore)
    train(configure("training.seed=9"), tmp_path / "third", max_steps=3, report=ignore)
    first, second, third = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("first", "second", "third")
    )
    assert first == second
    assert first != third


def test_select_keeps_the_best_or_the_last_weights(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1] * 2)
    monkeypatch.setattr(
        "polyhead_training.train.quick_score", lambda *_: {"accuracy": None, "macro_f1": next(scores), "nll": None}
    )
    overrides = ["training.stages=[{name='all', train=['all'], epochs=3, learning_rate=0.01}]", "data.test=[]"]
    one_head = "model.heads=[{name='topic', kind='softmax', field='label'}]"
    for select in ("best", "last"):
        train(configure(*overrides, one_head, f"training.select={select}"), tmp_path / select, report=ignore)
    kept = {select: (tmp_path / select / "model" / "model.safetensors").read_bytes() for select in ("best", "last")}
    assert kept["best"] != kept["last"]


def test_rows_with_one_label_each_train_both_heads(
    configure: Configure,
    rows: list[dict[str, Any]],
    write_jsonl: Callable[[str, Sequence[object]], Path],
    tmp_path: Path,
) -> None:
    write_jsonl("train.jsonl", [row | {missing: None} for row in rows for missing in ("label", "sentiment")])
    config = configure()
    scores = scores_of(train(config, tmp_path / "run", report=ignore), "validation")
    assert scores["topic"].rows > 0
    assert scores["sentiment"].rows > 0
    assert scores["topic"].rows + scores["sentiment"].rows == len(read_data(config).validation) == 12
    before, after = weights(config, tmp_path / "run")
    for name in ("head:topic", "head:sentiment"):
        assert not [key for key, value in before[name].items() if torch.equal(value, after[name][key])], name


def test_metrics_have_a_line_for_logged_steps_and_epochs(configure: Configure, tmp_path: Path) -> None:
    train(configure("training.stages.0.epochs=3"), tmp_path / "run", report=ignore)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["stage"]) for line in lines if "loss" in line] == [(10, "first"), (20, "second")]
    assert [(line["step"], line["epoch"]) for line in lines if "epoch" in line] == [(5, 1), (10, 2), (15, 3), (20, 1)]
    # The rate of the last step itself, not the 0 that follows; 2 of the first stage's 15 steps are its warmup.
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx([0.01 * 6 / 13, 0.001 / 5])
    assert set(lines[-1]["validation"]) == {"topic", "sentiment"}
    assert set(lines[-1]["validation"]["topic"]) == {"accuracy", "macro_f1", "nll"}
    # Distillation applies only in stages that train parts of the embedding.
    assert ["distillation" in line for line in lines if "loss" in line] == [False, True]


def test_run_contains_evaluation_data_report_and_card(
    configure: Configure, write_jsonl: Callable[[str, Sequence[object]], Path], tmp_path: Path
) -> None:
    texts = ["The parcel is late.", "The parcel is very late.", "Lovely soup!", "I cannot log in."]
    pairs = [{"a": texts[0], "b": text, "score": 5 - index} for index, text in enumerate(texts)]
    write_jsonl("pairs.jsonl", pairs)
    evaluation = train(configure("data.similarity=pairs.jsonl"), tmp_path / "run", max_steps=7, report=ignore)
    assert evaluation is not None
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(evaluation.to_json()))
    assert list(written) == ["validation", "test", "similarity"]
    assert written["test"]["topic"]["rows"] == 6
    assert written["similarity"]["pairs"] == 4
    assert json.loads((tmp_path / "run" / "data.json").read_text())["splits"]["test"]["rows"] == 6
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "README.md").read_text().startswith("---")
    assert not (tmp_path / "run.in_progress").exists()


def test_max_steps_ends_the_run_early(configure: Configure, tmp_path: Path) -> None:
    messages: list[str] = []
    train(configure(), tmp_path / "run", max_steps=7, report=messages.append)
    assert [line for line in messages if line.startswith("stage")] == [
        "stage first: 5 steps, peak learning rate 0.01",
        "stage second: 2 steps, peak learning rate 0.001",
    ]


def test_max_steps_may_end_before_the_last_stage(configure: Configure, tmp_path: Path) -> None:
    messages: list[str] = []
    train(configure(), tmp_path / "run", max_steps=2, report=messages.append)
    assert [line for line in messages if line.startswith("stage")] == ["stage first: 2 steps, peak learning rate 0.01"]


def test_run_without_stages_leaves_the_model_unchanged(configure: Configure, tmp_path: Path) -> None:
    assert train(configure("training.stages=[]"), tmp_path / "run", report=ignore)
    before, after = weights(configure(), tmp_path / "run")
    assert all(torch.equal(value, after[name][key]) for name, unit in before.items() for key, value in unit.items())
    assert (tmp_path / "run" / "report.html").exists()


def test_distillation_keeps_the_embedding_near(configure: Configure, tmp_path: Path) -> None:
    stage = "training.stages=[{name='all', train=['all'], epochs=3, learning_rate=0.01}]"
    moved = {}
    for weight in (0.0, 10.0):
        config = configure(stage, f"training.distillation={weight}", "training.select=last")
        train(config, tmp_path / str(weight), report=ignore)
        data, backbone = read_data(config), find_backbone(config)
        rows = encode_rows(data.test, data.heads, backbone.tokenizer, 32, backbone.pad_token_id)
        fresh, trained = build_model(config, backbone, data.heads), load_run(tmp_path / str(weight)).model
        before, after = (embed(model, rows, 4, Accelerator(cpu=True)) for model in (fresh, trained))
        moved[weight] = float((1 - (before * after).sum(axis=1)).mean())
    assert moved[10.0] < 0.4 * moved[0.0]


def test_configured_trackers_receive_the_metrics(configure: Configure, tmp_path: Path) -> None:
    train(configure("training.trackers=['tensorboard']"), tmp_path / "run", report=ignore)
    assert list((tmp_path / "run" / "trackers").rglob("events.out.tfevents.*"))
    # The trackers' folder belongs to the run, so the run can be replaced.
    train(configure(), tmp_path / "run", max_steps=1, report=ignore)
    assert not (tmp_path / "run" / "trackers").exists()


def test_head_without_labels_in_a_step_has_no_loss_there(
    configure: Configure, config_file: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Rows of 9 steps have a topic alone, and a step of 10 has a sentiment alone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    topics = [{**row, "sentiment": None} for row in rows] * 2
    write_jsonl(config_file.with_name("train.jsonl"), [*topics, *({**row, "label": None} for row in rows[:2])])
    config = configure(
        "training.trackers=['tensorboard']",
        "data={train='train.jsonl', validation='test.jsonl'}",
        "training.stages=[{name='heads', train=['heads'], epochs=4, learning_rate=0.01}]",
        "training.batch_size=2",
    )
    train(config, tmp_path / "run", report=ignore)
    losses = [line["losses"] for line in metric_lines(tmp_path / "run") if "loss" in line]
    assert all(isinstance(found, dict) for found in losses)
    expected = {"topic": 0, "sentiment": 0}
    for found in losses:
        for head, loss in dict(found).items():  # type: ignore[call-overload]
            assert loss != 0.0
            expected[head] += loss is not None
    assert 0 < expected["sentiment"] + expected["topic"] < 2 * len(losses)
    (folder,) = {path.parent for path in (tmp_path / "run" / "trackers").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    assert {
        head: len(events.Scalars(f"losses/{head}")) if f"losses/{head}" in tags else 0 for head in expected
    } == expected


def test_unknown_tracker_is_rejected(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.trackers: 'tensorbord' is not an installed tracker"):
        train(configure("training.trackers=['tensorbord']"), tmp_path / "run", report=ignore)


def test_class_weight_of_an_unknown_label_is_rejected(configure: Configure, tmp_path: Path) -> None:
    head = "{name='topic', kind='softmax', field='label', class_weights={delivry=2.0}}"
    with pytest.raises(ConfigError, match=r"model\.heads\.0\.class_weights: no training row has the label 'delivry'"):
        train(configure(f"model.heads=[{head}]"), tmp_path / "run", report=ignore)


def test_loss_that_is_not_finite_stops_the_run(configure: Configure, tmp_path: Path) -> None:
    overrides = ["training.stages.0.learning_rate=1e30", "training.stages.0.train=['all']", "training.warmup=0"]
    with pytest.raises(DivergenceError, match=r"stage 'first', step [23]: .*lower the stage's learning_rate"):
        train(configure(*overrides), tmp_path / "runs" / "run", report=ignore)
    assert not (tmp_path / "runs" / "run").exists()


def test_rows_without_a_finite_loss_are_named(
    configure: Configure, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging_forward(model: PolyheadModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        outputs = original(model, input_ids, attention_mask)
        for row in range(len(input_ids)):
            if input_ids[row].tolist()[: len(marked_ids)] == marked_ids:
                outputs.logits["topic"].data[row] = float("nan")
        return outputs

    config = configure()
    marked_ids = find_backbone(config).tokenizer.encode(str(rows[1]["text"])).ids[:6]
    original = PolyheadModel.forward
    monkeypatch.setattr(PolyheadModel, "forward", diverging_forward)
    with pytest.raises(DivergenceError, match="not finite") as caught:
        train(config, tmp_path / "run", report=ignore)
    assert len(caught.value.rows) == 1
    assert "train.jsonl:" in caught.value.rows[0]
    assert "Lovely soup" in caught.value.rows[0]


def test_gradient_that_is_not_finite_stops_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite_gradient(*arguments: Any) -> Losses:
        """Returns the same finite loss with a gradient that is NaN."""
        found: Losses = original(*arguments)
        return found._replace(total=found.total + (found.total * 0).sqrt())

    original = Objective.forward
    monkeypatch.setattr(Objective, "forward", infinite_gradient)
    with pytest.raises(DivergenceError, match="stage 'first', step 1: the loss or its gradient is not finite"):
        train(configure(), tmp_path / "run", report=ignore)
    assert not (tmp_path / "run").exists()


def test_stage_releases_the_optimizers_of_earlier_stages(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int] = []

    def prepare(self: Accelerator, *parts: Any) -> Any:
        known.append(len(self._optimizers))
        return original(self, *parts)

    original = Accelerator.prepare
    monkeypatch.setattr(Accelerator, "prepare", prepare)
    train(configure(), tmp_path / "run", report=ignore)
    assert known == [0, 0]


def test_destination_is_checked_before_the_data_is_read(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists and is not a run directory"):
        train(configure("data.train=nowhere.jsonl"), tmp_path / "mine", report=ignore)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_rejected(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.mixed_precision: 'fp16' requires a GPU"):
        train(configure("training.mixed_precision=fp16"), tmp_path / "run", report=ignore)


@pytest.mark.usefixtures("new_process_state")
def test_runs_of_one_process_may_differ_in_precision(configure: Configure, tmp_path: Path) -> None:
    """As the trials of a sweep do."""
    for precision in ("no", "bf16", "no"):
        config = configure(f"training.mixed_precision={precision}")
        evaluation = train(config, tmp_path / precision, max_steps=1, policy="restart", report=ignore)
        assert evaluation is not None


def test_damaged_weights_are_a_backbone_error(
    configure: Configure, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoints["bert"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[: 500 if path.suffix == ".safetensors" else None])
    with pytest.raises(BackboneError, match="its weights cannot be read"):
        train(configure("model.backbone=copy"), tmp_path / "run", report=ignore)


def test_run_has_the_promise_of_each_head_that_abstains(configure: Configure, tmp_path: Path) -> None:
    config = configure("training.heads.abstain={accuracy=0.9}")
    lines: list[str] = []
    evaluation = train(config, tmp_path / "run", max_steps=2, report=lines.append)
    assert evaluation is not None
    # A handful of rows keeps no promise, which ends nothing.
    assert [line for line in lines if "does not abstain: no confidence keeps an accuracy of 0.9" in line]
    for head in load_run(tmp_path / "run").heads:
        assert (head["abstention"]["accuracy"], head["abstention"]["threshold"]) == (0.9, None)
        assert head["abstention"]["rows"] == evaluation.splits["validation"][head["name"]].score.rows


def test_run_has_the_prediction_sets_of_softmax_heads(configure: Configure, tmp_path: Path) -> None:
    lines: list[str] = []
    config = configure("training.heads.prediction_sets={coverage=0.6}")
    evaluation = train(config, tmp_path / "run", max_steps=2, report=lines.append)
    assert evaluation is not None
    topic, sentiment = load_run(tmp_path / "run").heads
    assert topic["prediction_sets"]["coverage"] == 0.6
    assert 0 < topic["prediction_sets"]["threshold"] < 1
    assert "prediction_sets" not in sentiment
    assert "head 'topic': prediction sets hold labels from a probability of" in "\n".join(lines)
    score = evaluation.splits["test"]["topic"].prediction_sets
    assert score is not None
    assert score.size is not None
    assert "Mean number of labels" in (tmp_path / "run/report.html").read_text()


@pytest.fixture
def many_texts(configure: Configure, tmp_path: Path) -> Configure:
    """Reads the small configuration with more texts, enough for a novelty."""
    rows = [
        {"text": f"{word} {number}", "label": "ab"[number % 2], "sentiment": number % 2}
        for number in range(70)
        for word in ("late", "kind")
    ]
    path = write_jsonl(tmp_path / "more.jsonl", rows)
    overrides = (f"data.train={path}", "data.test=[]", "data.validation_fraction=0.4")
    return lambda *more: configure(*overrides, *more)


def test_run_has_the_novelty_and_the_reference_of_its_texts(many_texts: Configure, tmp_path: Path) -> None:
    lines: list[str] = []
    train(many_texts(), tmp_path / "run", max_steps=2, report=lines.append)
    assert not any("novelty" in line for line in lines)
    run = load_run(tmp_path / "run")
    novelty, reference = run.content["novelty"], run.content["reference"]
    matrix = np.load(tmp_path / "run/novelty.npy", allow_pickle=False)
    assert matrix.shape == (novelty["centroids"] + len(novelty["variances"]), run.model.config.embedding_size())
    assert 50 <= reference["rows"] <= 60
    assert sum(reference["heads"]["topic"]["answers"]) == pytest.approx(1)
    assert len(reference["embedding_mean"]) == matrix.shape[1]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["the model has no novelty, which requires 50 training and 50 validation texts"]),
        (("data.validation_fraction=0",), ["the model has neither novelty nor a reference for drift"]),
        (("training.novelty=false",), []),
    ],
)
def test_run_tells_what_it_has_too_few_texts_for(
    configure: Configure, tmp_path: Path, overrides: tuple[str, ...], expected: list[str]
) -> None:
    lines: list[str] = []
    train(configure(*overrides), tmp_path / "run", max_steps=1, report=lines.append)
    found = [line for line in lines if "novelty" in line]
    assert len(found) == len(expected)
    assert all(one in line for one, line in zip(expected, found, strict=True))


def test_run_without_novelty_has_no_matrix(many_texts: Configure, tmp_path: Path) -> None:
    train(many_texts("training.novelty=false"), tmp_path / "run", max_steps=1, report=ignore)
    assert load_run(tmp_path / "run").content["novelty"] is None
    assert not (tmp_path / "run/novelty.npy").exists()


def test_run_tells_what_collected_rows_bought(
    configure: Configure, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: Callable[..., Path]
) -> None:
    prediction = {"label": rows[0]["label"], "confidence": 0.5}
    meta = {"reasons": ["random"], "model": "m-1", "predictions": {DEFAULT_HEADS[0].name: prediction}}
    collected = [{**row, "text": f"{row['text']} {number}", "_collected": meta} for number, row in enumerate(rows)]
    write_jsonl("collected.jsonl", [*collected, {**collected[0], "label": None, "sentiment": None}])
    lines: list[str] = []
    config = configure('data.train=["train.jsonl", "collected.jsonl"]', "data.collected_holdout=0.5")
    train(config, tmp_path / "run", report=lines.append)
    found = json.loads((tmp_path / "run/collected.json").read_text())
    assert (found["labelled"], found["unlabelled"], found["random"]) == (24, 1, 24)
    assert 0 < found["held_out"] < 24
    (name,) = (name for name, one in found["heads"].items() if one["served"]["rows"])
    scored = found["heads"][name]
    assert scored["served"]["accuracy"] == pytest.approx(4 / 24)
    assert scored["held_out"]["trained"]["rows"] == found["held_out"]
    assert f"collected: head {name!r} of the served model is right in 16.7%" in "\n".join(lines)
    page = (tmp_path / "run/report.html").read_text()
    assert "<h2>Collected texts</h2>" in page
    assert "16.7\N{NO-BREAK SPACE}%" in page
    # The held-out rows belong to the identity of the run.
    assert train(config, tmp_path / "run", policy="resume", report=ignore) is None
    load_run(tmp_path / "run")
