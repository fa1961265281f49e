"""Makes the schemas of this folder from the custom resource definitions of other projects.

    python deploy/schemas/trim.py CRD.yaml SOURCE MANIFEST...

Validates the manifests against the whole definition, with unknown fields as errors, and writes the part of it that they
use to KIND.json. `deploy/lint.sh` checks the manifests against these parts: a field that a manifest gains later is an
error until its schema is made again. SOURCE is recorded: repository, commit and licence.

Rules in CEL (x-kubernetes-validations) are not part of JSON Schema and are not checked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml  # type: ignore[import-untyped]

# Part of every object and of no definition.
_METADATA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_KEYWORDS = (
    *("type", "enum", "pattern", "format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("anyOf", "allOf", "oneOf", "not", "required", "nullable", "uniqueItems", _PRESERVE),
)


def main(definition: Path, source: str, manifests: list[Path]) -> None:
    """Writes the schema of one kind.

    Raises:
        SystemExit: A manifest violates the definition.
    """
    crd = yaml.safe_load(definition.read_text())["spec"]
    objects = [yaml.safe_load(path.read_text()) for path in manifests]
    versions = {one["apiVersion"].rpartition("/")[2] for one in objects}
    if len(versions) != 1:
        raise SystemExit(f"manifests of one version expected, not {sorted(versions)}")
    version = next(one for one in crd["versions"] if one["name"] in versions)
    whole = version["schema"]["openAPIV3Schema"]
    whole["properties"] |= {
        "apiVersion": {"enum": [f"{crd['group']}/{version['name']}"]},
        "kind": {"enum": [crd["names"]["kind"]]},
        "metadata": {_PRESERVE: True, **_METADATA},
    }
    for path, one in zip(manifests, objects, strict=True):
        errors = jsonschema.Draft7Validator(closed(whole)).iter_errors(one)
        if problems := [f"{path}: {error.json_path}: {error.message}" for error in errors]:
            raise SystemExit("\n".join(problems))
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"{crd['names']['kind']} {crd['group']}/{version['name']}, the fields in use; from {source}",
        **closed(used(whole, objects)),
    }
    path = Path(__file__).parent / f"{crd['names']['kind'].lower()}.json"
    path.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


def used(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Returns the part of a schema that applies to the values, without descriptions and defaults."""
    part = {key: schema[key] for key in _KEYWORDS if key in schema}
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        names = {name for one in objects for name in one} | set(schema.get("required", ()))
        part["properties"] = {
            name: used(inner, [one[name] for one in objects if name in one])
            for name, inner in schema["properties"].items()
            if name in names
        }
    if isinstance(schema.get("additionalProperties"), dict):
        part["additionalProperties"] = used(
            schema["additionalProperties"], [inner for one in objects for inner in one.values()]
        )
    if "items" in schema:
        lists = [value for value in values if isinstance(value, list)]
        part["items"] = used(schema["items"], [inner for one in lists for inner in one])
    return part


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema in which unknown fields are errors, as for `kubectl --validate=strict`."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: closed(inner) for name, inner in schema["properties"].items()}
        if not schema.get(_PRESERVE):
            result.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(one) for one in sys.argv[3:]])
