"""Every variant matches the trained model within its limits, or is left out of the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polyhead_bundle as bundle
import pytest
import torch
from polyhead_export.cli import VARIANT_NAMES
from polyhead_export.errors import FusionError, SettingsError
from polyhead_export.export import export
from polyhead_export.layout import EMBEDDING_OUTPUT, GRAPHS
from polyhead_export.quantization.fusion import count_operators, fuse_attention
from polyhead_export.quantization.smoothquant import collect_absmax, fold_biases, quantize
from polyhead_export.quantization.variants import make_variant
from polyhead_export.random_texts import RandomTexts
from polyhead_export.runners import onnx_runner
from polyhead_export.settings import VARIANTS, Settings, read_settings
from polyhead_export.verify import verify
from polyhead_server import settings as server_settings
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import load_model
from polyhead_training.model import PolyheadModel
from polyhead_training.structure import linear_shapes
from polyhead_training.tokenization import pad

from tests.support.tiny_model import ignore, make_model, shared_graphs, write_graph

GOLDEN = [[2, 3], [2, 9, 10, 3], [2, *range(20, 50), 3], [2, 7, 3]]


def _make(model: PolyheadModel, folder: Path, name: str) -> tuple[Path, Path]:
    plain = folder / "model.onnx"
    write_graph(model, plain)
    return plain, make_variant(name, plain, model, GOLDEN, ignore)  # type: ignore[arg-type]


def _random_texts(model: PolyheadModel, count: int) -> list[list[int]]:
    return RandomTexts(model.config, seed=1).texts(count, 256)


def _embed(path: Path, *texts: list[int]) -> np.ndarray:
    return onnx_runner(path)(*pad(texts, 0))[EMBEDDING_OUTPUT]


@pytest.fixture(scope="module")
def eval_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "test.jsonl"
    rows = [
        {"text": "where is my refund", "label": "billing", "sentiment": 0},
        {"text": "the courier rang twice", "label": "support", "sentiment": None},
        {"text": "lovely fabric and a perfect fit", "label": None, "sentiment": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def loose() -> Settings:
    """Limits that a model with random weights passes: its accuracy is not tested here."""
    unlimited = {"label_disagreement": 1.0, "accuracy_drop": 1.0, "macro_f1_drop": 1.0, "calibration": 1.0}
    limits = {name: unlimited for name in VARIANTS if name != "fp32"}
    return Settings(variants=VARIANTS, limits=limits)


@pytest.fixture(scope="module")
def all_variants(
    run_dir: Path, loose: Settings, eval_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> bundle.Bundle:
    settings = loose.with_overrides((), [eval_file])
    with shared_graphs():
        return export(run_dir, tmp_path_factory.mktemp("variants") / "tiny", ignore, settings)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_int8_is_close_to_fp32_and_batch_invariant(tmp_path: Path, family: str) -> None:
    # The models of test_onnx_export, which need not be traced again.
    model = make_model(family, **({"pooling": "cls", "embedding_pooling": "cls"} if family == "distilbert" else {}))
    plain, integers = _make(model, tmp_path, "int8")
    texts = _random_texts(model, 9)
    for text in texts:
        expected, alone = _embed(plain, text)[0], _embed(integers, text)[0]
        assert expected @ alone > 0.999
        assert not np.array_equal(expected, alone)
        padded = onnx_runner(integers)(*pad([text, *texts], model.config.pad_token_id))[EMBEDDING_OUTPUT][0]
        np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_int8_is_calibrated_on_real_texts_if_available(model: PolyheadModel, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "model.onnx")
    texts = _random_texts(model, 400)[200:]
    lines: list[str] = []
    made = []
    for real in ([], texts[:3], texts):
        path = make_variant("int8", tmp_path / "model.onnx", model, GOLDEN, lines.append, real)
        made.append(path.read_bytes())
    assert len(set(made)) == 3
    assert [line.partition(";")[0] for line in lines] == [
        "int8: calibrated on 98 texts, 0 of them evaluation data",
        "int8: calibrated on 100 texts, 2 of them evaluation data",
        "int8: calibrated on 194 texts, 96 of them evaluation data",
    ]


def test_smoothing_is_chosen_by_accuracy_before_cosine(model: PolyheadModel, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "model.onnx")
    lines: list[str] = []
    losses = iter([0.1, 0.0, 0.1, 0.1])
    make_variant("int8", tmp_path / "model.onnx", model, GOLDEN, lines.append, (), lambda _: next(losses))
    assert "smoothing 0.6," in lines[0]


def test_int8_runs_every_linear_layer_on_integers(model: PolyheadModel, tmp_path: Path) -> None:
    counted = count_operators(onnx.load(_make(model, tmp_path, "int8")[1]))
    assert counted["com.microsoft.MatMulIntegerToFloat"] == 12
    assert counted["com.microsoft.MultiHeadAttention"] == 2
    assert "MatMul" not in counted


def test_folded_biases_do_not_change_outputs(tmp_path: Path) -> None:
    model = make_model()
    for name, values in model.named_parameters():
        if name.endswith(("self.key.bias", "self.value.bias")):
            values.data.uniform_(-1, 1)
    write_graph(model, tmp_path / "model.onnx")
    folded = fold_biases(fuse_attention(onnx.load(tmp_path / "model.onnx"), 2))
    onnx.save_model(folded, str(tmp_path / "folded.onnx"))
    assert (
        count_operators(folded)["Add"] < count_operators(fuse_attention(onnx.load(tmp_path / "model.onnx"), 2))["Add"]
    )
    for text in _random_texts(model, 5):
        np.testing.assert_allclose(
            _embed(tmp_path / "folded.onnx", text), _embed(tmp_path / "model.onnx", text), atol=1e-5
        )


def test_smoothing_does_not_change_products(model: PolyheadModel, tmp_path: Path) -> None:
    write_graph(model, tmp_path / "model.onnx")
    folded = fold_biases(fuse_attention(onnx.load(tmp_path / "model.onnx"), 2))
    largest = collect_absmax(tmp_path / "scratch", folded, GOLDEN)
    for smoothing in (0.0, 1.0):
        onnx.save_model(
            quantize(folded, largest, smoothing, linear_shapes(model.backbone)), str(tmp_path / "int8.onnx")
        )
        cosine = _embed(tmp_path / "int8.onnx", GOLDEN[2])[0] @ _embed(tmp_path / "model.onnx", GOLDEN[2])[0]
        assert cosine > 0.99


def test_missing_fusion_is_an_error_with_the_operators(graph_file: Path) -> None:
    with pytest.raises(
        FusionError, match=r"expected 3 MultiHeadAttention after fusion, found 2; the graph has 1\d Add"
    ):
        fuse_attention(onnx.load(graph_file), 3)


def test_unexpected_number_of_linear_layers_is_an_error(model: PolyheadModel, graph_file: Path, tmp_path: Path) -> None:
    folded = fold_biases(fuse_attention(onnx.load(graph_file), 2))
    absmax = collect_absmax(tmp_path / "scratch", folded, GOLDEN)
    with pytest.raises(FusionError, match="expected 13 linear layers in the backbone, found 12 in the graph"):
        quantize(folded, absmax, 0.5, [*linear_shapes(model.backbone), (32, 32)])


def test_attention_that_is_not_fused_is_quantized_per_token(
    model: PolyheadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FusionError("not fused")

    monkeypatch.setattr("polyhead_export.quantization.variants.fuse_attention", refuse)
    write_graph(model, tmp_path / "model.onnx")
    lines: list[str] = []
    path = make_variant("int8", tmp_path / "model.onnx", model, GOLDEN, lines.append)
    assert lines[0].startswith("int8: the attention of this backbone is not fused")
    counted = count_operators(onnx.load(path))
    assert counted["com.microsoft.MatMulIntegerToFloat"] == 12
    # Scores and weighted values of two layers, which are no linear layers.
    assert counted["MatMul"] == 4
    for text in _random_texts(model, 5):
        assert _embed(path, text)[0] @ _embed(tmp_path / "model.onnx", text)[0] > 0.999


def test_bundle_with_every_variant_verifies(all_variants: bundle.Bundle, loose: Settings) -> None:
    manifest = all_variants.manifest
    assert {name: one.file for name, one in manifest.variants.items()} == GRAPHS
    assert {name for name, one in manifest.variants.items() if one.batch_invariant} == {"fp32", "int8"}
    spaces = {one.fingerprints.embedding_space for one in manifest.variants.values()}
    assert len(spaces) == len(VARIANTS)
    assert verify(all_variants.path, ignore, loose).digest == all_variants.digest


def test_evaluation_data_is_checked_for_each_head(all_variants: bundle.Bundle) -> None:
    names = {check.name for check in all_variants.manifest.variants["int8"].gate}
    assert {
        f"{check}.{head}"
        for check in ("accuracy_drop", "macro_f1_drop", "calibration")
        for head in ("topic", "sentiment")
    } <= names


def test_repeated_export_gives_the_same_bytes(
    all_variants: bundle.Bundle, run_dir: Path, loose: Settings, eval_file: Path, tmp_path: Path
) -> None:
    again = export(run_dir, tmp_path / "again", ignore, loose.with_overrides((), [eval_file]))
    assert again.digest == all_variants.digest


@pytest.mark.usefixtures("traced_once")
def test_failed_variant_is_left_out_and_reported(run_dir: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    settings = Settings(variants=("fp32", "int8"), limits={"int8": {"cosine_worst": 1e-9}})
    found = export(run_dir, tmp_path / "bundle", lines.append, settings)
    assert set(found.manifest.variants) == {"fp32"}
    assert "model.int8.onnx" not in found.manifest.files
    assert any("variant int8 is left out" in line and "cosine_distance.worst is" in line for line in lines)


def test_weights_too_large_for_one_file_are_written_beside_the_graph(
    run_dir: Path, loose: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyhead_export.onnx_export.MAX_PROTO_BYTES", 10_000)
    found = export(run_dir, tmp_path / "bundle", ignore, loose)
    for name in GRAPHS.values():
        assert found.manifest.files[f"{name}.data"].size > 10_000
    assert verify(found.path, ignore, loose).digest == found.digest


def test_variants_of_the_command_line_match_the_settings() -> None:
    assert VARIANT_NAMES == VARIANTS


def test_missing_evaluation_file_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.jsonl: evaluation data not found"):
        export(run_dir, tmp_path / "bundle", ignore, Settings().with_overrides((), [tmp_path / "gone.jsonl"]))
    assert not (tmp_path / "bundle").exists()


def test_evaluation_file_without_labels_is_named(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(SettingsError, match=r"bare\.jsonl: no row has a label"):
        export(run_dir, tmp_path / "bundle", ignore, Settings().with_overrides((), [tmp_path / "bare.jsonl"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("variants = ['int4']", r"export\.toml: variants\.0: Input should be"),
        (
            "colour = 1",
            r"export\.toml: colour: Extra inputs are not permitted; known fields are variants, eval_data, limits",
        ),
        ("variant = ['int8']", r"export\.toml: variant: Extra inputs .*; did you mean 'variants'\?"),
        ("[limits.int8]\ncosin_mean = 1", r"limits\.int8\.cosin_mean: Extra inputs .*; did you mean 'cosine_mean'\?"),
        (
            "colour = 1\n[limits.int8]\ncosine_mean = -1\nzzz = 1",
            r"(?s)export\.toml: colour.*export\.toml: limits\.int8\.cosine_mean.*export\.toml: limits\.int8\.zzz",
        ),
        ("[limits.int8]\ncosine_mean = -1", r"limits\.int8\.cosine_mean: Input should be greater"),
        ("variants = [", r"export\.toml: is not valid TOML"),
    ],
)
def test_invalid_configuration_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "export.toml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        read_settings(tmp_path / "export.toml")


def test_int8_is_made_by_default_and_may_be_left_out() -> None:
    assert Settings().selected == ("fp32", "int8")
    assert Settings().required == ("fp32",)
    assert Settings().with_overrides((), [Path("test.jsonl")]).required == ("fp32",)


def test_variants_of_the_command_line_replace_those_of_the_configuration() -> None:
    assert Settings().with_overrides(["fp32"], []).selected == ("fp32",)
    chosen = Settings(variants=("int8-dynamic",)).with_overrides(["fp16", "int8"], [])
    assert chosen.selected == chosen.required == ("fp32", "int8", "fp16")


def test_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "export.toml").write_text(
        'variants = ["int8"]\neval_data = ["test.jsonl"]\n[limits.int8]\ncosine_mean = 0.5\n'
    )
    settings = read_settings(tmp_path / "export.toml")
    assert settings.selected == settings.required == ("fp32", "int8")
    assert settings.eval_data_files == (tmp_path / "test.jsonl",)
    assert settings.limits_of("int8").cosine_mean == 0.5
    assert settings.limits_of("int8").cosine_worst == 0.03


@pytest.mark.parametrize(("variant", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_pytorch_serves_the_requested_precision(
    all_variants: bundle.Bundle, variant: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    forward = PolyheadModel.forward

    def recorded(self: PolyheadModel, *inputs: torch.Tensor) -> Any:
        seen.append(next(self.parameters()).dtype)
        return forward(self, *inputs)

    monkeypatch.setattr(PolyheadModel, "forward", recorded)
    settings = server_settings.Settings(bundle=all_variants.path, engine="torch", device="cpu", variant=variant)
    runtime = load_model(settings).engine.runtime
    assert (runtime.engine, runtime.variant) == ("torch", variant)
    assert set(seen) == {dtype}


def test_pytorch_has_no_int8_variant(all_variants: bundle.Bundle) -> None:
    settings = server_settings.Settings(bundle=all_variants.path, engine="torch", device="cpu", variant="int8")
    with pytest.raises(StartupError, match="int8"):
        load_model(settings)
