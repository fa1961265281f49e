"""Somebody else's finished model becomes a run that answers as it does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_export.interop.import_checkpoint as module
import pytest
import tokenizers
import torch
from polyhead_export.export import export
from polyhead_export.interop.import_checkpoint import CheckpointError, import_checkpoint
from polyhead_export.settings import Settings
from polyhead_training.errors import BackboneError, RunError
from polyhead_training.model import Pooling as OurPooling
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

TEXTS = [
    "",
    "where is my refund",
    "Lovely FABRIC, and a perfect fit -- but the zip jammed!",
    "Crème brûlée, Łódź 🙂 配送很快",
    "the courier rang twice and nobody was at home " * 20,
]
LABELS = {0: "zebra", 1: "apple", 2: "mango"}
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_DISTIL_SIZES = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
_MODELS: dict[str, tuple[type, type, type, dict[str, Any]]] = {
    "bert": (BertConfig, BertModel, BertForSequenceClassification, {**_SIZES, "max_position_embeddings": 40}),
    "roberta": (
        RobertaConfig,
        RobertaModel,
        RobertaForSequenceClassification,
        {**_SIZES, "max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "distilbert": (
        DistilBertConfig,
        DistilBertModel,
        DistilBertForSequenceClassification,
        {**_DISTIL_SIZES, "max_position_embeddings": 40},
    ),
}
_SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def _ignore(line: str) -> None:
    pass


def _byte_pairs() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


@pytest.fixture
def write_tokenizer(tokenizer: tokenizers.Tokenizer) -> Callable[..., None]:
    def write(folder: Path, family: str, **settings: Any) -> None:
        if family == "roberta":
            special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
            found = PreTrainedTokenizerFast(tokenizer_object=_byte_pairs(), **special, **settings)
        else:
            found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL, **settings)
        found.save_pretrained(folder)

    return write


def _config(family: str, **settings: Any) -> Any:
    make, _, _, sizes = _MODELS[family]
    # Weights far enough from zero that every layer shows in the answer.
    return make(vocab_size=310, initializer_range=0.4, **sizes, **settings)


@pytest.fixture
def write_classifier(write_tokenizer: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny random classifier as transformers does."""

    def write(family: str = "bert", **settings: Any) -> Path:
        torch.manual_seed(0)
        config = _config(family, **{"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}, **settings})
        _MODELS[family][2](config).save_pretrained(tmp_path / "checkpoint")
        write_tokenizer(tmp_path / "checkpoint", family)
        return tmp_path / "checkpoint"

    return write


@pytest.fixture
def write_sentence_transformer(write_tokenizer: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny random SentenceTransformer as the library does today."""

    def write(
        family: str = "bert", *more: Any, pooling: Any = "mean", length: int | None = 24, **settings: Any
    ) -> Path:
        torch.manual_seed(0)
        _MODELS[family][1](_config(family)).save_pretrained(tmp_path / "backbone")
        write_tokenizer(tmp_path / "backbone", family)
        transformer = Transformer(str(tmp_path / "backbone"), max_seq_length=length)
        modules = [transformer, Pooling(32, pooling_mode=pooling), *more]
        SentenceTransformer(modules=modules, device="cpu", **settings).save(str(tmp_path / "checkpoint"))
        return tmp_path / "checkpoint"

    return write


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}), "utf-8")


def _answer(run: Run, texts: list[str]) -> Any:
    """The run's own embeddings and logits."""
    config = run.model.config
    ids = list(encode(load_tokenizer(run.tokenizer_path), texts, config.max_tokens))
    with torch.inference_mode():
        return run.model(*map(torch.from_numpy, pad(ids, config.pad_token_id)))


def _import(checkpoint: Path, **changes: Any) -> Run:
    return load_run(import_checkpoint(str(checkpoint), checkpoint.parent / "run", None, changes.get("say", _ignore)))


def _require_same_logits(checkpoint: Path, run: Run) -> None:
    original: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.inference_mode():
        expected = original(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert expected.std() > 0.01
    np.testing.assert_allclose(_answer(run, TEXTS).logits["topic"], expected, atol=1e-5)


def _require_same_embeddings(checkpoint: Path, run: Run) -> None:
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(_answer(run, TEXTS).sentence_embedding, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_classifier_keeps_its_logits(write_classifier: Callable[..., Path], family: str) -> None:
    checkpoint = write_classifier(family)
    run = _import(checkpoint)
    assert run.model.config.max_tokens == 40
    _require_same_logits(checkpoint, run)


def test_classifiers_labels_keep_their_order(write_classifier: Callable[..., Path]) -> None:
    (head,) = _import(write_classifier()).heads
    assert (head["name"], head["kind"], head["labels"]) == ("topic", "softmax", ["zebra", "apple", "mango"])
    assert (head["temperature"], head["threshold"]) == (1.0, None)


def test_two_labels_stay_two_logits(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier("distilbert", id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={})
    run = _import(checkpoint)
    assert (run.heads[0]["kind"], run.heads[0]["labels"]) == ("softmax", ["NEGATIVE", "POSITIVE"])
    _require_same_logits(checkpoint, run)


def test_classifiers_embedding_is_the_normalized_mean(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    run = _import(checkpoint)
    assert (run.model.config.embedding_pooling, run.model.config.normalize) == ("mean", True)
    backbone = BertModel.from_pretrained(checkpoint).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(checkpoint)(TEXTS[1])["input_ids"]])
    with torch.inference_mode():
        mean = backbone(ids).last_hidden_state.mean(dim=1)
    np.testing.assert_allclose(_answer(run, [TEXTS[1]]).sentence_embedding, mean / mean.norm(), atol=1e-5)


def test_tokenizers_length_is_kept_where_it_is_shorter(
    write_classifier: Callable[..., Path], write_tokenizer: Callable[..., None]
) -> None:
    checkpoint = write_classifier()
    write_tokenizer(checkpoint, "bert", model_max_length=20)
    assert _import(checkpoint).model.config.max_tokens == 20


@pytest.mark.parametrize(
    ("family", "pooling", "normalize"),
    [("bert", "mean", True), ("bert", "cls", False), ("roberta", "mean", True), ("distilbert", "cls", True)],
)
def test_sentence_transformer_keeps_its_embeddings(
    write_sentence_transformer: Callable[..., Path], family: str, pooling: str, normalize: bool
) -> None:
    checkpoint = write_sentence_transformer(family, *([Normalize()] if normalize else []), pooling=pooling)
    assert "pooling_mode_cls_token" not in (checkpoint / "1_Pooling" / "config.json").read_text()
    run = _import(checkpoint)
    assert run.heads == []
    assert run.model.config.max_tokens == 24
    _require_same_embeddings(checkpoint, run)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_older_sentence_transformer_keeps_its_embeddings(
    write_sentence_transformer: Callable[..., Path], mode: str
) -> None:
    checkpoint = write_sentence_transformer("bert", Normalize())
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    modes = {f"pooling_mode_{key}_token{'s' * (key != 'cls')}": key == mode for key in ("cls", "mean", "max")}
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (checkpoint / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    shutil.rmtree(checkpoint / "2_Normalize")
    run = _import(checkpoint)
    assert run.model.config.embedding_pooling == mode
    _require_same_embeddings(checkpoint, run)


def test_backbone_one_folder_below_is_found(write_sentence_transformer: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer()
    modules = json.loads((checkpoint / "modules.json").read_bytes())
    modules[0]["path"] = "0_Transformer"
    (checkpoint / "0_Transformer").mkdir()
    for path in list(checkpoint.iterdir()):
        if path.is_file() and path.name != "modules.json":
            path.rename(checkpoint / "0_Transformer" / path.name)
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    run = _import(checkpoint)
    assert run.model.config.max_tokens == 24
    _require_same_embeddings(checkpoint, run)


def test_lower_casing_besides_the_tokenizers_is_kept(write_sentence_transformer: Callable[..., Path]) -> None:
    checkpoint = write_sentence_transformer("roberta")
    before = _answer(_import(checkpoint), TEXTS).sentence_embedding
    _edit(checkpoint / "sentence_bert_config.json", max_seq_length=24, do_lower_case=True)
    run = _import(checkpoint)
    _require_same_embeddings(checkpoint, run)
    assert (_answer(run, TEXTS).sentence_embedding - before).abs().max() > 1e-3


def test_length_is_capped_at_the_positions_there_are(write_sentence_transformer: Callable[..., Path]) -> None:
    assert _import(write_sentence_transformer("roberta", length=512)).model.config.max_tokens == 40


def test_imported_classifier_becomes_a_bundle(write_classifier: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = write_classifier("roberta")
    _import(checkpoint)
    manifest = export(tmp_path / "run", tmp_path / "bundle", _ignore).manifest
    assert [(head.name, head.output, head.labels) for head in manifest.heads] == [
        ("topic", "logits", ("zebra", "apple", "mango"))
    ]
    assert all(check.passed for check in manifest.variants["fp32"].gate)


def test_imported_classifier_is_judged_on_labelled_rows(write_classifier: Callable[..., Path], tmp_path: Path) -> None:
    _import(write_classifier("bert"))
    rows = [{"text": f"the courier rang {number}", "label": "apple"} for number in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(variants=("fp32",)).with_overrides((), [tmp_path / "test.jsonl"])
    manifest = export(tmp_path / "run", tmp_path / "bundle", _ignore, settings).manifest
    assert "accuracy_drop.topic" in {check.name for check in manifest.variants["fp32"].gate}


def test_embeddings_that_differ_are_refused(
    write_sentence_transformer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_sentence_transformer()
    forward = OurPooling.forward
    monkeypatch.setattr(OurPooling, "forward", lambda *args: forward(*args) + torch.arange(32) * 1e-2)
    with pytest.raises(CheckpointError, match="its embeddings and those of the run differ by"):
        _import(checkpoint)


def test_dropout_that_no_head_can_have_is_refused(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier("bert")
    config = json.loads((checkpoint / "config.json").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps({**config, "classifier_dropout": 1.0}))
    with pytest.raises(CheckpointError, match=r"its head has dropout 1\.0"):
        _import(checkpoint)


def test_imported_sentence_transformer_becomes_a_bundle_without_heads(
    write_sentence_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    _import(write_sentence_transformer("bert", Normalize()))
    manifest = export(tmp_path / "run", tmp_path / "bundle", _ignore).manifest
    assert manifest.heads == ()
    assert [output.name for output in manifest.outputs] == ["sentence_embedding"]


def test_run_is_called_after_the_checkpoint_or_as_told(write_classifier: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = write_classifier()
    assert _import(checkpoint).name == "checkpoint"
    assert load_run(import_checkpoint(str(checkpoint), tmp_path / "run", "mine", _ignore)).name == "mine"
    with pytest.raises(CheckpointError, match=r"name 'not mine'.*another name"):
        import_checkpoint(str(checkpoint), tmp_path / "other", "not mine", _ignore)
    assert not (tmp_path / "other").exists()


def test_progress_reports_what_was_taken_over(write_classifier: Callable[..., Path]) -> None:
    lines: list[str] = []
    _import(write_classifier(), say=lines.append)
    assert any("BertForSequenceClassification with 3 labels: zebra, apple, mango" in line for line in lines)
    assert any("differ by" in line for line in lines)


def test_run_keeps_nothing_of_the_classifiers_own_head_settings(write_classifier: Callable[..., Path]) -> None:
    run = _import(write_classifier())
    assert not {"id2label", "architectures", "problem_type"} & set(run.model.config.backbone)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"problem_type": "regression"}, "a number, not with a label"),
        ({"id2label": {0: "score"}, "label2id": {}}, "a number, not with a label"),
        ({"id2label": {0: "same", 1: "same"}, "label2id": {}}, "id2label"),
    ],
)
def test_classifier_of_another_kind_is_refused(
    write_classifier: Callable[..., Path], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        _import(write_classifier(**settings))


def test_classifier_without_a_trained_head_is_refused(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    weights = {
        name: value for name, value in load_file(checkpoint / "model.safetensors").items() if "pooler" not in name
    }
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weights bert\.pooler\.dense\.bias"):
        _import(checkpoint)


def test_logits_that_differ_are_refused(write_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    family = module._FAMILIES["BertForSequenceClassification"]
    wrong = module._Family(family.hidden, family.output, "relu", family.dropouts)
    monkeypatch.setitem(module._FAMILIES, "BertForSequenceClassification", wrong)
    checkpoint = write_classifier()
    with pytest.raises(CheckpointError, match="differ by"):
        _import(checkpoint)
    assert not (checkpoint.parent / "run").exists()


def test_backbone_alone_is_refused(write_sentence_transformer: Callable[..., Path], tmp_path: Path) -> None:
    write_sentence_transformer()
    with pytest.raises(CheckpointError, match=r"neither a SentenceTransformer .* \(BertModel\); train heads on it"):
        _import(tmp_path / "backbone")


@pytest.mark.parametrize("pooling", ["max", ("cls", "mean")])
def test_other_pooling_is_refused(write_sentence_transformer: Callable[..., Path], pooling: Any) -> None:
    with pytest.raises(CheckpointError, match=r"its pooling is (max|cls and mean)"):
        _import(write_sentence_transformer(pooling=pooling))


def test_pooling_without_the_prompt_is_refused(write_sentence_transformer: Callable[..., Path]) -> None:
    checkpoint = write_sentence_transformer()
    _edit(checkpoint / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(CheckpointError, match="include_prompt"):
        _import(checkpoint)


def test_other_modules_are_refused(write_sentence_transformer: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="has the module Dense"):
        _import(write_sentence_transformer("bert", Dense(32, 16)))


@pytest.mark.parametrize(
    "kinds", [["Transformer"], ["Pooling", "Transformer"], ["Transformer", "Normalize", "Pooling"]]
)
def test_modules_in_another_order_are_refused(
    write_sentence_transformer: Callable[..., Path], kinds: list[str]
) -> None:
    checkpoint = write_sentence_transformer()
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=f"its modules are {', '.join(kinds)}"):
        _import(checkpoint)


def test_modules_outside_the_checkpoint_are_refused(write_sentence_transformer: Callable[..., Path]) -> None:
    checkpoint = write_sentence_transformer()
    modules = json.loads((checkpoint / "modules.json").read_bytes())
    modules[1]["path"] = "../elsewhere"
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="leads out"):
        _import(checkpoint)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "cuts its embeddings to 8"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a SparseEncoder"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
    ],
)
def test_settings_that_change_the_answer_are_refused(
    write_sentence_transformer: Callable[..., Path], file: str, changes: dict[str, Any], reason: str
) -> None:
    checkpoint = write_sentence_transformer("bert", Normalize())
    _edit(checkpoint / file, **changes)
    with pytest.raises(CheckpointError, match=reason):
        _import(checkpoint)


def test_prompt_in_front_of_every_text_is_refused(write_sentence_transformer: Callable[..., Path]) -> None:
    checkpoint = write_sentence_transformer(prompts={"query": "query: "}, default_prompt_name="query")
    with pytest.raises(CheckpointError, match="puts the prompt 'query: '"):
        _import(checkpoint)


def test_prompts_that_are_asked_for_are_named(write_sentence_transformer: Callable[..., Path]) -> None:
    lines: list[str] = []
    checkpoint = write_sentence_transformer(prompts={"query": "query: ", "document": ""})
    _require_same_embeddings(checkpoint, _import(checkpoint, say=lines.append))
    assert any("its prompts (query) are not taken over" in line for line in lines)


def test_scorer_of_pairs_is_refused(write_classifier: Callable[..., Path], tmp_path: Path) -> None:
    CrossEncoder(str(write_classifier()), device="cpu").save_pretrained(str(tmp_path / "pairs"))
    with pytest.raises(CheckpointError, match=r"its modules are Transformer;"):
        _import(tmp_path / "pairs")


def test_older_scorer_of_pairs_is_refused(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    _edit(checkpoint / "config.json", sentence_transformers={"version": "4.1.0"})
    with pytest.raises(CheckpointError, match="is a CrossEncoder"):
        _import(checkpoint)


def test_checkpoint_that_reads_next_to_nothing_is_refused(write_sentence_transformer: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="max_tokens 4"):
        _import(write_sentence_transformer(length=4))


@pytest.mark.parametrize("content", ["[{}]", "3", "no json", '{"0": 1}'])
def test_damaged_modules_are_named(write_sentence_transformer: Callable[..., Path], content: str) -> None:
    checkpoint = write_sentence_transformer()
    (checkpoint / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json is not what sentence-transformers writes"):
        _import(checkpoint)


def test_damaged_weights_are_named(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    (checkpoint / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00damaged")
    with pytest.raises(CheckpointError, match="its weights cannot be read"):
        _import(checkpoint)


def test_tokenizer_files_that_contradict_each_other_are_refused(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    # Of this class, transformers makes the tokenizer anew and believes the settings, not tokenizer.json.
    _edit(checkpoint / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)
    with pytest.raises(CheckpointError, match="make different tokens of"):
        _import(checkpoint)


def test_pickled_weights_are_not_read(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickled"):
        _import(checkpoint)


def test_what_stands_at_the_destination_is_left_alone(write_classifier: Callable[..., Path]) -> None:
    checkpoint = write_classifier()
    (checkpoint.parent / "run").mkdir()
    (checkpoint.parent / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a run"):
        _import(checkpoint)
    assert (checkpoint.parent / "run" / "thesis.txt").read_text() == "years of work"
