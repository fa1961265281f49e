"""Helpers for damaging and forging bundles, and for checking that every reader rejects them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import polyhead_bundle as bundle
import pytest
import safetensors
import tokenizers
import transformers.modeling_utils
from polyhead_bundle import BundleError
from polyhead_export.verify import verify
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model, load_model
from polyhead_server.settings import Settings
from polyhead_training.model import PolyheadModel

from .small_bundle import rewrite_manifest

# Entry points of the parsers that a reader may call only after the bundle is verified.
PARSERS: dict[str, tuple[Any, str]] = {
    "onnxruntime": (onnxruntime, "InferenceSession"),
    "onnx": (onnx, "load"),
    "tokenizers": (tokenizers.Tokenizer, "from_file"),
    "transformers": (PolyheadModel, "from_pretrained"),
    "safetensors": (transformers.modeling_utils, "safe_open"),
    "safetensors itself": (safetensors, "safe_open"),
}


def record_parser_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the names of the parsers that are called, in order; the parsers still work."""
    calls: list[str] = []

    def record(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    for name, (owner, function) in PARSERS.items():
        monkeypatch.setattr(owner, function, record(name, getattr(owner, function)))
    return calls


def verify_quietly(path: Path) -> None:
    """Verifies a bundle as ``polyhead-export verify`` does, without its report."""
    verify(path, lambda _: None)


def serve(path: Path, engine: str = "onnx") -> Model:
    """Loads a bundle as the server does."""
    return load_model(Settings(bundle=path, threads=1, engine=engine, device="cpu"))


def assert_rejected(path: Path, file: str, parser_calls: list[str]) -> BundleError:
    """Asserts that loading, verifying and serving raise the same error about ``file`` without calling a parser."""
    with pytest.raises(BundleError) as loaded:
        bundle.load(path)
    assert str(path / file) in str(loaded.value)
    with pytest.raises(BundleError) as verified:
        verify_quietly(path)
    with pytest.raises(StartupError) as served:
        serve(path)
    assert str(verified.value) == str(served.value) == str(loaded.value)
    assert parser_calls == []
    return loaded.value


def unchanged(document: dict[str, Any]) -> None:
    """A change to a manifest that changes nothing."""


def forge(
    path: Path, files: Mapping[str, bytes] | None = None, change: Callable[[dict[str, Any]], Any] = unchanged
) -> None:
    """Writes files and changes the manifest of a bundle, and updates every hash."""

    def update(document: dict[str, Any]) -> None:
        for name, content in (files or {}).items():
            (path / name).write_bytes(content)
            document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        change(document)

    rewrite_manifest(path / "bundle.json", update)
