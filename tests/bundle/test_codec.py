"""``bundle.json`` has one canonical form, and no other is accepted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polyhead_bundle import FORMAT_VERSION, FormatError, Manifest, codec

from tests.support.small_bundle import (
    ABSTENTION,
    EVERY_KIND,
    HEADS,
    MANIFEST,
    changed_manifest,
    rewrite_manifest,
    to_version_2,
    to_version_3,
    to_version_4,
    write_demo_bundle,
)

FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown format version": (lambda d: d.update(format_version=1), "format_version 1; this release reads 2 to 5"),
    "unknown field": (lambda d: d.update(extra=1), "unknown fields \\['extra'\\]"),
    "missing field": (lambda d: d.pop("pad_token_id"), "missing fields \\['pad_token_id'\\]"),
    "number for a string": (lambda d: d.update(name=1), "bundle.json.name: 1 has the wrong type"),
    "true for a number": (lambda d: d.update(max_tokens=True), "bundle.json.max_tokens: True has the wrong type"),
    "number beyond a float": (lambda d: d["heads"][0].update(temperature=10**400), "too large"),
    "unknown kind of head": (
        lambda d: d["heads"][0].update(kind="softplus"),
        r"bundle\.json\.heads\[0\]\.kind: 'softplus' is not one of",
    ),
    "string inside an array": (
        lambda d: d["variants"]["fp32"]["gate"][0].update(value="1"),
        r"bundle\.json\.variants\.fp32\.gate\[0\]\.value: '1' has the wrong type",
    ),
    "object for an array": (lambda d: d.update(inputs={}), r"bundle\.json\.inputs: {} has the wrong type"),
    "array for a map": (lambda d: d.update(files=[]), r"bundle\.json\.files: \[\] has the wrong type"),
    "array for an object": (lambda d: d.update(embedding=[]), r"bundle\.json\.embedding: \[\] has the wrong type"),
    "fraction for a dimension": (
        lambda d: d["outputs"][0].update(dims=[0.5]),
        r"bundle\.json\.outputs\[0\]\.dims\[0\]: 0\.5 has the wrong type",
    ),
    "first lone surrogate": (lambda d: d.update(name="\ud800"), r"bundle\.json\.name: .* is not valid Unicode text"),
    "last lone surrogate": (lambda d: d.update(name="\udfff"), r"bundle\.json\.name: .* is not valid Unicode text"),
    "width of a head": (lambda d: d["outputs"][1].update(dims=["batch", 4]), r"expected \(batch, 3\)"),
    "failed gate": (lambda d: d["variants"]["fp32"]["gate"][0].update(value=1), "gate: failed names"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_manifest_is_rejected(tmp_path: Path, forgery: str) -> None:
    change, message = FORGERIES[forgery]
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    rewrite_manifest(path, change)
    with pytest.raises(FormatError, match=message):
        bundle.load(path.parent)


NAMES: tuple[str, ...] = (
    "../tokenizer.json",
    "torch/../x",
    "a/b/c",
    "..",
    ".",
    "",
    "torch/",
    "/etc/hostname",
    "C:\\x",
    "a\\b",
)
NAMES += (".hidden", "torch/.hidden", "a\0b", "bundle.json", "x\n", "tokenizer.json ", "\uff54okenizer.json")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_listed_file_with_an_invalid_name_is_rejected(tmp_path: Path, name: str) -> None:
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    rewrite_manifest(path, lambda document: document["files"].update({name: document["files"]["tokenizer.json"]}))
    with pytest.raises(FormatError, match=f"{re.escape(repr(name))} is not a valid file name"):
        bundle.load(path.parent)


VERSIONS: list[object] = [FORMAT_VERSION + 1, -1, str(FORMAT_VERSION), float(FORMAT_VERSION), True, None, []]


@pytest.mark.parametrize("version", VERSIONS, ids=repr)
def test_other_format_version_is_rejected(tmp_path: Path, version: object) -> None:
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    rewrite_manifest(path, lambda document: document.update(format_version=version))
    with pytest.raises(FormatError, match=f"format_version {re.escape(repr(version))}"):
        bundle.load(path.parent)


def test_forged_manifest_with_valid_content_is_accepted(tmp_path: Path) -> None:
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    rewrite_manifest(path, lambda document: document.update(name="other"))
    assert bundle.load(path.parent).manifest.name == "other"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "demo"', '"name": "demo", "name": "evil"', "duplicate key"),
        ('"temperature": 1.5', '"temperature": NaN', "NaN is not a JSON number"),
        ('"temperature": 1.5', '"temperature": -Infinity', "-Infinity is not a JSON number"),
        ('"temperature": 1.5', '"temperature": 1e999', "1e999 is too large"),
        ('"max_tokens": 64', '"max_tokens": ' + "[" * 99999, "is not valid JSON"),
        ('"max_tokens": 64', '"max_tokens": ' + "9" * 99999, "is not valid JSON"),
        ("\n", "\r\n", "digest does not match"),
        ("{", "\ufeff{", "digest does not match"),
        ('"temperature": 1.5', '"temperature": 1.50', "digest does not match"),
        ('"name": "demo"', '"name":  "demo"', "digest does not match"),
    ],
    ids=lambda text: text[:24],
)
def test_non_canonical_manifest_is_rejected(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    with pytest.raises(FormatError, match=message):
        bundle.load(path.parent)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b"[" * 2**20, b'{"a":' * 2**20, b"{}", b'{"format_version": 1}'], ids=len
)
def test_file_of_another_kind_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(FormatError):
        bundle.load(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(),
    values=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2),
    temperature=st.floats(min_value=1e-300, max_value=1e300),
)
def test_any_text_and_number_survives_a_round_trip(
    tmp_path: Path, text: str, values: tuple[float, float], temperature: float
) -> None:
    (first,) = MANIFEST.variants["fp32"].golden
    golden = (dataclasses.replace(first, text=text, embedding=values),)
    heads = (dataclasses.replace(HEADS[0], temperature=temperature), HEADS[1])
    variant = dataclasses.replace(MANIFEST.variants["fp32"], golden=golden)
    manifest = changed_manifest(variants={"fp32": variant}, heads=heads)
    (tmp_path / "bundle.json").write_bytes(codec.render(manifest_with_files := _with_files(manifest)))
    assert codec.parse(tmp_path / "bundle.json")[0] == manifest_with_files


def _with_files(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, files={"model.onnx": bundle.FileEntry("0" * 64, 1)})


def test_every_kind_of_head_survives_a_round_trip(tmp_path: Path) -> None:
    written = write_demo_bundle(tmp_path, EVERY_KIND)
    loaded = bundle.load(written.path)
    assert loaded.manifest.heads == EVERY_KIND.heads
    assert loaded.format_version == bundle.FORMAT_VERSION


def test_prompts_survive_a_round_trip_in_the_order_of_their_names(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "STS": "é ", "retrieval.passage": "passage: ", "text-matching_2": "x"}
    write_demo_bundle(tmp_path, changed_manifest(prompts=prompts))
    assert list(bundle.load(tmp_path / "demo").manifest.prompts.items()) == sorted(prompts.items())


OLDER = {2: to_version_2, 3: to_version_3, 4: to_version_4}


@pytest.mark.parametrize("version", OLDER)
def test_bundle_of_an_older_version_has_the_manifest_of_this_release(tmp_path: Path, version: int) -> None:
    written = write_demo_bundle(tmp_path)
    rewrite_manifest(written.path / "bundle.json", OLDER[version])
    loaded = bundle.load(written.path)
    assert loaded.manifest == written.manifest
    assert (loaded.format_version, written.format_version) == (version, 5)


@pytest.mark.parametrize("version", OLDER)
def test_bundle_of_an_older_version_can_be_replaced(tmp_path: Path, version: int) -> None:
    written = write_demo_bundle(tmp_path)
    rewrite_manifest(written.path / "bundle.json", OLDER[version])
    assert write_demo_bundle(tmp_path).format_version == 5


def test_version_3_has_every_kind_of_head_and_no_abstention(tmp_path: Path) -> None:
    path = write_demo_bundle(tmp_path, EVERY_KIND).path / "bundle.json"
    rewrite_manifest(path, to_version_3)
    assert bundle.load(path.parent).manifest.heads == EVERY_KIND.heads
    rewrite_manifest(path, lambda document: document["heads"][0].update(abstention=None))
    with pytest.raises(FormatError, match=r"unknown fields \['abstention'\] in format version 3"):
        bundle.load(path.parent)


def test_prediction_sets_survive_a_round_trip_and_are_unknown_before_version_5(tmp_path: Path) -> None:
    heads = (dataclasses.replace(HEADS[0], prediction_sets=bundle.PredictionSets(0.9, 0.05, 200)), HEADS[1])
    written = write_demo_bundle(tmp_path, changed_manifest(heads=heads))
    assert bundle.load(written.path).manifest.heads == heads
    rewrite_manifest(written.path / "bundle.json", lambda document: document.update(format_version=4))
    with pytest.raises(FormatError, match=r"unknown fields \['prediction_sets'\] in format version 4"):
        bundle.load(written.path)


def test_abstention_survives_a_round_trip(tmp_path: Path) -> None:
    heads = (dataclasses.replace(HEADS[0], abstention=ABSTENTION), HEADS[1])
    assert write_demo_bundle(tmp_path, changed_manifest(heads=heads)).manifest.heads == heads


def test_reference_survives_a_round_trip(tmp_path: Path) -> None:
    heads = {
        "topic": bundle.HeadReference((0.5, 0.25, 0.25), (0.0,) * 9 + (1.0,), ()),
        "sentiment": bundle.HeadReference((0.5, 0.5), (), ()),
    }
    reference = bundle.Reference(9, heads, (0.5, 0.5), 0.1, 0.0, (), (0.5, 1.5))
    assert write_demo_bundle(tmp_path, changed_manifest(reference=reference)).manifest.reference == reference
    damaged = dataclasses.replace(reference, tokens=(0.5, 1.5))
    with pytest.raises(FormatError, match="reference: has a share that is not between 0 and 1"):
        write_demo_bundle(tmp_path / "other", changed_manifest(reference=damaged))


NOT_VERSION_2: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "later field": (lambda d: d["heads"][0].update(spread=1.0), "unknown fields .'spread'. in format version 2"),
    "prompts": (lambda d: d.update(prompts={}), "unknown fields .'prompts'. in format version 2"),
    "later kind": (lambda d: d["heads"][0].update(kind="multilabel"), "kind 'multilabel' is not one of"),
    "head of another type": (lambda d: d.update(heads=[1]), "heads: 1 has the wrong type"),
    "heads of another type": (lambda d: d.update(heads={}), "heads: {} has the wrong type"),
    "no heads": (lambda d: d.pop("heads"), "heads: None has the wrong type"),
}


@pytest.mark.parametrize("forgery", NOT_VERSION_2)
def test_version_2_has_only_its_own_fields_and_kinds(tmp_path: Path, forgery: str) -> None:
    change, message = NOT_VERSION_2[forgery]
    path = write_demo_bundle(tmp_path).path / "bundle.json"
    rewrite_manifest(path, to_version_2)
    rewrite_manifest(path, change)
    with pytest.raises(FormatError, match=message):
        bundle.load(path.parent)
