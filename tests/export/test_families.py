"""A backbone of each family goes all the way: it trains with frozen layers, is exported, passes the gate and serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import polyhead_bundle as bundle
import pytest
import torch
from polyhead_export.export import export
from polyhead_export.settings import Settings
from polyhead_server import settings as server_settings
from polyhead_server.inference.model import load_model
from polyhead_training.config_file import read_config
from polyhead_training.loop.stages import units
from polyhead_training.runs.run_directory import load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad
from polyhead_training.train import train
from safetensors.torch import load_file

from tests.support import int8_arithmetic
from tests.support.tiny_checkpoints import FAMILIES, WRITERS
from tests.support.tiny_model import ignore
from tests.support.tiny_training import write_config

# Others than those of the other tests; CamemBERT has the layout and the tokenizer of XLM-R.
NEW = [family for family in FAMILIES if family not in {"bert", "roberta", "distilbert", "camembert"}]
TEXTS = ["The parcel came late!", "", "What a kind person, thank you " * 9]
# The accuracy of a model that was trained for ten steps is not tested here.
LIMITS = {"label_disagreement": 1.0, **int8_arithmetic.LIMITS}


@pytest.fixture(scope="module", params=NEW)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The checkpoint, the run whose upper layer was trained, and the lines of its export to ``bundle`` beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "checkpoint").mkdir()
    torch.manual_seed(0)
    WRITERS[request.param](folder / "checkpoint")
    overrides = ["training.select=last", "training.stages.1.layer_decay=0.5", "training.stages.1.unfreeze_over=0.5"]
    config = read_config(write_config(folder, folder / "checkpoint"), overrides)
    train(config, folder / "run", report=ignore)
    lines: list[str] = []
    export(folder / "run", folder / "bundle", lines.append, Settings(limits={"int8": LIMITS}))
    return folder / "checkpoint", folder / "run", lines


def test_only_the_upper_layer_was_trained(exported: tuple[Path, Path, list[str]]) -> None:
    checkpoint, run, _ = exported
    before, model = load_file(checkpoint / "model.safetensors"), load_run(run).model
    after = model.backbone.state_dict()
    names = {id(parameter): name for name, parameter in model.backbone.named_parameters()}
    for unit, module in units(model).items():
        if unit == "embeddings" or unit.startswith("layer:"):
            changed = {
                names[id(one)]
                for one in module.parameters()
                if not torch.equal(after[names[id(one)]], before[names[id(one)]])
            }
            assert bool(changed) == (unit == "layer:2"), unit


def test_bundle_has_fp32_and_int8(exported: tuple[Path, Path, list[str]]) -> None:
    _, run, lines = exported
    manifest = bundle.load(run.with_name("bundle")).manifest
    assert set(manifest.variants) == {"fp32", "int8"}, lines
    checks = {check.name: check.value for check in manifest.variants["int8"].gate}
    assert checks["cosine_distance.mean"] < (0.005 if int8_arithmetic.is_exact() else 0.1)
    assert manifest.variants["int8"].operators["com.microsoft.MatMulIntegerToFloat"] > 0


def test_graph_holds_each_weight_once(exported: tuple[Path, Path, list[str]]) -> None:
    path, weights = exported[1].with_name("bundle"), load_file(exported[1] / "model" / "model.safetensors")
    size = sum(len(tensor.raw_data) for tensor in onnx.load(path / "model.onnx").graph.initializer)
    assert size < 1.1 * sum(values.nbytes for values in weights.values())


@pytest.mark.parametrize(
    ("engine", "variant", "tolerance"),
    [("onnx", "fp32", 1e-4), ("onnx", "int8", int8_arithmetic.LIMITS.get("difference", 0.1)), ("torch", "fp32", 1e-4)],
)
def test_server_answers_as_the_trained_model(
    exported: tuple[Path, Path, list[str]], engine: str, variant: str, tolerance: float
) -> None:
    path, trained = exported[1].with_name("bundle"), load_run(exported[1]).model.eval()
    settings = server_settings.Settings(bundle=path, engine=engine, device="cpu", variant=variant)
    served = load_model(settings)
    ids = [tokens.windows[0] for tokens in served.tokenizer.encode(TEXTS)]
    assert ids == list(encode(load_tokenizer(load_run(exported[1]).tokenizer_path), TEXTS, trained.config.max_tokens))
    batch = pad(ids, trained.config.pad_token_id)
    embeddings, *_ = served.engine.run(*batch)
    with torch.inference_mode():
        expected = trained(*map(torch.from_numpy, batch)).sentence_embedding.numpy()
    np.testing.assert_allclose(embeddings, expected, atol=tolerance)
    served.close()
