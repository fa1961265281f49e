"""JSON types shared by the worker protocol and the admin service."""

from __future__ import annotations

from typing import Any

# A JSON object: its values are whatever ``json.loads`` returns.
Values = dict[str, Any]
