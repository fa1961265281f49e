"""Source files and documentation pages, for tests that scan them."""

from __future__ import annotations

import re
from pathlib import Path

from polyhead_server import errors

ROOT = Path(__file__).parents[2]
MIN_PAGES = 12
# Fewest modules of each package that a scan must find. A scan that finds fewer looks in the wrong folder, and would
# otherwise pass by checking nothing.
MIN_MODULES = {
    "adapters/polyhead_adapters": 6,
    "bulk/polyhead_bulk": 25,
    "bundle/polyhead_bundle": 6,
    "client/polyhead_client": 20,
    "export/polyhead_export": 20,
    "rows/polyhead_rows": 8,
    "server/polyhead_server": 45,
    "training/polyhead_training": 35,
}


def python_files(package: str) -> list[Path]:
    """Returns every module of a package, of its sub-packages too.

    Args:
        package: One of ``MIN_MODULES``.

    Raises:
        AssertionError: There are implausibly few.
    """
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) >= MIN_MODULES[package], f"only {len(found)} modules in {package}: did it move?"
    return found


def documentation_pages() -> list[Path]:
    """Returns README.md and every page of the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(pages) >= MIN_PAGES, f"only {len(pages)} pages: did they move?"
    return pages


def documentation_page(*parts: str) -> Path:
    """Returns the only page of the documentation that contains all of these parts; pages may move between folders."""
    pages = [(page, page.read_text(encoding="utf-8")) for page in documentation_pages()]
    (found,) = [page for page, text in pages if all(part in text for part in parts)]
    return found


def source_text(package: str) -> str:
    """Returns the text of every module of a package."""
    return "\n".join(path.read_text(encoding="utf-8") for path in python_files(package))


def error_reasons() -> set[str]:
    """Returns the reasons in the server's sources: of error classes, of instances, and those built from field names."""
    text = source_text("server/polyhead_server")
    instances = set(re.findall(r"InvalidRequestError\(\s*\"([A-Z0-9_]+)\"", text))
    fields = set(re.findall(r"_lookup\(.*?\"(\w+)\"\)", text))
    classes = {
        vars(kind)["reason"] for kind in vars(errors).values() if isinstance(kind, type) and "reason" in vars(kind)
    }
    assert len(instances) > 5
    assert len(fields) > 3
    assert len(classes) > 8
    return instances | classes | {f"UNKNOWN_{field.upper()}" for field in fields}
