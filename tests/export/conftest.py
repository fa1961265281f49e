"""A model of a few thousand weights, its run directory, and the bundle that is exported from it once a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import tokenizers
import torch
from polyhead_export.export import export
from polyhead_export.onnx_export import export_graph
from polyhead_export.settings import Settings
from polyhead_training.config import Config, DataConfig, HeadConfig
from polyhead_training.evaluation.metrics import HeadScore
from polyhead_training.model import PolyheadConfig, PolyheadModel
from polyhead_training.runs.run_directory import EVALUATION_NAME, write_json, write_run

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
# RoBERTa counts positions from pad_token_id + 1.
_PADDING = {"bert": 0, "roberta": 1, "distilbert": 0}


def _make_model(family: str = "bert", **settings: Any) -> PolyheadModel:
    """The same random model every time."""
    torch.manual_seed(0)
    padding = _PADDING[family]
    backbone = {
        "model_type": family,
        "vocab_size": 200,
        "max_position_embeddings": MAX_TOKENS + padding + 1,
        "pad_token_id": padding,
        **_SIZES[family],
    }
    heads = [head.model_dump(include={"name", "kind", "labels", "hidden_size", "dropout"}) for head in HEADS]
    config = PolyheadConfig(
        backbone=backbone, heads=heads, **{"max_tokens": MAX_TOKENS, "pad_token_id": padding, **settings}
    )
    return cast(PolyheadModel, PolyheadModel(config).eval())


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PolyheadModel]:
    return _make_model


@pytest.fixture(scope="session")
def model() -> PolyheadModel:
    """A model to look at; whoever changes one makes another."""
    return _make_model()


@pytest.fixture(scope="session")
def graph_file(model: PolyheadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of ``model``, to look at."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(model, path)
    return path


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    found.normalizer = tokenizers.normalizers.BertNormalizer()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    found.train_from_iterator(SENTENCES, trainer)
    found.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    return found


@pytest.fixture(scope="session")
def write_tiny_run(tokenizer: tokenizers.Tokenizer) -> Callable[[Path, PolyheadModel], Path]:
    """Writes a run directory as training does."""

    def write(path: Path, trained: PolyheadModel) -> Path:
        path.mkdir()
        config = Config(name="tiny", data=DataConfig(train=(str(path / "private.jsonl"),)))
        write_run(path, config, HEADS, trained, tokenizer)
        _remember_a_folder(path / "model" / "config.json")
        interval = {"accuracy": [0.91, 0.98]}
        topic = HeadScore(120, accuracy=0.95, majority_baseline=0.25, macro_f1=0.9375, ece=0.0125, intervals=interval)
        scores = {"topic": topic, "sentiment": HeadScore(0)}
        write_json(path / EVALUATION_NAME, {"test": {head: score.to_json() for head, score in scores.items()}})
        return path

    return write


def _remember_a_folder(path: Path) -> None:
    """Some releases of transformers write down where a configuration was loaded from."""
    config = json.loads(path.read_bytes())
    config["_name_or_path"] = config["backbone"]["_name_or_path"] = "/remembered/by/transformers"
    write_json(path, config)


@pytest.fixture(scope="session")
def run_dir(
    model: PolyheadModel,
    write_tiny_run: Callable[[Path, PolyheadModel], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", model)


@pytest.fixture(scope="session")
def progress() -> list[str]:
    """What the export of ``bundle_dir`` said."""
    return []


@pytest.fixture(scope="session")
def bundle_dir(run_dir: Path, progress: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to look at; whoever damages one writes a copy first."""
    fp32 = Settings(variants=("fp32",))
    return export(run_dir, tmp_path_factory.mktemp("bundles") / "tiny", progress.append, fp32).path
