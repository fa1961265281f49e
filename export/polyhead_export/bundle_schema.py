"""Generates the JSON Schema of ``bundle.json``, which programs in other languages can validate a manifest with.

::

    Manifest (polyhead_bundle.manifest) --pydantic--> bundle/polyhead_bundle/bundle.schema.json

    python -m polyhead_export.bundle_schema > bundle/polyhead_bundle/bundle.schema.json

The generator is part of the export package because it requires pydantic; ``polyhead_bundle`` requires only the standard
library.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from polyhead_bundle import FORMAT_VERSION, MANIFEST_NAME, Manifest
from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


@dataclass(frozen=True, kw_only=True)
class _Document(Manifest):
    """The manifest of a bundle. ``files`` lists every file but ``bundle.json`` itself; ``digest`` covers that file."""

    format_version: Annotated[int, Field(json_schema_extra={"const": FORMAT_VERSION})]
    digest: Annotated[
        str,
        Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the canonical form of all other fields."),
    ]


class _ClosedSchema(GenerateJsonSchema):
    """Describes each dataclass as an object with all of its fields and no others.

    ``bundle.json`` spells out default values, so fields with a default are required too.
    """

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        """Adds ``additionalProperties: false``, and joins the lines of the description."""
        described = super().dataclass_schema(schema)
        described["description"] = " ".join(described["description"].split())
        return {**described, "additionalProperties": False}

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Requires every field."""
        del field, total
        return True

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Omits the default of a field, since readers do not fill it in."""
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Omits titles, which would repeat the names of the fields."""
        del schema
        return False


def manifest_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of ``bundle.json``.

    The schema covers the fields and their types. Only ``polyhead_bundle.load`` checks that the fields are consistent
    and that the digest is correct.
    """
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": f"urn:polyhead:bundle:{FORMAT_VERSION}",
        **TypeAdapter(_Document).json_schema(schema_generator=_ClosedSchema),
        "title": f"polyhead {MANIFEST_NAME}, format version {FORMAT_VERSION}",
    }


def render(schema: dict[str, Any]) -> str:
    """Serializes the schema as it is committed: indented by two spaces, with a final newline."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(manifest_schema()))
