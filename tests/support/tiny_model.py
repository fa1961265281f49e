"""A model of a few thousand weights, its run directory, and the bundle exported from it once per session.

The ``conftest.py`` of each folder that uses the fixtures imports them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import tokenizers
import torch
from filelock import FileLock
from polyhead_export import export as export_module
from polyhead_export.export import export
from polyhead_export.onnx_export import export_graph
from polyhead_export.settings import Settings
from polyhead_training.config import Config, DataConfig
from polyhead_training.evaluation.metrics import HeadScore
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.model_config import HeadConfig
from polyhead_training.runs.run_directory import EVALUATION_NAME, write_json, write_run

from tests.support import demo
from tests.support.tiny_tokenizers import bert

MAX_TOKENS = 48
HEADS = (
    HeadConfig(name="topic", kind="softmax", labels=("app", "billing", "support")),
    HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive")),
)
SENTENCES = [
    "the courier rang twice and nobody was at home so the box went back to the depot",
    "lovely fabric and a perfect fit but the zip jammed on the first evening",
    "where is my refund and why was the amount taken twice",
]
_SIZES = {
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "roberta": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
}
# RoBERTa numbers positions from pad_token_id + 1.
_PAD_TOKEN_IDS = {"bert": 0, "roberta": 1, "distilbert": 0}


# Fields of a model's configuration on which its graph depends.
_GRAPH_FIELDS = ("backbone", "pooling", "embedding_pooling", "embedding_layers", "normalize", "heads", "pad_token_id")


def ignore(line: str) -> None:
    """A ``report`` callback that discards the line."""


def make_model(family: str = "bert", **settings: Any) -> PolyheadModel:
    """Returns a model with random weights, the same in every call."""
    torch.manual_seed(0)
    pad_token_id = _PAD_TOKEN_IDS[family]
    backbone = {
        "model_type": family,
        "vocab_size": 200,
        "max_position_embeddings": MAX_TOKENS + pad_token_id + 1,
        "pad_token_id": pad_token_id,
        **_SIZES[family],
    }
    heads = [head.layer_settings() for head in HEADS]
    defaults = {"heads": heads, "max_tokens": MAX_TOKENS, "pad_token_id": pad_token_id}
    config = PolyheadConfig(backbone=backbone, **{**defaults, **settings})
    return cast(PolyheadModel, PolyheadModel(config).eval())


def write_graph(model: PolyheadModel, path: Path) -> None:
    """Writes the graph of a model.

    Tracing takes seconds and most tests start from the same models, so the graphs are kept beside the demo model, under
    a digest of all that they depend on apart from the sources.
    """
    settings = {field: getattr(model.config, field) for field in _GRAPH_FIELDS}
    settings["backbone"] = {key: value for key, value in settings["backbone"].items() if key != "_name_or_path"}
    versions = [sys.version, torch.__version__, onnx.__version__]
    digest = hashlib.sha256(json.dumps([settings, versions], sort_keys=True).encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode() + values.numpy().tobytes())
    graphs = demo.folder() / "graphs"
    graphs.mkdir(exist_ok=True)
    kept = graphs / f"{digest.hexdigest()}.onnx"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            export_graph(model, unfinished := kept.with_suffix(".unfinished.onnx"))
            unfinished.replace(kept)
    shutil.copyfile(kept, path)


@contextmanager
def shared_graphs() -> Iterator[None]:
    """Makes every export in the block write the graph as ``write_graph`` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "export_graph", write_graph)
        yield


def make_tokenizer() -> tokenizers.Tokenizer:
    """Returns a WordPiece tokenizer for ``SENTENCES``, the same in every process."""
    return bert(SENTENCES, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])


def write_run_directory(path: Path, model: PolyheadModel) -> Path:
    """Writes a run directory as training does."""
    path.mkdir()
    config = Config(name="tiny", data=DataConfig(train=(str(path / "private.jsonl"),)))
    write_run(path, config, HEADS, model, make_tokenizer())
    _add_path_of_transformers(path / "model" / "config.json")
    intervals = {"accuracy": [0.91, 0.98]}
    topic = HeadScore(120, accuracy=0.95, majority_baseline=0.25, macro_f1=0.9375, ece=0.0125, intervals=intervals)
    scores = {"topic": topic, "sentiment": HeadScore(0)}
    write_json(path / EVALUATION_NAME, {"test": {head: score.to_json() for head, score in scores.items()}})
    return path


def _add_path_of_transformers(path: Path) -> None:
    """Some releases of transformers record the folder that a configuration was loaded from."""
    config = json.loads(path.read_bytes())
    config["_name_or_path"] = config["backbone"]["_name_or_path"] = "/remembered/by/transformers"
    write_json(path, config)


@pytest.fixture(scope="session")
def model() -> PolyheadModel:
    """A shared model; a test that modifies a model makes its own."""
    return make_model()


@pytest.fixture(scope="session")
def graph_file(model: PolyheadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of ``model``; read-only."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_graph(model, path)
    return path


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer of ``run_dir``."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def run_dir(model: PolyheadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of ``model``; read-only."""
    return write_run_directory(tmp_path_factory.mktemp("runs") / "tiny", model)


@pytest.fixture(scope="session")
def export_report() -> list[str]:
    """The lines reported while ``bundle_dir`` was exported."""
    return []


@pytest.fixture(scope="session")
def bundle_dir(run_dir: Path, export_report: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported bundle; read-only, a test that damages a bundle makes a copy."""
    settings = Settings(variants=("fp32",))
    with shared_graphs():
        return export(run_dir, tmp_path_factory.mktemp("bundles") / "tiny", export_report.append, settings).path


@pytest.fixture
def traced_once() -> Iterator[None]:
    """Exports of a test write the graph as ``write_graph`` does."""
    with shared_graphs():
        yield
