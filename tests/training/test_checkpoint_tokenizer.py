"""A checkpoint's tokenizer reads texts as transformers does, or is refused with the cause and the fix."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.backbone import open_backbone
from polyhead_training.checkpoint_tokenizer import control_tokens, input_tokens
from polyhead_training.errors import BackboneError
from polyhead_training.tokenization import encode, load_tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModel, PreTrainedTokenizerFast

ROLES = {
    "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    "roberta": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
}


class Copies(dict[str, Path]):
    """Copies of the tiny checkpoints by family, each made when it is asked for."""

    def __init__(self, checkpoints: dict[str, Path], folder: Path) -> None:
        self._checkpoints, self._folder = checkpoints, folder

    def __missing__(self, family: str) -> Path:
        self[family] = Path(shutil.copytree(self._checkpoints[family], self._folder / family))
        return self[family]


@pytest.fixture
def copies(checkpoints: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of the tiny checkpoints that a test may damage."""
    return Copies(checkpoints, tmp_path)


def open_tokenizer(folder: Path) -> Tokenizer:
    return open_backbone(str(folder), None, Path()).tokenizer


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_bytes()) if path.exists() else {}
    edit(content)
    path.write_text(json.dumps(content))


def add_tokens(folder: Path, family: str, *tokens: AddedToken) -> PreTrainedTokenizerFast:
    """Adds tokens to a checkpoint as transformers does; returns its tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")), **ROLES[family]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


TEXTS = [
    "[USER] please fix [URL]",
    "[USER][USER] where is my parcel now [URL]!",
    "a[USER]b  [URL]  c",
    "[user] [url] [User]",
    "the mail@host is wet",
    "\u00a0[USER]\t[URL]\n",
]
# Whether a token is special, whether it is looked for in the normalized text, and what else it may have.
PROPERTIES: list[dict[str, bool]] = [
    {"special": special, "normalized": normalized, **more}
    for special in (True, False)
    for normalized in (True, False)
    for more in ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True})
]


def numbered(text: str, number: int) -> str:
    """Returns a text with other names of the tokens."""
    return re.sub("(?i)user|url", rf"\g<0>{number}", text)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_added_tokens_stay_single_tokens_as_in_transformers(copies: dict[str, Path], family: str) -> None:
    """Two tokens with each combination of properties, and texts with them."""
    tokens = [
        AddedToken(numbered(one, number), **properties)
        for number, properties in enumerate(PROPERTIES)
        for one in ("[USER]", "[URL]")
    ]
    texts = [numbered(text, number) for number in range(len(PROPERTIES)) for text in TEXTS]
    original = add_tokens(copies[family], family, *tokens)
    tokenizer = open_tokenizer(copies[family])
    assert list(encode(tokenizer, texts, 39)) == [original(text)["input_ids"] for text in texts]
    assert set(input_tokens(tokenizer)) == {token.content for token in tokens}
    for number in range(len(PROPERTIES)):
        assert tokenizer.token_to_id(f"[USER{number}]") in original(numbered(TEXTS[0], number))["input_ids"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_file_of_the_run_keeps_the_added_tokens(copies: dict[str, Path], family: str, tmp_path: Path) -> None:
    original = add_tokens(copies[family], family, AddedToken("[USER]", special=True))
    open_tokenizer(copies[family]).save(str(tmp_path / "tokenizer.json"))
    # The server reads this file with the library alone.
    reread = load_tokenizer(tmp_path / "tokenizer.json")
    assert list(encode(reread, TEXTS, 39)) == [original(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_tokens_that_control_the_model_are_read_as_text(copies: dict[str, Path], family: str) -> None:
    roles = {*ROLES[family].values(), "[EOD]"}
    add_tokens(copies[family], family, AddedToken("[USER]", special=True), AddedToken("[EOD]", special=True))
    edit_json(copies[family] / "tokenizer_config.json", lambda content: content.update(eos_token={"content": "[EOD]"}))
    tokenizer = open_tokenizer(copies[family])
    assert roles <= set(control_tokens(tokenizer))
    controlling = {tokenizer.token_to_id(token) for token in roles - {ROLES[family]["unk_token"]}}
    (ids,) = encode(tokenizer, [" ".join(sorted(roles))], 39)
    assert not controlling & set(ids[1:-1])


def test_tokenizer_without_such_tokens_is_unchanged(copies: dict[str, Path], tmp_path: Path) -> None:
    open_tokenizer(copies["bert"]).save(str(tmp_path / "tokenizer.json"))
    expected = Tokenizer.from_file(str(copies["bert"] / "tokenizer.json"))
    expected.no_padding()
    expected.no_truncation()
    assert (tmp_path / "tokenizer.json").read_text() == expected.to_str(pretty=True)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "BertTokenizer"}])
def test_folder_without_a_tokenizer_is_refused(
    copies: dict[str, Path], family: str, settings: dict[str, str] | None
) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (copies[family] / name).unlink(missing_ok=True)
    if settings:
        edit_json(copies[family] / "tokenizer_config.json", lambda content: content.update(settings))
    with pytest.raises(BackboneError, match=r"has no tokenizer \(tokenizer\.json.*\); save the tokenizer of the orig"):
        open_tokenizer(copies[family])


def test_half_of_a_vocabulary_is_no_tokenizer(copies: dict[str, Path]) -> None:
    (copies["roberta"] / "tokenizer.json").unlink()
    (copies["roberta"] / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(BackboneError, match=r"vocab\.json with merges\.txt"):
        open_tokenizer(copies["roberta"])


@pytest.mark.parametrize("unknown", ["[UNK]", None])
def test_tokenizer_that_reads_nothing_is_refused(copies: dict[str, Path], unknown: str | None) -> None:
    def empty(content: dict[str, Any]) -> None:
        vocabulary = {token: number for token, number in content["model"]["vocab"].items() if token.startswith("[")}
        if unknown:
            content["model"]["vocab"] = vocabulary
        else:
            content["model"] = {"type": "BPE", "vocab": vocabulary, "merges": []}

    edit_json(copies["bert"] / "tokenizer.json", empty)
    with pytest.raises(BackboneError, match=r"its tokenizer reads nothing: it turns 'the' into \[CLS\] .*save_pretr"):
        open_tokenizer(copies["bert"])


def test_tokenizer_without_latin_letters_is_accepted(copies: dict[str, Path]) -> None:
    def russian(content: dict[str, Any]) -> None:
        kept = {token: number for token, number in content["model"]["vocab"].items() if token.startswith("[")}
        content["model"]["vocab"] = {**kept, "и": len(kept)}

    edit_json(copies["bert"] / "tokenizer.json", russian)
    assert open_tokenizer(copies["bert"]).encode("и").tokens == ["[CLS]", "и", "[SEP]"]


def test_sentencepiece_file_alone_names_the_package_and_the_alternative(
    copies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copies["roberta"] / "tokenizer.json").unlink()
    (copies["roberta"] / "sentencepiece.bpe.model").write_bytes(b"\x0a\x0b\x0a\x05")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find_spec(name))
    message = (
        r"sentencepiece\.bpe\.model requires .*pip install sentencepiece, or write tokenizer\.json with save_pretrained"
    )
    with pytest.raises(BackboneError, match=message):
        open_tokenizer(copies["roberta"])


def _hole(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update(the=1234))


def _added(folder: Path) -> None:
    token = {"id": 1234, "content": "late", "special": False, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    edit_json(folder / "tokenizer.json", lambda content: content["added_tokens"].append({**token, **flags}))
    edit_json(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update({"late": 1234}))


def _template(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [1234]

    edit_json(folder / "tokenizer.json", edit)


@pytest.mark.parametrize("damage", [_hole, _added, _template], ids=["hole", "added token", "special token"])
def test_id_beyond_the_embedding_is_refused(copies: dict[str, Path], damage: Callable[[Path], None]) -> None:
    rows = json.loads((copies["bert"] / "config.json").read_bytes())["vocab_size"]
    damage(copies["bert"])
    with pytest.raises(BackboneError, match=rf"largest id is 1234 .*the embedding has {rows} rows.*resize_token_emb"):
        open_tokenizer(copies["bert"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": -1}, "pad_token_id -1 is not among the"),
        ({"pad_token_id": 5000}, "pad_token_id 5000 is not among the"),
        ({"type_vocab_size": 0}, "type_vocab_size 0 leaves no type"),
    ],
)
def test_configuration_without_a_row_for_an_input_is_refused(
    copies: dict[str, Path], changes: dict[str, int], message: str
) -> None:
    edit_json(copies["bert"] / "config.json", lambda content: content.update(changes))
    with pytest.raises(BackboneError, match=message):
        open_tokenizer(copies["bert"])


def test_token_types_other_than_zero_are_refused(copies: dict[str, Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["post_processor"]["single"][1]["Sequence"]["type_id"] = 1

    edit_json(copies["bert"] / "tokenizer.json", edit)
    with pytest.raises(BackboneError, match="gives a text the token type 1"):
        open_tokenizer(copies["bert"])


def test_contradiction_about_capital_letters_is_refused(copies: dict[str, Path]) -> None:
    edit_json(copies["bert"] / "tokenizer_config.json", lambda content: content.update(do_lower_case=True))
    open_tokenizer(copies["bert"])
    edit_json(copies["bert"] / "tokenizer_config.json", lambda content: content.update(do_lower_case=False))
    with pytest.raises(BackboneError, match="the former has lowercase true, the latter do_lower_case false"):
        open_tokenizer(copies["bert"])


def test_cased_vocabulary_requires_a_setting(copies: dict[str, Path]) -> None:
    folder = copies["distilbert"]
    words = (folder / "vocab.txt").read_text().split("\n")
    # The last letters of the alphabet of the tiny vocabulary become capitals.
    cased = [word.upper() if len(word) == 1 else word for word in words]
    (folder / "vocab.txt").write_text("\n".join(cased))
    with pytest.raises(BackboneError, match=r"tokens with capital letters.*write .\"do_lower_case\": false"):
        open_tokenizer(folder)
    edit_json(folder / "tokenizer_config.json", lambda content: content.update(do_lower_case=False))
    assert open_tokenizer(folder).encode("T").tokens == ["[CLS]", "T", "[SEP]"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<!DOCTYPE html>", "is a web page"), (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer")],
)
def test_file_with_other_content_is_named(copies: dict[str, Path], name: str, content: bytes, message: str) -> None:
    (copies["bert"] / name).write_bytes(content)
    with pytest.raises(BackboneError, match=f"{name} {message}"):
        open_tokenizer(copies["bert"])
