"""Tokenizer of a checkpoint, checked against its model.

transformers makes up an empty tokenizer for a folder that has none, so the files are looked for here first.

::

    tokenizer.json, or vocab.txt, vocab.json + merges.txt, *.model --open_tokenizer--> Tokenizer
        it reads texts, each of its ids has an embedding, its added tokens are kept as single tokens
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedConfig

from .errors import BackboneError, first_line
from .tokenization import configured, load_tokenizer, textless_ids
from .weights import describe_foreign_content

_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
# Files of older tokenizers that transformers converts: each row is complete.
_VOCABULARIES = (("vocab.txt",), ("vocab.json", "merges.txt"))
_ROLES = ("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token")
# Tokens that control a model of a supported family, whether or not its files name their role.
_CONTROL_TOKENS = frozenset({"[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]", "<mask>", "<pad>", "<s>", "</s>", "<unk>"})
_SAVE = "save the tokenizer of the original model beside it with AutoTokenizer's save_pretrained"
# Short words in the most common scripts: every vocabulary knows a part of at least one.
_PROBES = ("the", "A", "1", "и", "的", "の", "한", "ال", "ה", "क", "ক", "த", "ก", "ა", "λ", "AAA ACG", ".", "é")
# Share of upper-case tokens above which a vocabulary is that of a cased model; that of an uncased one has none.
_CASED = 0.01


def open_tokenizer(reference: str, folder: Path, config: PreTrainedConfig) -> Tokenizer:
    """Reads the tokenizer of a checkpoint, with padding and truncation off.

    Special tokens that are the model's input, such as ``[USER]``, become ordinary added tokens: in a text each stays a
    single token, as in transformers. Tokens that control the model, such as ``[SEP]``, are read as text.

    Args:
        reference: The checkpoint, for error messages.
        folder: Its files.
        config: The model's configuration.

    Raises:
        BackboneError: There is no tokenizer, it is damaged, it reads no text, or it does not fit the model.
    """
    try:
        tokenizer = _read(reference, folder)
        settings = _read_settings(reference, folder)
        declared = {*_declared_tokens(settings), *_declared_tokens(_read_json(folder / "special_tokens_map.json"))}
        tokenizer = _with_kept_tokens(tokenizer, declared)
    except BackboneError:
        raise
    # The tokenizers library raises plain Exception.
    except Exception as error:
        raise BackboneError(reference, f"{folder} has no readable tokenizer: {first_line(error)}; {_SAVE}") from error
    _require_text(reference, tokenizer)
    _require_embeddings(reference, tokenizer, config)
    _require_same_case(reference, tokenizer, settings)
    return tokenizer


def input_tokens(tokenizer: Tokenizer) -> list[str]:
    """Returns the added tokens that are kept as single tokens in a text, in the order of their ids."""
    decoder = tokenizer.get_added_tokens_decoder()
    return [decoder[number].content for number in sorted(decoder) if not decoder[number].special]


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Returns the special tokens that are read as text where a text spells them out."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def _read(reference: str, folder: Path) -> Tokenizer:
    path = folder / _TOKENIZER
    if path.is_file() or path.is_symlink():
        _require_content(reference, path)
        return load_tokenizer(path)
    for names in _VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            for name in names:
                _require_content(reference, folder / name)
            return configured(_converted(reference, folder))
    if models := sorted(folder.glob("*.model")):
        _require_content(reference, models[0])
        if importlib.util.find_spec("sentencepiece") is None:
            hint = "pip install sentencepiece, or write tokenizer.json with save_pretrained where it is installed"
            reason = f"has no {_TOKENIZER}, and reading {models[0].name} requires the package sentencepiece: {hint}"
            raise BackboneError(reference, reason)
        return configured(_converted(reference, folder))
    known = ", ".join(" with ".join(names) for names in ((_TOKENIZER,), *_VOCABULARIES, ("*.model",)))
    raise BackboneError(reference, f"{folder} has no tokenizer ({known}); {_SAVE}")


def _converted(reference: str, folder: Path) -> Tokenizer:
    """Converts older tokenizer files, for example ``vocab.txt``, into a fast tokenizer."""
    slow: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not hasattr(slow, "backend_tokenizer"):
        reason = f"its tokenizer {type(slow).__name__} cannot be converted to {_TOKENIZER}; choose another checkpoint"
        raise BackboneError(reference, reason)
    tokenizer = Tokenizer.from_str(slow.backend_tokenizer.to_str())
    # Without a setting, transformers assumes an uncased model.
    words = [word for word in tokenizer.get_vocab(with_added_tokens=False) if not word.startswith("[")]
    cased = sum(word != word.lower() for word in words)
    unset = "do_lower_case" not in _read_settings(reference, folder)
    if _lowercases(tokenizer) and unset and cased > _CASED * len(words):
        reason = f"its vocabulary has {cased:,} tokens with capital letters, but no setting says that it is cased"
        hint = f'write {{"do_lower_case": false}} to {_SETTINGS}, or true if it is uncased'
        raise BackboneError(reference, f"{reason}; {hint}")
    return tokenizer


def _require_content(reference: str, path: Path) -> None:
    if found := describe_foreign_content(path):
        raise BackboneError(reference, "; ".join(found))


def _read_settings(reference: str, folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    if path.is_file():
        _require_content(reference, path)
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing file is empty."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")  # noqa: TRY004 - the file's fault, not the type's
    return content


def _declared_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields the tokens that a file gives a role, as strings or as objects with their properties."""
    for role in _ROLES:
        token = settings.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            yield content


def _with_kept_tokens(tokenizer: Tokenizer, declared: Iterable[str]) -> Tokenizer:
    """Makes every special token an ordinary added token, unless it controls the model."""
    control = {*_CONTROL_TOKENS, *declared, *tokenizer.encode("").tokens}
    content = json.loads(tokenizer.to_str())
    if isinstance(unknown := content["model"].get("unk_token"), str):
        control.add(unknown)
    kept = [token for token in content["added_tokens"] if token["special"] and token["content"] not in control]
    if not kept:
        return tokenizer
    for token in kept:
        token["special"] = False
    return configured(Tokenizer.from_str(json.dumps(content)))


def _require_text(reference: str, tokenizer: Tokenizer) -> None:
    """Rejects a tokenizer that reads nothing: whatever the text, it gives only special and unknown tokens."""
    textless = textless_ids(tokenizer)
    found = tokenizer.encode_batch(list(_PROBES))
    if all(textless.issuperset(one.ids) for one in found):
        reason = f"its tokenizer reads nothing: it turns {_PROBES[0]!r} into {' '.join(found[0].tokens) or 'no token'}"
        raise BackboneError(reference, f"{reason}, and other texts into special and unknown tokens too; {_SAVE}")


def _require_embeddings(reference: str, tokenizer: Tokenizer, config: PreTrainedConfig) -> None:
    """Rejects a tokenizer with an id that the model has no row of an embedding table for."""
    rows = int(config.vocab_size)
    encoding = tokenizer.encode(_PROBES[0])
    # A special token around a text may have another id than in the vocabulary.
    around = zip(encoding.tokens, encoding.ids, strict=True)
    token, largest = max([*tokenizer.get_vocab(with_added_tokens=True).items(), *around], key=lambda item: item[1])
    if largest >= rows:
        sizes = f"the tokenizer's largest id is {largest} (token {token!r}), the embedding has {rows} rows"
        hint = "take both from the same checkpoint, or call resize_token_embeddings where the tokens were added"
        raise BackboneError(reference, f"{sizes}: they do not belong together; {hint}")
    padding = int(config.pad_token_id or 0)
    if not 0 <= padding < rows:
        raise BackboneError(reference, f"config.json: pad_token_id {padding} is not among the {rows} token ids")
    # DistilBERT and others have no token types.
    if getattr(config, "type_vocab_size", 0) and (used := max(encoding.type_ids)):
        reason = f"its tokenizer gives a text the token type {used}, and only type 0 is supported"
        raise BackboneError(reference, f"{reason}; choose another checkpoint")


def _require_same_case(reference: str, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Rejects a tokenizer file and settings that disagree about capital letters."""
    declared = settings.get("do_lower_case")
    if not isinstance(tokenizer.normalizer, normalizers.BertNormalizer) or not isinstance(declared, bool):
        return
    if tokenizer.normalizer.lowercase != declared:
        reason = f"{_TOKENIZER} and {_SETTINGS} give different tokens for capital letters: the former has lowercase"
        values = f"{json.dumps(tokenizer.normalizer.lowercase)}, the latter do_lower_case {json.dumps(declared)}"
        raise BackboneError(reference, f"{reason} {values}; correct the one that is wrong")


def _lowercases(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer.normalizer, normalizers.BertNormalizer) and bool(tokenizer.normalizer.lowercase)
