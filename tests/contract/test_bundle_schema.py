"""bundle.schema.json matches the manifest's dataclasses, accepts every manifest and rejects wrong documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polyhead_bundle
import pytest
from polyhead_bundle import FORMAT_VERSION
from polyhead_export.bundle_schema import manifest_schema, render

from tests.support.small_bundle import EVERY_KIND, write_demo_bundle

COMMITTED = Path(polyhead_bundle.__file__).parent / "bundle.schema.json"
STALE = "run: python -m polyhead_export.bundle_schema > bundle/polyhead_bundle/bundle.schema.json"


@pytest.fixture
def faults(tmp_path: Path) -> Callable[[dict[str, Any]], list[str]]:
    """Validates a document against the committed schema and returns the path of each fault."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; it comes with '.[dev]'")
    validator = jsonschema.Draft202012Validator(json.loads(COMMITTED.read_bytes()))

    def find(document: dict[str, Any]) -> list[str]:
        return sorted(error.json_path for error in validator.iter_errors(document))

    return find


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """The JSON document of a written manifest."""
    found: dict[str, Any] = json.loads((write_demo_bundle(tmp_path).path / "bundle.json").read_bytes())
    return found


def test_committed_schema_is_fresh() -> None:
    assert COMMITTED.read_text() == render(manifest_schema()), STALE


def test_schema_is_valid(faults: Callable[[dict[str, Any]], list[str]]) -> None:
    import jsonschema  # type: ignore[import-untyped,unused-ignore]

    jsonschema.Draft202012Validator.check_schema(manifest_schema())


def test_every_object_type_is_described_and_closed() -> None:
    schema = manifest_schema()
    for kind in (schema, *schema["$defs"].values()):
        assert kind["description"]
        assert kind["additionalProperties"] is False
        assert kind["required"] == list(kind["properties"])


def test_written_manifest_is_valid(faults: Callable[[dict[str, Any]], list[str]], document: dict[str, Any]) -> None:
    assert faults(document) == []


def test_manifest_with_every_kind_of_head_is_valid(
    faults: Callable[[dict[str, Any]], list[str]], tmp_path: Path
) -> None:
    path = write_demo_bundle(tmp_path, EVERY_KIND).path / "bundle.json"
    assert faults(json.loads(path.read_bytes())) == []


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "extra field": (lambda d: d.update(extra=1), "$"),
    "extra field deep inside": (lambda d: d["variants"]["fp32"]["gate"][0].update(extra=1), "$.variants.fp32.gate[0]"),
    "missing field": (lambda d: d.pop("pad_token_id"), "$"),
    "missing digest": (lambda d: d.pop("digest"), "$"),
    "missing default": (lambda d: d["heads"][0].pop("temperature"), "$.heads[0]"),
    "number for a string": (lambda d: d.update(name=1), "$.name"),
    "true for a number": (lambda d: d.update(max_tokens=True), "$.max_tokens"),
    "string for a number": (lambda d: d["heads"][0].update(temperature="1"), "$.heads[0].temperature"),
    "string for an optional number": (lambda d: d["heads"][1].update(threshold="0.5"), "$.heads[1].threshold"),
    "fraction for a dimension": (lambda d: d["outputs"][0].update(dims=[0.5]), "$.outputs[0].dims[0]"),
    "array for an object": (lambda d: d.update(files=[]), "$.files"),
    "unknown kind of head": (lambda d: d["heads"][0].update(kind="softplus"), "$.heads[0].kind"),
    "next version": (lambda d: d.update(format_version=FORMAT_VERSION + 1), "$.format_version"),
    "version as a string": (lambda d: d.update(format_version=str(FORMAT_VERSION)), "$.format_version"),
    "invalid digest": (lambda d: d.update(digest="0" * 63), "$.digest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_document_is_invalid(
    faults: Callable[[dict[str, Any]], list[str]], document: dict[str, Any], fault: str
) -> None:
    change, where = FAULTS[fault]
    change(document)
    assert set(faults(document)) == {where}
