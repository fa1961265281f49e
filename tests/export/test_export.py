"""A run directory is exported to a bundle with everything that serving requires and no trace of the machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import polyhead_bundle as bundle
import pytest
import torch
from numpy.typing import NDArray
from polyhead_bundle import BundleError, Head
from polyhead_export import export as export_module
from polyhead_export import gate, runners
from polyhead_export.errors import ValuesError
from polyhead_export.eval_data import read_eval_data
from polyhead_export.export import export
from polyhead_export.golden import golden_texts
from polyhead_export.layout import GRAPHS
from polyhead_export.runners import Outputs, Runner, onnx_runner, torch_runner
from polyhead_export.settings import Settings
from polyhead_export.verify import verify
from polyhead_training.errors import RunError
from polyhead_training.model import PolyheadModel
from polyhead_training.runs.run_directory import load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad

from tests.support.tiny_model import ignore, make_model, write_run_directory

FILES = {"model.onnx", "tokenizer.json", "torch/config.json", "torch/model.safetensors", "README.md"}


@pytest.fixture
def run_copy(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of a run directory, to be damaged."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


def test_bundle_holds_what_serving_requires(bundle_dir: Path) -> None:
    manifest = bundle.load(bundle_dir).manifest
    assert set(manifest.files) == FILES
    assert manifest.name == "tiny"
    assert (manifest.max_tokens, manifest.pad_token_id) == (48, 0)
    assert manifest.embedding == bundle.Embedding("sentence_embedding", 32, "mean", normalized=True)
    assert manifest.heads == (
        Head("topic", "softmax", "logits", ("app", "billing", "support")),
        Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
    )
    assert [tensor.name for tensor in manifest.inputs] == ["input_ids", "attention_mask"]
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.built_with)
    variant = manifest.variants["fp32"]
    assert (variant.file, variant.batch_invariant) == ("model.onnx", True)
    assert len(variant.gate) == 15
    assert variant.operators["LayerNormalization"] == 6


def test_golden_outputs_are_the_trained_models(bundle_dir: Path, model: PolyheadModel) -> None:
    found = bundle.load(bundle_dir)
    texts = [golden.text for golden in found.manifest.variants["fp32"].golden]
    assert texts == list(golden_texts(48))
    tokenizer = load_tokenizer(found.file("tokenizer.json"))
    for golden, ids in zip(found.manifest.variants["fp32"].golden, encode(tokenizer, texts, 48), strict=True):
        input_ids, mask = map(torch.from_numpy, pad([ids], 0))
        with torch.inference_mode():
            embedding, logits = model(input_ids, mask)
        np.testing.assert_allclose(golden.embedding, embedding[0], atol=1e-6)
        np.testing.assert_allclose(golden.logits["topic"], logits["topic"][0], atol=1e-6)


def test_weights_are_those_of_the_run(bundle_dir: Path, run_dir: Path) -> None:
    ours, theirs = bundle_dir / "torch" / "model.safetensors", run_dir / "model" / "model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()
    assert (bundle_dir / "tokenizer.json").read_bytes() == (run_dir / "tokenizer.json").read_bytes()


def test_report_shows_the_table_of_checks(bundle_dir: Path, export_report: list[str]) -> None:
    assert any("batch_invariance" in line and "limit" in line for line in export_report)


def test_no_file_contains_a_trace_of_its_origin(bundle_dir: Path, run_dir: Path) -> None:
    assert b"/remembered/by/transformers" in (run_dir / "model" / "config.json").read_bytes()
    for name in (*FILES, "bundle.json"):
        content = (bundle_dir / name).read_bytes()
        for trace in (
            run_dir.parent,
            bundle_dir.parent,
            Path.cwd(),
            Path.home(),
            sys.prefix,
            "private.jsonl",
            "remembered",
        ):
            assert str(trace).encode() not in content, (name, trace)


def test_same_run_gives_the_same_bundle(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    """The same on another number of threads; ``test_variants`` repeats the export of every variant on the same."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = export(run_dir, tmp_path / "again", ignore, Settings(variants=("fp32",)))
        assert again.digest == bundle.load(bundle_dir).digest
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, bytes]]:
    """How often each batch was computed, by the digest of the graph, or "model", and the batch's token ids."""
    counts: Counter[tuple[str, bytes]] = Counter()
    lock = threading.Lock()

    def counting(name: str, run: Runner) -> Runner:
        def call(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
            with lock:
                counts[name, input_ids.tobytes() + attention_mask.tobytes()] += 1
            return run(input_ids, attention_mask)

        return call

    graph, model = runners.onnx_runner, runners.torch_runner
    monkeypatch.setattr(
        runners, "onnx_runner", lambda path: counting(hashlib.sha256(path.read_bytes()).hexdigest(), graph(path))
    )
    monkeypatch.setattr(runners, "torch_runner", lambda trained: counting("model", model(trained)))
    return counts


@pytest.fixture(scope="module")
def eval_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty labelled rows: two batches."""
    labels = ("app", "billing", "support")
    rows = [{"text": f"row {'word ' * n}", "label": labels[n % 3], "sentiment": n % 2} for n in range(20)]
    path = tmp_path_factory.mktemp("eval") / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# A model with random weights loses accuracy in int8, which is not tested here.
_UNLIMITED = {"label_disagreement": 1.0, "accuracy_drop": 1.0, "macro_f1_drop": 1.0, "calibration": 1.0}


@pytest.mark.usefixtures("traced_once")
def test_every_batch_passes_through_each_graph_and_the_model_once(
    run_dir: Path, eval_file: Path, tmp_path: Path, computed: Counter[tuple[str, bytes]]
) -> None:
    settings = Settings(variants=("fp32", "int8"), limits={"int8": _UNLIMITED}).with_overrides((), [eval_file])
    found = export(run_dir, tmp_path / "bundle", ignore, settings)
    assert set(found.manifest.variants) == {"fp32", "int8"}
    assert set(computed.values()) == {1}
    # fp32, and the candidates of int8, of which one becomes the variant.
    by_runner = Counter(name for name, _ in computed)
    files = [tmp_path / "bundle" / GRAPHS[name] for name in ("fp32", "int8")]
    graphs = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert graphs < by_runner.keys() - {"model"}
    computed.clear()
    verify(tmp_path / "bundle", ignore, settings)
    assert set(computed.values()) == {1}
    assert {name for name, _ in computed} == {"model", *graphs}


@pytest.mark.usefixtures("traced_once")
def test_shared_batches_give_the_figures_of_computing_each_again(
    run_dir: Path, eval_file: Path, tmp_path: Path, model: PolyheadModel
) -> None:
    settings = Settings(variants=("fp32", "int8"), limits={"int8": _UNLIMITED}).with_overrides((), [eval_file])
    found = export(run_dir, tmp_path / "bundle", ignore, settings)
    run = load_run(run_dir)
    heads, ids = found.manifest.heads, list(encode(load_tokenizer(run.tokenizer_path), golden_texts(48), 48))
    eval_data = read_eval_data(run, heads, [eval_file])
    for name, variant in found.manifest.variants.items():
        path = tmp_path / "bundle" / variant.file
        limits = settings.limits_of(name)  # type: ignore[arg-type]
        alone = gate.measure(path, model, ids, heads, limits, eval_data, onnx_runner(path), torch_runner(model))
        assert [(one.name, one.limit) for one in alone] == [(one.name, one.limit) for one in variant.gate]
        # Rounding differs between runs of several threads.
        assert [one.value for one in alone] == pytest.approx([one.value for one in variant.gate], rel=1e-3, abs=1e-7)


def test_graph_with_wrong_outputs_is_not_written(
    graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = make_model()
    with torch.no_grad():
        another.get_parameter("heads.topic.layers.4.bias").add_(1e-3)
    run = write_run_directory(tmp_path / "run", another)
    monkeypatch.setattr(export_module, "export_graph", lambda model, path: shutil.copyfile(graph_file, path))
    lines: list[str] = []
    with pytest.raises(ValuesError, match=r"difference\.logits is 0\.001 \(limit 0\.0001\)"):
        export(run, tmp_path / "bundle", lines.append)
    assert any("FAILED" in line for line in lines)
    assert list(tmp_path.iterdir()) == [run]


def test_destination_that_is_not_a_bundle_is_rejected_before_the_export(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("draft")
    monkeypatch.delattr(export_module, "load_run")
    with pytest.raises(BundleError, match="was left unchanged"):
        export(run_dir, tmp_path, ignore)
    assert (tmp_path / "thesis.txt").exists()


def test_inconsistent_run_directory_is_rejected(run_copy: Path, tmp_path: Path) -> None:
    content = json.loads((run_copy / "run.json").read_bytes())
    content["heads"][0]["labels"].reverse()
    (run_copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="describe different heads"):
        export(run_copy, tmp_path / "bundle", ignore)


def test_run_with_an_incomplete_head_is_rejected(run_copy: Path, tmp_path: Path) -> None:
    content = json.loads((run_copy / "run.json").read_bytes())
    del content["heads"][1]["threshold"]
    (run_copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="a head has no field 'threshold'"):
        export(run_copy, tmp_path / "bundle", ignore)


def test_run_with_a_damaged_tokenizer_is_rejected(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match="is not a valid tokenizer"):
        export(run_copy, tmp_path / "bundle", ignore)


def test_graph_has_an_output_per_head(bundle_dir: Path) -> None:
    assert [value.name for value in onnx.load(bundle_dir / "model.onnx").graph.output] == [
        "sentence_embedding",
        "logits",
        "sentiment_logits",
    ]
