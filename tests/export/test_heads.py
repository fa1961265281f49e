"""Bundles with heads of every kind: outputs, gate, verification."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
import torch
from polyhead_bundle import Bundle, Head
from polyhead_export import gate, plausibility
from polyhead_export.errors import AccuracyError, ContentError
from polyhead_export.eval_data import EvalData, predict, predictions, read_eval_data
from polyhead_export.export import export, read_heads
from polyhead_export.fingerprints import compute_fingerprints
from polyhead_export.head_checks import compare_abstention, compare_prediction_sets, compare_predictions, compare_scores
from polyhead_export.novelty import read_novelty, read_reference
from polyhead_export.runners import torch_runner
from polyhead_export.settings import Settings
from polyhead_export.verify import require_described, verify
from polyhead_export.verify_without_torch import verify_without_torch
from polyhead_training.config import Config, DataConfig
from polyhead_training.errors import RunError
from polyhead_training.evaluation.novelty import fit_novelty
from polyhead_training.evaluation.probabilities import probabilities
from polyhead_training.evaluation.selective import confidence_of
from polyhead_training.model import PolyheadModel
from polyhead_training.model_config import ModelConfig
from polyhead_training.runs.run_directory import Run, load_run, write_run

from tests.support import every_kind
from tests.support.small_bundle import ABSTENTION
from tests.support.tiny_model import ignore, make_model, make_tokenizer, shared_graphs

LIMITS = Settings().limits_of("fp32")
SPREAD = 250.0
# A model with random weights loses accuracy in int8, which is not tested here.
_UNLIMITED = dict.fromkeys(("label_disagreement", "accuracy_drop", "macro_f1_drop", "calibration", "r2_drop"), 1.0)


def _model() -> PolyheadModel:
    model = make_model(heads=[head.layer_settings() for head in every_kind.HEADS])
    # With a mean as large as the file's, the small differences of random weights would be lost in rounding.
    model.standardize({"price": (1e3, SPREAD)})
    model.fold()
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose multilabel head has a threshold of its own for each label."""
    folder = tmp_path_factory.mktemp("runs") / "every"
    folder.mkdir()
    config = Config(name="every", model=ModelConfig(heads=every_kind.HEADS), data=DataConfig(train=("a.jsonl",)))
    calibration: dict[str, Any] = {"temperatures": {"tags": 1.5, "stars": 0.8}, "thresholds": {"tags": [0.4, 0.5, 0.6]}}
    write_run(folder, config, every_kind.HEADS, _model(), make_tokenizer(), **calibration)
    return load_run(folder)


@pytest.fixture(scope="module")
def eval_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with answers of every kind; the last has none."""
    rows = [
        {
            "text": f"row {'word ' * n}",
            "topic": "app",
            "tags": (["late"], ["rude", "broken"], [])[n % 3],
            "stars": 1 + n % 4,
            "price": 1000 + 100 * n,
        }
        for n in range(30)
    ]
    path = tmp_path_factory.mktemp("eval") / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "none"}]), "utf-8")
    return path


@pytest.fixture(scope="module")
def found(run: Run, eval_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The exported bundle, with fp32 and int8."""
    settings = Settings(limits={"int8": {**_UNLIMITED, "value_difference": 9.0, "value_difference_mean": 9.0}})
    settings = settings.with_overrides((), [eval_file])
    with shared_graphs():
        return export(run.path, tmp_path_factory.mktemp("bundles") / "b", ignore, settings)


def test_manifest_describes_every_head(found: Bundle) -> None:
    outputs = {tensor.name: tensor.dims[1] for tensor in found.manifest.outputs}
    assert outputs == {
        "sentence_embedding": 32,
        "logits": 3,
        "sentiment_logits": 1,
        "tags_logits": 3,
        "stars_logits": 3,
        "price_logits": 1,
    }
    tags, stars, price = found.manifest.heads[2:]
    assert (tags.thresholds, tags.temperature) == ((0.4, 0.5, 0.6), 1.5)
    assert (stars.labels, stars.temperature) == (("1", "2", "3", "4"), 0.8)
    assert (price.labels, price.spread, price.temperature) == ((), SPREAD, 1.0)
    assert set(found.manifest.variants) == {"fp32", "int8"}


def test_gate_checks_each_kind(found: Bundle) -> None:
    checks = {check.name: check for check in found.manifest.variants["int8"].gate}
    for name in (
        "label_disagreement",
        "label_disagreement.tags",
        "value_difference.price",
        "value_difference_mean.price",
        "micro_f1_drop.tags",
        "macro_f1_drop.tags",
        "calibration.tags",
        "accuracy_drop.stars",
        "qwk_drop.stars",
        "r2_drop.price",
        "majority_gap.tags",
        "constant_gap.stars",
        "constant_gap.price",
    ):
        assert name in checks
    assert "label_share.price" not in checks
    assert "calibration.price" not in checks


def test_bundle_verifies_with_and_without_torch(found: Bundle) -> None:
    settings = Settings(limits={"int8": {**_UNLIMITED, "value_difference": 9.0, "value_difference_mean": 9.0}})
    verify(found.path, ignore, settings)
    lines: list[str] = []
    verify_without_torch(found.path, lines.append)
    assert sum("golden texts, off by at most" in line for line in lines) == 2


def test_golden_outputs_are_compared_in_units_of_the_spread(found: Bundle, tmp_path: Path) -> None:
    def moved(by: float) -> Bundle:
        golden = found.manifest.variants["fp32"].golden
        first = dataclasses.replace(
            golden[0], logits={**golden[0].logits, "price": (golden[0].logits["price"][0] + by,)}
        )
        variant = dataclasses.replace(found.manifest.variants["fp32"], golden=(first, *golden[1:]))
        manifest = dataclasses.replace(found.manifest, variants={"fp32": variant})
        files = {name: found.path / name for name in found.manifest.files if "int8" not in name}
        return bundle.write(tmp_path / f"moved{by}", manifest, files)

    tolerance = found.manifest.variants["fp32"].golden_tolerance
    verify_without_torch(moved(0.5 * tolerance * SPREAD).path, ignore)
    with pytest.raises(ContentError, match="does not reproduce the golden outputs"):
        verify_without_torch(moved(2 * tolerance * SPREAD).path, ignore)


def test_changed_spread_is_detected(found: Bundle, run: Run) -> None:
    heads = (*found.manifest.heads[:-1], dataclasses.replace(found.manifest.heads[-1], spread=1e9))
    changed = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, heads=heads))
    require_described(found, run.model.config)
    with pytest.raises(ContentError, match=r"heads\.spread"):
        require_described(changed, run.model.config)


@pytest.fixture(scope="module")
def evaluated(run: Run, eval_file: Path) -> tuple[EvalData, tuple[Head, ...]]:
    heads = read_heads(run)
    return read_eval_data(run, heads, [eval_file]), heads


def test_evaluation_data_has_answers_of_every_kind(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    assert [data.labelled_rows(column) for column in range(len(heads))] == [30, 0, 30, 30, 30]
    assert data.targets[2][:3].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert data.targets[3][:4].tolist() == [0, 1, 2, 3]
    assert data.targets[4][1] == 1100.0


def _with(data: EvalData, output: str, values: Any) -> dict[str, Any]:
    return {**data.reference, output: np.asarray(values, np.float32)}


def test_disagreement_of_a_multilabel_head_is_the_share_of_its_decisions(
    evaluated: tuple[EvalData, tuple[Head, ...]],
) -> None:
    data, heads = evaluated
    logits = np.where(predictions(data.reference, heads[2]) == 1, 9.0, -9.0)
    logits[0, 0] *= -1
    checks = {
        c.name: c.value
        for c in compare_predictions([(_with(data, "tags_logits", logits), data.reference)], heads, LIMITS)
    }
    assert checks["label_disagreement.tags"] == pytest.approx(1 / (31 * 3))
    assert checks["label_disagreement"] == 0


def test_disagreement_of_an_ordinal_head_is_the_share_of_its_labels(
    evaluated: tuple[EvalData, tuple[Head, ...]],
) -> None:
    data, heads = evaluated
    logits = np.full((31, 3), 9.0)
    ours = _with(data, "stars_logits", logits)
    checks = {c.name: c.value for c in compare_predictions([(ours, data.reference)], heads, LIMITS)}
    differs = (predictions(data.reference, heads[3]) != 3).sum()
    assert differs > 0
    # Of the three heads that predict one label.
    assert checks["label_disagreement"] == pytest.approx(differs / (3 * 31))


def test_difference_of_a_regression_head_is_in_units_of_its_spread(
    evaluated: tuple[EvalData, tuple[Head, ...]],
) -> None:
    data, heads = evaluated
    values = data.reference["price_logits"].copy()
    values[4] += SPREAD / 2
    ours = _with(data, "price_logits", values)
    checks = {c.name: c.value for c in compare_predictions([(ours, data.reference)], heads, LIMITS)}
    assert checks["value_difference.price"] == pytest.approx(0.5, rel=1e-3)
    assert checks["value_difference_mean.price"] == pytest.approx(0.5 / 31, rel=1e-3)


def test_loss_of_quality_is_measured_for_each_kind(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    perfect = {
        **data.reference,
        "tags_logits": np.where(data.targets[2] == 1, 9.0, -9.0),
        "stars_logits": 9.0 * (2 * (data.targets[3][:, None] > np.arange(3)) - 1),
        "price_logits": data.targets[4][:, None],
    }
    better = dataclasses.replace(data, reference=perfect)
    drops = {c.name: c.value for c in compare_scores(better, data.reference, heads, LIMITS)}
    for name in ("micro_f1_drop.tags", "qwk_drop.stars", "r2_drop.price"):
        assert drops[name] > 0.1
    gains = {c.name: c.value for c in compare_scores(data, perfect, heads, LIMITS)}
    assert {gains[name] for name in gains if "_drop." in name} == {0.0}


@pytest.mark.parametrize(("variant", "allowed"), [("int8", 1), ("fp32", 0)])
def test_one_answer_alone_exceeds_no_limit_above_0(
    evaluated: tuple[EvalData, tuple[Head, ...]], variant: Any, allowed: int
) -> None:
    data, heads = evaluated
    limits = Settings().limits_of(variant)
    true = {
        "tags_logits": np.where(data.targets[2] == 1, 9.0, -9.0),
        "stars_logits": 9.0 * (2 * (data.targets[3][:, None] > np.arange(3)) - 1),
    }
    perfect = dataclasses.replace(data, reference={**data.reference, **true})
    for wrong in range(4):
        ours = {name: values.copy() for name, values in perfect.reference.items()}
        # The first label of every third row is true; the first stars are the lowest.
        ours["tags_logits"][: 3 * wrong : 3, 0] = -9.0
        ours["stars_logits"][: 4 * wrong : 4] = 9.0
        checks = {check.name: check for check in compare_scores(perfect, ours, heads, limits)}
        # Five texts only, with 15 decisions of either kind, of which the limit is a share of 5 %.
        first = [{name: values[::4][:5] for name, values in one.items()} for one in (ours, perfect.reference)]
        checks |= {check.name: check for check in compare_predictions([(first[0], first[1])], heads, limits)}
        for name in ("accuracy_drop.stars", "micro_f1_drop.tags", "label_disagreement"):
            assert (checks[name].value > 0) == (wrong > 0), name
            assert checks[name].passed == (wrong <= allowed), name


@pytest.mark.parametrize("predicted", [3, 100], ids=["few labels", "all labels"])
def test_one_label_less_exceeds_no_limit_of_micro_f1(
    evaluated: tuple[EvalData, tuple[Head, ...]], predicted: int
) -> None:
    data, heads = evaluated
    true = data.targets[2] == 1  # (rows, labels)
    # The trained model predicts the labels of its first rows alone, or every label of every row.
    shown = true & (np.arange(len(true)) < predicted)[:, None] if predicted < len(true) else np.full(true.shape, True)
    reference = {**data.reference, "tags_logits": np.where(shown, 9.0, -9.0)}
    rows, labels = np.nonzero(shown & true)
    for wrong in range(3):
        ours = {name: values.copy() for name, values in reference.items()}
        ours["tags_logits"][rows[:wrong], labels[:wrong]] = -9.0
        checks = compare_scores(
            dataclasses.replace(data, reference=reference), ours, heads, Settings().limits_of("int8")
        )
        (check,) = [check for check in checks if check.name == "micro_f1_drop.tags"]
        assert check.passed == (wrong <= 1)


def test_constant_predictions_are_implausible(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    constant = {
        **data.reference,
        "stars_logits": np.full((31, 3), -9.0),
        "price_logits": np.full((31, 1), 9000.0),
        "tags_logits": np.full((31, 3), -9.0),
    }
    checks = list(plausibility.measure([constant], heads, LIMITS, dataclasses.replace(data, reference=constant)))
    found = plausibility.warnings(checks)
    for text in (
        "head 'tags' predicts the same label for every row of the evaluation data",
        "head 'stars' predicts the same label for every row of the evaluation data",
        "head 'price' is no better on the evaluation data than a constant prediction",
    ):
        assert any(text in line for line in found)


def test_wrong_value_of_a_regression_head_fails_the_gate(run: Run, found: Bundle) -> None:
    other = _model()
    with torch.no_grad():
        other.get_parameter("heads.price.layers.4.bias").add_(SPREAD)
    ids = [[2, 9, 10, 3]]
    checks = gate.measure(found.path / "model.onnx", other, ids, read_heads(run))
    values = {check.name: check.value for check in checks}
    assert values["value_difference.price"] == pytest.approx(1.0, rel=1e-3)
    failed = {check.name for check in checks if not check.passed}
    assert failed == {"difference.price_logits", "value_difference.price", "value_difference_mean.price"}
    assert predict(torch_runner(other), ids, 0)["price_logits"].shape == (1, 1)


def _abstaining(head: Head, threshold: float | None) -> Head:
    return dataclasses.replace(head, abstention=dataclasses.replace(ABSTENTION, threshold=threshold))


def test_promise_of_a_run_is_that_of_the_bundle(run: Run) -> None:
    promise = {**dataclasses.asdict(ABSTENTION), "curve": [{"threshold": 0.75, "coverage": 0.6, "accuracy": 0.97}]}
    described = [{**head, "abstention": promise} if head["name"] == "stars" else head for head in run.heads]
    changed = dataclasses.replace(run, content={**run.content, "heads": described})
    heads = {head.name: head for head in read_heads(changed)}
    assert heads["stars"].abstention == dataclasses.replace(ABSTENTION, curve=ABSTENTION.curve[:1])
    assert heads["tags"].abstention is None
    del described[[head["name"] for head in described].index("stars")]["abstention"]["rows"]
    with pytest.raises(RunError, match="abstention or prediction_sets are damaged"):
        read_heads(changed)


def test_abstaining_is_compared_with_the_trained_model(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    index = [head.name for head in heads].index("stars")
    confidence = np.sort(probabilities("ordinal", data.reference[heads[index].output], heads[index].temperature).max(1))
    stars = _abstaining(heads[index], float(confidence[len(confidence) // 2]))
    changed = {**data.reference, stars.output: data.reference[stars.output] * 3}
    every = [*heads[:index], stars, *heads[index + 1 :]]
    same = {check.name: check.value for check in compare_abstention(data, data.reference, every, LIMITS)}
    assert same.keys() == {f"{name}.stars" for name in ("coverage_difference", "answered_accuracy_drop", "promise_gap")}
    assert same["coverage_difference.stars"] == same["answered_accuracy_drop.stars"] == 0
    found = {check.name: check for check in compare_abstention(data, changed, every, LIMITS)}
    # Three times the logits are more confident answers, so that more texts are answered.
    assert found["coverage_difference.stars"].value > 0.1
    assert not found["coverage_difference.stars"].passed
    never = [*heads[:index], _abstaining(stars, None), *heads[index + 1 :]]
    assert list(compare_abstention(data, changed, never, LIMITS)) == []


def test_rounding_at_the_threshold_is_no_difference(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    index = [head.name for head in heads].index("topic")
    logits = data.reference[heads[index].output]
    # A little more of the best label, in every row: its confidence rises however close the labels are.
    rounded = logits + np.float32(1e-5) * (logits == logits.max(axis=1, keepdims=True))
    before, after = (confidence_of("softmax", one, heads[index].temperature) for one in (logits, rounded))
    row = int(np.argmax((after - before)[:-1]))  # the last one has no label
    threshold = np.nextafter(before[row], np.float32(1))
    assert before[row] < threshold <= after[row]
    every = [*heads[:index], _abstaining(heads[index], float(threshold)), *heads[index + 1 :]]
    checks = compare_abstention(data, {**data.reference, heads[index].output: rounded}, every, LIMITS)
    assert [check.name for check in checks if not check.passed] == []


def test_answers_that_break_the_promise_fail_the_gate_of_int8(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    index = [head.name for head in heads].index("stars")
    stars = _abstaining(heads[index], 0.0)
    limits = Settings().limits_of("int8")
    wrong = {
        **data.reference,
        stars.output: np.full_like(data.reference[stars.output], -9.0),
    }  # always the lowest label
    every = [*heads[:index], stars, *heads[index + 1 :]]
    found = {check.name: check for check in compare_abstention(data, wrong, every, limits)}
    assert found["promise_gap.stars"].value > 0.3
    with pytest.raises(AccuracyError, match=r"promise_gap\.stars"):
        gate.require_passed("int8", [found["promise_gap.stars"]])


def _with_sets(head: Head, threshold: float) -> Head:
    return dataclasses.replace(head, prediction_sets=bundle.PredictionSets(0.9, threshold, 100))


def test_prediction_sets_of_a_run_are_those_of_the_bundle(run: Run) -> None:
    sets: dict[str, object] = {"coverage": 0.9, "threshold": 0.05, "rows": 100}
    described = [{**head, "prediction_sets": sets} if head["name"] == "topic" else head for head in run.heads]
    changed = dataclasses.replace(run, content={**run.content, "heads": described})
    found = {head.name: head.prediction_sets for head in read_heads(changed)}
    assert found["topic"] == bundle.PredictionSets(0.9, 0.05, 100)
    assert found["tags"] is None
    # A run with too few validation rows has no threshold, so the bundle has no sets.
    sets["threshold"] = None
    assert {head.prediction_sets for head in read_heads(changed)} == {None}


def test_graph_that_misses_the_coverage_fails_the_gate_of_int8(evaluated: tuple[EvalData, tuple[Head, ...]]) -> None:
    data, heads = evaluated
    index = [head.name for head in heads].index("topic")
    limits = Settings().limits_of("int8")

    head = heads[index]
    # Always sure of another label than that of the rows.
    wrong = np.full_like(data.reference[head.output], -9.0)
    wrong[:, head.labels.index("app") - 1] = 9.0

    def check(threshold: float) -> bundle.Check:
        every = [*heads[:index], _with_sets(head, threshold), *heads[index + 1 :]]
        (found,) = compare_prediction_sets(data, {**data.reference, head.output: wrong}, every, limits)
        assert found.name == "set_coverage_gap.topic"
        return found

    assert check(0.0).value == 0
    assert check(0.1).value > 0.5
    with pytest.raises(AccuracyError, match=r"set_coverage_gap\.topic"):
        gate.require_passed("int8", [check(0.1)])
    assert list(compare_prediction_sets(data, data.reference, heads, limits)) == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("tags", lambda head: dataclasses.replace(head, thresholds=(0.4, 0.5, 0.7))),
        ("stars", lambda head: _abstaining(head, 0.9)),
        ("topic", lambda head: _with_sets(head, 0.1)),
    ],
)
def test_fingerprint_depends_on_the_decisions_of_its_head_alone(
    run: Run, name: str, changed: Callable[[Head], Head]
) -> None:
    def found(change: Callable[[Head], Head]) -> bundle.Fingerprints:
        heads = [change(head) if head.name == name else head for head in read_heads(run)]
        return compute_fingerprints(run.model, heads, run.tokenizer_path.read_bytes(), "fp32")

    before, after = found(lambda head: head), found(changed)
    assert after.embedding_space == before.embedding_space
    assert {one for one in before.heads if before.heads[one] != after.heads[one]} == {name}
    # A head that never abstains answers as one without a promise.
    assert name != "stars" or found(lambda head: _abstaining(head, None)) == before


def _with_trust(run: Run, tmp_path: Path) -> Run:
    """The run with a novelty of random embeddings and a reference of its heads, in a folder of its own."""
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    rng = np.random.default_rng(0)
    novelty = fit_novelty(*rng.normal(0, 0.2, (2, 100, run.model.config.embedding_size())))
    np.save(folder / "novelty.npy", novelty.matrix)
    heads = {
        head["name"]: {
            "answers": [0.25] * (len(head["labels"]) or 2),
            "confidence": [],
            "edges": [] if head["labels"] else [0, 1, 2],
        }
        for head in run.heads
    }
    reference = {"rows": 4, "heads": heads, "tokens": [1.0], "truncated": 0, "unknown_tokens": 0}
    reference |= {"embedding_mean": [], "embedding_spread": []}
    content = {**json.loads((folder / "run.json").read_text()), "novelty": novelty.to_json(), "reference": reference}
    (folder / "run.json").write_text(json.dumps(content))
    return load_run(folder)


@pytest.mark.usefixtures("traced_once")
def test_novelty_and_reference_of_a_run_are_those_of_its_bundle(run: Run, tmp_path: Path) -> None:
    source = _with_trust(run, tmp_path)
    found = export(source.path, tmp_path / "bundle", ignore, Settings(variants=("fp32",)))
    manifest = found.manifest
    assert manifest.novelty == read_novelty(source)
    assert manifest.reference == read_reference(source)
    assert manifest.reference is not None
    assert manifest.reference.heads["tags"].answers == (0.25,) * 3
    assert "novelty.npy" in (tmp_path / "bundle/README.md").read_text()
    checks = {check.name: check for check in manifest.variants["fp32"].gate}
    assert checks["novelty_difference"].passed
    verify(tmp_path / "bundle", ignore)
    verify_without_torch(tmp_path / "bundle", ignore)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content["novelty"].pop("noise"), "novelty: is damaged"),
        (lambda content: content["novelty"].update(centroids=3), r"is not a matrix of \(8, 32\) float16; train again"),
        (lambda content: content["reference"].update(tokens=1), "reference: is damaged"),
    ],
)
def test_damaged_novelty_or_reference_is_refused(run: Run, tmp_path: Path, change: Any, problem: str) -> None:
    source = _with_trust(run, tmp_path)
    content = dict(source.content)
    change(content)
    damaged = dataclasses.replace(source, content=content)
    with pytest.raises(RunError, match=problem):
        (read_novelty(damaged), read_reference(damaged))
