"""The bundle's format: what was written comes back, and nothing that was touched since does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polyhead_export import bundle
from polyhead_export.bundle import (
    Bundle,
    BundleError,
    Check,
    Embedding,
    Fingerprints,
    FormatError,
    Golden,
    Head,
    IntegrityError,
    Manifest,
    Tensor,
    Variant,
    codec,
    store,
)

FILES = {"model.onnx": b"graph", "tokenizer.json": b"{}", "torch/config.json": b"{ }", "README.md": "é\n".encode()}
HEADS = (
    Head("topic", "softmax", "logits", ("app", "billing", "support"), temperature=1.5),
    Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
)
MANIFEST = Manifest(
    name="demo",
    files={},
    inputs=(
        Tensor("input_ids", "int64", ("batch", "sequence")),
        Tensor("attention_mask", "int64", ("batch", "sequence")),
    ),
    outputs=(
        Tensor("sentence_embedding", "float32", ("batch", 2)),
        Tensor("logits", "float32", ("batch", 3)),
        Tensor("sentiment_logits", "float32", ("batch", 1)),
    ),
    embedding=Embedding("sentence_embedding", 2, "mean", normalized=True),
    heads=HEADS,
    max_tokens=64,
    pad_token_id=0,
    variants={
        "fp32": Variant(
            file="model.onnx",
            batch_invariant=True,
            golden_tolerance=1e-3,
            fingerprints=Fingerprints("0" * 16, {"topic": "1" * 16, "sentiment": "2" * 16}),
            gate=(Check("names", 0, 0), Check("difference.logits", 3e-7, 1e-4)),
        )
    },
    golden=(Golden("good day 🙂", (0.6, -0.8), {"topic": (0.1, 0.2, 0.3), "sentiment": (-1.5,)}),),
    built_with={"torch": "2.0"},
)


def _sources(folder: Path) -> dict[str, Path]:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return {name: folder / name for name in FILES}


def _written(folder: Path, manifest: Manifest = MANIFEST) -> Bundle:
    return bundle.write(folder / "demo", manifest, _sources(folder / "sources"))


def _changed(**fields: Any) -> Manifest:
    return dataclasses.replace(MANIFEST, **fields)


def _variant(**fields: Any) -> Manifest:
    return _changed(variants={"fp32": dataclasses.replace(MANIFEST.variants["fp32"], **fields)})


def _rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Forges a manifest whose digest is right, as somebody would who knows the format."""
    document = json.loads(path.read_bytes())
    document.pop("digest")
    change(document)

    def spell(value: object) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    path.write_bytes(spell({**document, "digest": hashlib.sha256(spell(document)).hexdigest()}))


def test_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = _written(tmp_path)
    loaded = bundle.load(tmp_path / "demo")
    assert loaded == written
    assert dataclasses.replace(loaded.manifest, files={}) == MANIFEST
    assert {name: loaded.file(name).read_bytes() for name in loaded.manifest.files} == FILES
    assert loaded.model_id == f"demo-{loaded.digest[:12]}"


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = _written(tmp_path / "a"), _written(tmp_path / "b")
    assert (first.path / "bundle.json").read_bytes() == (second.path / "bundle.json").read_bytes()


def test_file_that_is_not_listed_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is not a file of this bundle"):
        _written(tmp_path).file("../secret")


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_every_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    path = _written(tmp_path).path / name
    content = path.read_bytes()
    # Every bit of the small files; in the manifest, each byte once is enough to meet every kind of character.
    bits = range(len(content) * 8) if name != "bundle.json" else range(0, len(content) * 8, 9)
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError if name == "bundle.json" else IntegrityError):
            bundle.load(tmp_path / "demo")
    path.write_bytes(content)
    bundle.load(tmp_path / "demo")


def _remove(root: Path) -> None:
    (root / "model.onnx").unlink()


def _remove_manifest(root: Path) -> None:
    (root / "bundle.json").unlink()


def _add(root: Path) -> None:
    (root / "torch" / "pytorch_model.bin").write_bytes(b"pickle")


def _add_folder(root: Path) -> None:
    (root / "extra").mkdir()


def _rename(root: Path) -> None:
    (root / "model.onnx").rename(root / "Model.onnx")


def _lengthen(root: Path) -> None:
    (root / "model.onnx").write_bytes(b"graph, and more")


def _link(root: Path) -> None:
    (root / "model.onnx").rename(root.parent / "elsewhere")
    (root / "model.onnx").symlink_to(root.parent / "elsewhere")


def _link_folder(root: Path) -> None:
    (root / "torch").rename(root.parent / "elsewhere")
    (root / "torch").symlink_to(root.parent / "elsewhere")


def _link_hard(root: Path) -> None:
    os.link(root / "model.onnx", root.parent / "second-name")


def _pipe(root: Path) -> None:
    (root / "model.onnx").unlink()
    os.mkfifo(root / "model.onnx")


DAMAGES: dict[Callable[[Path], None], str] = {
    _remove: "is missing",
    _remove_manifest: "this directory is not a bundle",
    _add: "is not listed",
    _add_folder: "is not listed",
    _rename: "is not listed",
    _lengthen: "has 15 bytes; bundle.json says 5",
    _link: "is not a plain file",
    _link_folder: "is a link",
    _link_hard: "second hard link",
    _pipe: "is not a plain file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_directory_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root = _written(tmp_path).path
    damage(root)
    with pytest.raises(BundleError, match=DAMAGES[damage]):
        bundle.load(root)


def test_link_to_a_manifest_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path).path / "bundle.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(FormatError, match="is not a plain file"):
        bundle.load(path.parent)


def test_missing_directory_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such directory"):
        bundle.load(tmp_path / "nothing")


def test_oversized_manifest_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _written(tmp_path).path
    monkeypatch.setattr(store, "_MAX_MANIFEST_BYTES", 100)
    with pytest.raises(FormatError, match="larger than 100 bytes"):
        bundle.load(root)


def test_unreadable_file_is_an_integrity_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _written(tmp_path).path

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "sha256_of", refuse)
    with pytest.raises(IntegrityError, match="cannot be read: Permission denied"):
        bundle.load(root)


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown format version": (lambda d: d.update(format_version=2), "format_version 2; this release reads 1"),
    "format version of another type": (lambda d: d.update(format_version=True), "format_version True"),
    "unknown field": (lambda d: d.update(extra=1), "unknown fields \\['extra'\\]"),
    "missing field": (lambda d: d.pop("pad_token_id"), "missing fields \\['pad_token_id'\\]"),
    "number for a text": (lambda d: d.update(name=1), "bundle.json.name: 1 has the wrong type"),
    "true for a number": (lambda d: d.update(max_tokens=True), "bundle.json.max_tokens: True has the wrong type"),
    "number beyond a float": (lambda d: d["heads"][0].update(temperature=10**400), "too large"),
    "unknown kind of head": (lambda d: d["heads"][0].update(kind="softplus"), "'softplus' is not one of"),
    "parent folder": (lambda d: d["files"].update({"../x": d["files"]["model.onnx"]}), "'../x' is not a name"),
    "absolute path": (lambda d: d["files"].update({"/x": d["files"]["model.onnx"]}), "'/x' is not a name"),
    "folder named ..": (lambda d: d["files"].update({"torch/..": d["files"]["model.onnx"]}), "is not a name"),
    "itself": (lambda d: d["files"].update({"bundle.json": d["files"]["model.onnx"]}), "is not a name"),
    "failed gate": (lambda d: d["variants"]["fp32"]["gate"][0].update(value=1), "gate: did not pass names"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_manifest_is_refused(tmp_path: Path, forgery: str) -> None:
    change, message = FORGERIES[forgery]
    path = _written(tmp_path).path / "bundle.json"
    _rewrite_manifest(path, change)
    with pytest.raises(FormatError, match=message):
        bundle.load(path.parent)


def test_forger_of_these_tests_can_write_a_valid_manifest(tmp_path: Path) -> None:
    path = _written(tmp_path).path / "bundle.json"
    _rewrite_manifest(path, lambda document: document.update(name="other"))
    assert bundle.load(path.parent).manifest.name == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "demo"', '"name": "demo", "name": "evil"', "a key stands twice"),
        ('"temperature": 1.5', '"temperature": NaN', "NaN is not a JSON number"),
        ('"temperature": 1.5', '"temperature": -Infinity', "-Infinity is not a JSON number"),
        ('"temperature": 1.5', '"temperature": 1e999', "1e999 is too large"),
        ('"temperature": 1.5', '"temperature": 1.50', "digest does not match"),
        ('"name": "demo"', '"name":  "demo"', "digest does not match"),
    ],
)
def test_other_spelling_of_the_manifest_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _written(tmp_path).path / "bundle.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(FormatError, match=message):
        bundle.load(path.parent)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"format_version": 1}'])
def test_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(FormatError):
        bundle.load(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(),
    values=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2),
    temperature=st.floats(min_value=1e-300, max_value=1e300),
)
def test_every_text_and_number_survives_the_round_trip(
    tmp_path: Path, text: str, values: tuple[float, float], temperature: float
) -> None:
    golden = (dataclasses.replace(MANIFEST.golden[0], text=text, embedding=values),)
    heads = (dataclasses.replace(HEADS[0], temperature=temperature), HEADS[1])
    manifest = _changed(golden=golden, heads=heads)
    (tmp_path / "bundle.json").write_bytes(codec.render(manifest_with_files := _with_files(manifest)))
    assert codec.parse(tmp_path / "bundle.json")[0] == manifest_with_files


def _with_files(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, files={"model.onnx": bundle.FileEntry("0" * 64, 1)})


CONTRADICTIONS = {
    "two heads of one name": (
        _changed(heads=(HEADS[0], dataclasses.replace(HEADS[1], name="topic"))),
        "heads: a name stands twice",
    ),
    "two heads on one output": (
        _changed(heads=(HEADS[0], dataclasses.replace(HEADS[0], name="other"))),
        "heads.output: a name stands twice",
    ),
    "two outputs of one name": (
        _changed(outputs=(*MANIFEST.outputs, MANIFEST.outputs[0])),
        "outputs: a name stands twice",
    ),
    "label twice": (_changed(heads=(dataclasses.replace(HEADS[0], labels=("a", "a", "b")), HEADS[1])), "each once"),
    "width of a head": (_changed(heads=(dataclasses.replace(HEADS[0], labels=("a", "b")), HEADS[1])), "expected"),
    "temperature of zero": (_changed(heads=(dataclasses.replace(HEADS[0], temperature=0.0), HEADS[1])), "temperature"),
    "threshold of a softmax head": (
        _changed(heads=(dataclasses.replace(HEADS[0], threshold=0.5), HEADS[1])),
        "a softmax head has none",
    ),
    "sigmoid head without threshold": (
        _changed(heads=(HEADS[0], dataclasses.replace(HEADS[1], threshold=None))),
        "a sigmoid head has one",
    ),
    "output that is not there": (
        _changed(embedding=dataclasses.replace(MANIFEST.embedding, output="embedding")),
        "not among the graph's outputs",
    ),
    "no room for text": (_changed(max_tokens=2), "leaves no room"),
    "padding with no token": (_changed(pad_token_id=-1), "pad_token_id"),
    "no golden text": (_changed(golden=()), "must not be empty"),
    "golden answer of another size": (
        _changed(golden=(Golden("x", (0.6, -0.8), {"topic": (0.1,), "sentiment": (0.1,)}),)),
        "does not answer every output",
    ),
    "variant without a gate": (_variant(gate=()), "gate: is empty"),
    "variant that failed": (_variant(gate=(Check("names", 1, 0),)), "did not pass names"),
    "variant with a limit that is no number": (_variant(gate=(Check("names", 0, float("nan")),)), "did not pass names"),
    "variant with a value that is no number": (_variant(gate=(Check("names", float("nan"), 1),)), "did not pass names"),
    "variant without its file": (_variant(file="int8.onnx"), "'int8.onnx' is not among"),
    "tolerance of zero": (_variant(golden_tolerance=0.0), "golden_tolerance"),
    "fingerprint of a head missing": (_variant(fingerprints=Fingerprints("0" * 16, {})), "must name every head"),
    "golden answer that is no number": (
        _changed(golden=(dataclasses.replace(MANIFEST.golden[0], embedding=(float("nan"), 0.0)),)),
        "not JSON compliant",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_manifest_that_contradicts_itself_is_not_written(tmp_path: Path, contradiction: str) -> None:
    manifest, message = CONTRADICTIONS[contradiction]
    with pytest.raises(FormatError, match=message):
        _written(tmp_path, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


@pytest.mark.parametrize(
    "name", ["../escaped", "/escaped", "torch/../../escaped", ".hidden", "a/b/c", "bundle.json", ""]
)
def test_name_that_leads_out_of_the_bundle_is_never_written(tmp_path: Path, name: str) -> None:
    sources = {**_sources(tmp_path / "sources"), name: tmp_path / "sources" / "model.onnx"}
    with pytest.raises(FormatError, match="is not a name that a bundle may hold"):
        bundle.write(tmp_path / "inside" / "demo", MANIFEST, sources)
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "inside").iterdir())


def test_bundle_replaces_a_bundle(tmp_path: Path) -> None:
    _written(tmp_path)
    again = _written(tmp_path, _changed(name="second"))
    assert bundle.load(again.path).manifest.name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


def test_bundle_with_damaged_weights_is_replaced(tmp_path: Path) -> None:
    (_written(tmp_path).path / "model.onnx").write_bytes(b"wrong")
    assert bundle.load(_written(tmp_path).path).file("model.onnx").read_bytes() == FILES["model.onnx"]


def test_bundle_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target = _written(tmp_path).path
    (tmp_path / "link").symlink_to(target)
    bundle.write(tmp_path / "link", _changed(name="second"), _sources(tmp_path / "sources"))
    assert (tmp_path / "link").is_symlink()
    assert bundle.load(target).manifest.name == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "link", "sources"]


def _somebodys_folder(root: Path) -> None:
    root.mkdir()
    (root / "thesis.txt").write_text("ten years of work")


def _somebodys_bundle_json(root: Path) -> None:
    _somebodys_folder(root)
    (root / "bundle.json").write_text('{"name": "a web page\'s bundle"}')


def _bundle_with_notes(root: Path) -> None:
    shutil.copytree(_written(root.parent / "other").path, root)
    (root / "thesis.txt").write_text("ten years of work")


def _plain_file(root: Path) -> None:
    root.write_text("ten years of work")


@pytest.mark.parametrize("occupy", [_somebodys_folder, _somebodys_bundle_json, _bundle_with_notes, _plain_file])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, occupy: Callable[[Path], None]) -> None:
    occupy(tmp_path / "demo")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    sources = _sources(tmp_path.parent / f"{tmp_path.name}-sources")
    with pytest.raises(BundleError, match="was left alone"):
        bundle.write(tmp_path / "demo", MANIFEST, sources)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("step", ["_describe", "_sync_tree", "load", "_replace_directory"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    old = _written(tmp_path)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, step, fail)
        with pytest.raises(type(error)):
            _written(tmp_path, _changed(name="second"))
    assert bundle.load(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_rename_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    old, rename, calls = _written(tmp_path), Path.rename, []

    def fail_the_second_time(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_the_second_time)
        with pytest.raises(type(error)):
            _written(tmp_path, _changed(name="second"))
    assert len(calls) == 3
    assert bundle.load(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "sources"]


def test_fingerprint_keeps_its_parts_apart() -> None:
    assert bundle.fingerprint("ab", "c") != bundle.fingerprint("a", "bc")
    assert bundle.fingerprint("ab", b"c") == bundle.fingerprint(b"ab", "c")
    assert len(bundle.fingerprint()) == 16
