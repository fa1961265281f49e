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

# One of each kind; test_codec and test_manifest have the others.
FORGED_MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "file outside": lambda document: document["files"].update({"../x": document["files"]["tokenizer.json"]}),
    "later version": lambda document: document.update(format_version=FORMAT_VERSION + 1),
    "no version": lambda document: document.pop("format_version"),
    "graph outside": lambda document: document["variants"]["fp32"].update(file="../model.onnx"),
    "size of the embedding": lambda document: document["embedding"].update(dimensions=31),
}


@pytest.mark.parametrize("forgery", FORGED_MANIFESTS)
def test_forged_manifest_is_rejected(bundle_copy: Path, parser_calls: list[str], forgery: str) -> None:
    (bundle_copy.parent / "x").write_bytes((bundle_copy / "tokenizer.json").read_bytes())
    forge(bundle_copy, change=FORGED_MANIFESTS[forgery])
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


NON_CANONICAL: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "17 MiB": (lambda text: text + b" " * (17 * 2**20), "is larger than 16777216 bytes"),
    "deep lists": (lambda _: b"[" * 2**20, "is not valid JSON"),
    "Windows line ends": (lambda text: text.replace(b"\n", b"\r\n"), "digest does not match"),
}


@pytest.mark.parametrize("form", NON_CANONICAL)
def test_non_canonical_manifest_is_rejected(bundle_copy: Path, parser_calls: list[str], form: str) -> None:
    change, reason = NON_CANONICAL[form]
    before = (bundle_copy / "bundle.json").read_bytes()
    (bundle_copy / "bundle.json").write_bytes(change(before))
    with pytest.raises(FormatError, match=reason):
        bundle.load(bundle_copy)
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


@pytest.mark.parametrize("name", ["setup.py", "torch/model.onnx.data"])
def test_listed_file_of_unknown_purpose_is_rejected(bundle_copy: Path, parser_calls: list[str], name: str) -> None:
    forge(bundle_copy, {name: b"x"})
    with pytest.raises(BundleError, match=rf"unexpected file '{re.escape(name)}'"):
        bundle.load(bundle_copy)
    assert_rejected(bundle_copy, "bundle.json", parser_calls)


def test_forged_bundle_with_valid_content_passes(bundle_copy: Path) -> None:
    forge(bundle_copy, {"README.md": b"# Forged\n"})
    verify_quietly(bundle_copy)
    serve(bundle_copy)
