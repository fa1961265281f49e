"""Somebody else's finished model as a run directory, which is exported and served without being trained.

::

    SentenceTransformer    --modules.json--> pooling, length --+
    sequence classifier    --config.json---> labels, head -----+--> model --held against the original--> RUN_DIR
    their backbone, tokenizer --open_backbone------------------+

A classifier's head becomes the one head ``topic``. Its hidden layer is BERT's pooler or RoBERTa's dense layer, with
tanh, or DistilBERT's pre_classifier, with ReLU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from polyhead_training.backbone import Backbone, open_backbone
from polyhead_training.config import Config, DataConfig, HeadConfig, ModelConfig, TrainingConfig
from polyhead_training.model import ActivationKind, EmbeddingPoolingKind, PolyheadModel
from polyhead_training.runs.run_directory import staged_run, write_run
from polyhead_training.tokenization import encode, pad
from pydantic import ValidationError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from polyhead_export.errors import ExportError
from polyhead_export.golden import golden_texts

HEAD = "topic"
# Chosen: far above what two orders of adding up make of a logit in fp32, far below what a wrong layer makes of one.
_LIMIT = 1e-4
_MODULE_PREFIX = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Normalize")
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What the settings of a Transformer module must be where they are given; the others change what it answers.
_TEXT_SETTINGS: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_HARMLESS_SETTINGS = frozenset({"max_seq_length", "do_lower_case", "unpad_inputs"})
_NORMALIZE_SETTINGS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
# What a classifier's configuration says about its head; the run's own says it for the run.
_HEAD_FIELDS = frozenset({"_name_or_path", "architectures", "id2label", "label2id", "num_labels", "problem_type"})
_LOADING_ERRORS = (OSError, RuntimeError, SafetensorError, ValueError)


@dataclass(frozen=True)
class _Family:
    """Where a classifier of a family keeps its head.

    Attributes:
        hidden: Path of the hidden layer in the classifier.
        output: Path of the output layer.
        activation: What stands between the two.
        dropouts: Fields of its configuration that say the dropout; the first one that is given counts.
    """

    hidden: str
    output: str
    activation: ActivationKind
    dropouts: tuple[str, ...]


_BERT = _Family("bert.pooler.dense", "classifier", "tanh", ("classifier_dropout", "hidden_dropout_prob"))
_ROBERTA = _Family("classifier.dense", "classifier.out_proj", "tanh", ("classifier_dropout", "hidden_dropout_prob"))
_DISTILBERT = _Family("pre_classifier", "classifier", "relu", ("seq_classif_dropout",))
_FAMILIES = {
    "BertForSequenceClassification": _BERT,
    "CamembertForSequenceClassification": _ROBERTA,
    "DistilBertForSequenceClassification": _DISTILBERT,
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
}


class CheckpointError(ExportError):
    """A checkpoint cannot be taken over as it is.

    Attributes:
        reference: The folder or hub id that was asked for.
        reason: What is wrong.
        mend: What to do about it.
    """

    def __init__(self, reference: str, reason: str, mend: str) -> None:
        super().__init__(f"checkpoint {reference}: {reason}; {mend}")
        self.reference = reference
        self.reason = reason
        self.mend = mend


@dataclass(frozen=True)
class _Imported:
    """A checkpoint as a model of ours.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, with padding and truncation off.
        heads: The heads with their labels.
    """

    model: PolyheadModel
    tokenizer: Tokenizer
    heads: tuple[HeadConfig, ...] = ()


def import_checkpoint(reference: str, destination: Path, name: str | None, say: Callable[[str], None]) -> Path:
    """Writes a run directory that answers as the checkpoint does, without training.

    A SentenceTransformer becomes a run without heads and with the same embedding. A sequence classifier becomes a run
    with the softmax head ``topic`` of the same logits; its embedding is the mean of its token vectors, of length 1.
    What differs: special tokens that are spelt out in a text are text here.

    Args:
        reference: A folder, or a hub id.
        destination: The run directory; a run that stands there is replaced, anything else is not.
        name: Name of the model; the last part of ``reference`` when None.
        say: Takes each line of progress.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: The checkpoint is of neither kind, or has a part that a run cannot have.
        BackboneError: It is not found, is damaged or pickled, or its family is not supported.
        RunError: ``destination`` holds something else than a run, or cannot be written.
    """
    name = name or Path(reference).resolve().name
    with staged_run(destination) as folder:
        found = _read(reference, say)
        write_run(folder, _config(reference, name, found), found.heads, found.model, found.tokenizer)
    say(f"{name}: reads {found.model.config.max_tokens} tokens of a text")
    return destination


def _read(reference: str, say: Callable[[str], None]) -> _Imported:
    root = Path(reference)
    # SentenceTransformers of before 2021 keep the backbone one folder below.
    nested = _modules(reference, root)["Transformer"] if (root / "modules.json").is_file() else ""
    backbone = open_backbone(str(root / nested) if nested else reference, None, Path())
    root = root if nested else backbone.folder
    if (root / "modules.json").is_file():
        return _read_sentence_transformer(reference, root, backbone, say)
    architectures = backbone.config.architectures or ["of no architecture"]
    if architectures[0] not in _FAMILIES:
        reason = f"is neither a SentenceTransformer (no modules.json) nor a sequence classifier ({architectures[0]})"
        raise CheckpointError(reference, reason, "train heads on it with polyhead-train, as model.backbone")
    return _read_classifier(reference, backbone, architectures[0], say)


def _config(reference: str, name: str, found: _Imported) -> Config:
    """The configuration that such a model would have; without data and without stages, since nothing is trained."""
    ours = found.model.config
    settings: dict[str, Any] = {
        "backbone": reference,
        "pooling": ours.pooling,
        "embedding_pooling": ours.embedding_pooling,
        "normalize": ours.normalize,
        "max_tokens": ours.max_tokens,
    }
    try:
        # Only what is trained needs heads and rows: the two are put in unchecked.
        model = ModelConfig(**settings).model_copy(update={"heads": found.heads})
        data = DataConfig.model_construct(train=())
        return Config(name=name, model=model, data=data, training=TrainingConfig(stages=()))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        mend = "give the import another name" if field == "name" else "choose another checkpoint"
        raise CheckpointError(reference, f"{field} {fault['input']!r}: {fault['msg']}", mend) from None


def _read_sentence_transformer(reference: str, root: Path, backbone: Backbone, say: Callable[[str], None]) -> _Imported:
    modules = _modules(reference, root)
    _require_plain(reference, root, say)
    pooling = _pooling(reference, root / modules["Pooling"])
    settings = _transformer_settings(reference, backbone.folder)
    normalize = "Normalize" in modules
    if normalize:
        found = _read_settings(reference, root / modules["Normalize"] / "config.json")
        _require_known(reference, "Normalize", found, _NORMALIZE_SETTINGS)
    theirs = _original_tokenizer(reference, backbone)
    max_tokens = min(settings.get("max_seq_length") or theirs.model_max_length, backbone.usable_positions)
    _require_same_tokens(reference, backbone, theirs, max_tokens)
    model = _build(
        reference, backbone, pooling=pooling, embedding_pooling=pooling, normalize=normalize, max_tokens=max_tokens
    )
    lower = bool(settings.get("do_lower_case"))
    if lower:
        _lower(backbone.tokenizer)
    apart = _largest_distance(model, backbone, theirs, lower)
    if not apart <= _LIMIT:
        reason = f"its embeddings and those of the run differ by {apart:.3g} (limit {_LIMIT:g})"
        raise CheckpointError(reference, reason, "nothing was written: report it with the checkpoint's name")
    say(
        f"{reference}: a SentenceTransformer, pooling {pooling}, {'' if normalize else 'not '}normalized, without heads"
    )
    return _Imported(model, backbone.tokenizer)


def _modules(reference: str, root: Path) -> dict[str, str]:
    """Folder of each module by its kind: Transformer, Pooling, perhaps Normalize, in this order."""
    content = _read_json(reference, root / "modules.json")
    try:
        modules = {_kind(str(entry["type"])): str(entry["path"]) for entry in content}
    except (KeyError, TypeError):
        raise _damaged(reference, "modules.json") from None
    if strange := [kind for kind in modules if kind not in _KINDS]:
        mend = "only Transformer, Pooling and Normalize can be taken over: choose another checkpoint"
        raise CheckpointError(reference, f"has the module {strange[0]}", mend)
    if tuple(modules) not in (_KINDS, _KINDS[:2]) or len(content) != len(modules):
        reason = f"its modules are {', '.join(_kind(entry['type']) for entry in content)}"
        raise CheckpointError(reference, reason, "only Transformer, Pooling and perhaps Normalize can be taken over")
    if any(Path(path).is_absolute() or ".." in Path(path).parts for path in modules.values()):
        raise CheckpointError(reference, "modules.json leads out of the checkpoint", "do not use it")
    return modules


def _kind(class_name: str) -> str:
    """Name of a class of sentence-transformers, wherever its releases keep it; whole name of any other class."""
    return class_name.rpartition(".")[2] if class_name.startswith(_MODULE_PREFIX) else class_name


def _require_plain(reference: str, root: Path, say: Callable[[str], None]) -> None:
    """Refuses a model that encodes a text otherwise than as its modules say."""
    settings = _read_settings(reference, root / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        mend = "only a SentenceTransformer and a sequence classifier of single texts can be taken over"
        raise CheckpointError(reference, f"is a {kind}", mend)
    if settings.get("truncate_dim") is not None:
        reason = f"cuts its embeddings to {settings['truncate_dim']} numbers"
        raise CheckpointError(reference, reason, "remove truncate_dim from config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    default = settings.get("default_prompt_name")
    if default in prompts:
        reason = f"puts the prompt {prompts[default]!r} in front of every text, which a run does not"
        mend = "set default_prompt_name to null in config_sentence_transformers.json, and put it there yourself"
        raise CheckpointError(reference, reason, mend)
    if prompts:
        say(f"{reference}: its prompts ({', '.join(prompts)}) are not taken over; put them in front of texts yourself")


def _pooling(reference: str, folder: Path) -> EmbeddingPoolingKind:
    settings = _read_settings(reference, folder / "config.json")
    if not settings.get("include_prompt", True):
        raise CheckpointError(reference, "its pooling leaves prompts out (include_prompt)", "choose another checkpoint")
    given = settings.get("pooling_mode") or [mode for key, mode in _POOLING_KEYS.items() if settings.get(key)]
    # sentence-transformers takes the mean where nothing is said.
    modes = [given] if isinstance(given, str) else list(given) or ["mean"]
    if modes == ["cls"]:
        return "cls"
    if modes == ["mean"]:
        return "mean"
    found = " and ".join(map(str, modes))
    raise CheckpointError(reference, f"its pooling is {found}", "only cls or mean can be taken over")


def _transformer_settings(reference: str, folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("sentence_*_config.json"))
    settings = _read_settings(reference, files[0]) if files else {}
    others = {key: value for key, value in settings.items() if key not in _HARMLESS_SETTINGS}
    _require_known(reference, "Transformer", others, _TEXT_SETTINGS)
    return settings


def _require_known(reference: str, module: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if value and value != known.get(key):
            mend = "a run cannot have it: choose another checkpoint"
            raise CheckpointError(reference, f"its module {module} has {key} = {json.dumps(value)}", mend)


def _lower(tokenizer: Tokenizer) -> None:
    """What sentence-transformers makes of ``do_lower_case``."""
    normalizers = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = Sequence([Lowercase(), *normalizers])


def _read_classifier(reference: str, backbone: Backbone, architecture: str, say: Callable[[str], None]) -> _Imported:
    # sentence-transformers leaves its mark on the classifiers that it trained, which read two texts at once.
    if hasattr(backbone.config, "sentence_transformers"):
        raise CheckpointError(reference, "is a CrossEncoder, which scores pairs of texts", "choose another checkpoint")
    labels = _labels(reference, backbone.config)
    theirs = _original_tokenizer(reference, backbone)
    max_tokens = min(theirs.model_max_length, backbone.usable_positions)
    _require_same_tokens(reference, backbone, theirs, max_tokens)
    original = _original_classifier(reference, backbone.folder)
    family = _FAMILIES[architecture]
    hidden = original.get_submodule(family.hidden)
    # Dropout does nothing to answers; it is kept for who trains on.
    dropout = next(
        (found for key in family.dropouts if (found := getattr(original.config, key, None)) is not None), 0.0
    )
    try:
        head = HeadConfig(
            name=HEAD, kind="softmax", field="label", labels=labels, hidden_size=hidden.out_features, dropout=dropout
        )
    except ValidationError as error:
        fault = error.errors()[0]
        reason = f"its head has {'.'.join(map(str, fault['loc']))} {fault['input']!r}: {fault['msg']}"
        raise CheckpointError(reference, reason, "mend its config.json") from None
    fields = head.model_dump(mode="json", include={"name", "kind", "labels", "hidden_size", "dropout"})
    model = _build(
        reference,
        backbone,
        pooling="cls",
        embedding_pooling="mean",
        max_tokens=max_tokens,
        heads=[{**fields, "activation": family.activation}],
    )
    layers: Any = model.heads[HEAD].layers
    layers[1].load_state_dict(hidden.state_dict())
    layers[4].load_state_dict(original.get_submodule(family.output).state_dict())
    apart = _largest_difference(model, original, backbone.tokenizer)
    # Written so that what is no number is refused too.
    if not apart <= _LIMIT:
        reason = f"its logits and those of the run differ by {apart:.3g} (limit {_LIMIT:g})"
        raise CheckpointError(reference, reason, "nothing was written: report it with the checkpoint's name")
    say(f"{reference}: a {architecture} with {len(labels)} labels: {', '.join(labels)}")
    say(f"its logits and those of the run differ by {apart:.2g} at most (limit {_LIMIT:g})")
    return _Imported(model, backbone.tokenizer, (head,))


def _labels(reference: str, config: PreTrainedConfig) -> tuple[str, ...]:
    """The labels in the order of the logits."""
    if config.problem_type == "multi_label_classification":
        reason = "gives each label a probability of its own (problem_type multi_label_classification)"
        raise CheckpointError(
            reference, reason, "a run's softmax head gives one label of many: choose another checkpoint"
        )
    if config.num_labels < 2 or config.problem_type == "regression":
        reason = (
            f"answers with a number, not with a label ({config.num_labels} logits, problem_type regression or none)"
        )
        raise CheckpointError(reference, reason, "choose a checkpoint that has labels")
    labels = tuple(str(config.id2label.get(index, "")) for index in range(config.num_labels))
    if len(set(labels)) < len(labels) or "" in labels:
        raise CheckpointError(
            reference, f"its labels are {list(labels)}", "give each its own in config.json's id2label"
        )
    return labels


def _original_classifier(reference: str, folder: Path) -> PreTrainedModel:
    try:
        original, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise _unreadable(reference, error) from error
    # transformers only warns, and draws them at random.
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(reference, f"lacks the weights {missing[0]}", "its head was not trained: choose another")
    return cast(PreTrainedModel, original.eval())


def _largest_difference(ours: PolyheadModel, theirs: PreTrainedModel, tokenizer: Tokenizer) -> float:
    """The largest difference of any logit on the golden texts; of a logit above 1, as a share of it."""
    config = ours.config
    worst = []
    for ids in encode(tokenizer, golden_texts(config.max_tokens), config.max_tokens):
        input_ids, mask = map(torch.from_numpy, pad([ids], config.pad_token_id))  # (1, T)
        with torch.inference_mode():
            expected = theirs(input_ids=input_ids, attention_mask=mask).logits  # (1, labels)
            found = ours(input_ids, mask).logits[HEAD]  # (1, labels)
        worst.append(((found - expected).abs() / expected.abs().clamp(min=1)).max())
    return float(torch.stack(worst).max())


def _largest_distance(ours: PolyheadModel, backbone: Backbone, theirs: Any, lower: bool) -> float:
    """The largest difference of any number of an embedding on the golden texts; of one above 1, as a share of it.

    The other side is computed as sentence-transformers does: the checkpoint's own tokenizer and backbone, the first
    token's vector or the mean over the tokens, scaled to length 1 where the modules say so.
    """
    original = AutoModel.from_pretrained(
        backbone.folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32
    ).eval()
    config = ours.config
    texts = _without_special_tokens(theirs, config.max_tokens)
    worst = []
    for text, ids in zip(texts, encode(backbone.tokenizer, texts, config.max_tokens), strict=True):
        spelt = text.lower() if lower else text
        batch = theirs(spelt, truncation=True, max_length=config.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden = original(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            expected = hidden[:, 0] if config.embedding_pooling == "cls" else hidden.mean(dim=1)  # (1, H)
            if config.normalize:
                expected = torch.nn.functional.normalize(expected, dim=-1)
            found = ours(*map(torch.from_numpy, pad([ids], config.pad_token_id))).sentence_embedding  # (1, H)
        worst.append(((found - expected).abs() / expected.abs().clamp(min=1)).max())
    return float(torch.stack(worst).max())


def _without_special_tokens(theirs: Any, max_tokens: int) -> list[str]:
    """The golden texts but those that spell out special tokens, which other programs do not read as text."""
    return [text for text in golden_texts(max_tokens) if not any(token in text for token in theirs.all_special_tokens)]


def _original_tokenizer(reference: str, backbone: Backbone) -> Any:
    """The tokenizer as transformers loads it, with what ``tokenizer_config.json`` says."""
    try:
        return AutoTokenizer.from_pretrained(backbone.folder, local_files_only=True, trust_remote_code=False)
    # Whatever the library at fault raises.
    except Exception as error:
        mend = "write it again with AutoTokenizer's save_pretrained"
        raise CheckpointError(reference, f"its tokenizer cannot be loaded ({_first_line(error)})", mend) from error


def _require_same_tokens(reference: str, backbone: Backbone, theirs: Any, max_tokens: int) -> None:
    """Refuses a checkpoint of which tokenizer.json alone gives other tokens than all of its files together."""
    texts = _without_special_tokens(theirs, max_tokens)
    for text, ids in zip(texts, encode(backbone.tokenizer, texts, max_tokens), strict=True):
        if theirs(text, truncation=True, max_length=max_tokens)["input_ids"] != ids:
            reason = f"tokenizer.json and tokenizer_config.json make different tokens of {text[:40]!r}"
            mend = "load it with AutoTokenizer and write it again with save_pretrained, if its answers are right"
            raise CheckpointError(reference, reason, mend)


def _build(reference: str, backbone: Backbone, **settings: Any) -> PolyheadModel:
    try:
        model = PolyheadModel.from_backbone(backbone.folder, pad_token_id=backbone.pad_token_id, **settings)
    except _LOADING_ERRORS as error:
        raise _unreadable(reference, error) from error
    kept = {key: value for key, value in model.config.backbone.items() if key not in _HEAD_FIELDS}
    model.config.backbone = kept
    return cast(PolyheadModel, model.eval())


def _read_settings(reference: str, path: Path) -> dict[str, Any]:
    """A module's settings; none without the file, as sentence-transformers has it."""
    if not path.is_file():
        return {}
    content = _read_json(reference, path)
    if not isinstance(content, dict):
        raise _damaged(reference, path.name)
    return content


def _read_json(reference: str, path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise _damaged(reference, path.name) from None


def _damaged(reference: str, file: str) -> CheckpointError:
    return CheckpointError(reference, f"{file} is not what sentence-transformers writes", "fetch the checkpoint again")


def _unreadable(reference: str, error: Exception) -> CheckpointError:
    reason = f"its weights cannot be read ({_first_line(error)})"
    return CheckpointError(reference, reason, "fetch the checkpoint again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
