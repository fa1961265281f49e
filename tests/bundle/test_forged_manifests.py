"""A manifest that is invalid or not in canonical form is rejected, even when every hash and digest is correct."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polyhead_bundle as bundle
import pytest
from polyhead_bundle import FORMAT_VERSION, BundleError, FormatError

from tests.support.bundle_rejection import assert_rejected, forge, serve, verify_quietly


def _named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"]["tokenizer.json"]

    return change


def _versioned(version: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(format_version=version)


VERSIONS: list[object] = [0, FORMAT_VERSION + 1, -1, str(FORMAT_VERSION), float(FORMAT_VERSION), True, None, []]

FORGED_MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"file {name}": _named(name) for name in ("../tokenizer.json", "torch/../x", "a/b/c", "..", ".", "", "torch/")},
    **{f"file {name}": _named(name) for name in ("/etc/hostname", "C:\\x", "a\\b", ".hidden", "torch/.hidden", "a\0b")},
    **{f"file {name!r}": _named(name) for name in ("bundle.json", "x\n", "tokenizer.json ", "\uff54okenizer.json")},
    **{f"version {version!r}": _versioned(version) for version in VERSIONS},
    "no version": lambda document: document.pop("format_version"),
    "graph outside": lambda document: document["variants"]["fp32"].update(file="../model.onnx"),
    "width of a head": lambda document: document["outputs"][1].update(dims=["batch", 4]),
    "size of the embedding": lambda document: document["embedding"].update(dimensions=31),
}


@pytest.mark.parametrize("forgery", FORGED_MANIFESTS)
def test_forged_manifest_is_rejected(bundle_copy: Path, parser_calls: list[str], forgery: str) -> None:
    (bundle_copy.parent / "tokenizer.json").write_bytes((bundle_copy / "tokenizer.json").read_bytes())
    forge(bundle_copy, change=FORGED_MANIFESTS[forgery])
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


def test_listed_hidden_file_is_rejected(bundle_copy: Path, parser_calls: list[str]) -> None:
    forge(bundle_copy, {".hidden": b"x"})
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


def _duplicate_key(text: bytes) -> bytes:
    return text.replace(b'"max_tokens": 48', b'"max_tokens": 48,\n  "max_tokens": 48')


NON_CANONICAL: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "duplicate key": (_duplicate_key, "duplicate key"),
    "NaN": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": NaN'), "NaN is not a JSON number"),
    "Infinity": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": Infinity'), "Infinity is not"),
    "too large for a float": (lambda text: text.replace(b'"max_tokens": 48', b'"max_tokens": 1e999'), "too large"),
    "17 MiB": (lambda text: text + b" " * (17 * 2**20), "is larger than 16777216 bytes"),
    "deep lists": (lambda _: b"[" * 2**20, "is not valid JSON"),
    "deep objects": (lambda _: b'{"a":' * 2**20, "is not valid JSON"),
    "deep inside a manifest": (
        lambda t: t.replace(b'"max_tokens": 48', b'"max_tokens": ' + b"[" * 99999),
        "valid JSON",
    ),
    "many digits": (lambda t: t.replace(b'"max_tokens": 48', b'"max_tokens": ' + b"9" * 99999), "is not valid JSON"),
    "Windows line ends": (lambda text: text.replace(b"\n", b"\r\n"), "digest does not match"),
    "byte order mark": (lambda text: b"\xef\xbb\xbf" + text, "digest does not match"),
    "empty file": (lambda _: b"", "is not valid JSON"),
}


@pytest.mark.parametrize("form", NON_CANONICAL)
def test_non_canonical_manifest_is_rejected(bundle_copy: Path, parser_calls: list[str], form: str) -> None:
    change, reason = NON_CANONICAL[form]
    before = (bundle_copy / "bundle.json").read_bytes()
    (bundle_copy / "bundle.json").write_bytes(change(before))
    assert change(before) != before
    with pytest.raises(FormatError, match=reason):
        bundle.load(bundle_copy)
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


@pytest.mark.parametrize("name", ["setup.py", "torch/adapter.safetensors", "weights.bin", "torch/model.onnx.data"])
def test_listed_file_of_unknown_purpose_is_rejected(bundle_copy: Path, parser_calls: list[str], name: str) -> None:
    forge(bundle_copy, {name: b"x"})
    with pytest.raises(BundleError, match=rf"unexpected file '{re.escape(name)}'"):
        bundle.load(bundle_copy)
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


def test_golden_text_with_lone_surrogate_is_rejected(bundle_copy: Path, parser_calls: list[str]) -> None:
    forge(bundle_copy, change=lambda document: document["variants"]["fp32"]["golden"][0].update(text="\ud800"))
    with pytest.raises(FormatError, match="is not valid Unicode text"):
        bundle.load(bundle_copy)
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


def test_forged_bundle_with_valid_content_passes(bundle_copy: Path) -> None:
    forge(bundle_copy, {"README.md": b"# Forged\n"})
    verify_quietly(bundle_copy)
    serve(bundle_copy)
