"""Sphinx configuration: the documentation site, built by ``make docs`` into build/site without a network.

Pages are Markdown and read well in the repository, too. CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are included from
the root. ``proto.reference`` generates the protocol reference, this file the training configuration reference, and
Sphinx all other references from docstrings and commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "polyhead"
version = release = metadata.version("polyhead")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
nitpicky = True
# Help texts name flags, whose dashes must stay dashes.
smartquotes = False
# Types of other packages, and of ours that are not part of the public interface, have no page to link to.
nitpick_ignore_regex = [("py:.*", ".*")]
html_theme = "pydata_sphinx_theme"
html_title = f"polyhead {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "logo": {"text": f"polyhead {version}"},
    "navbar_align": "left",
    "show_prev_next": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# The landing page and the included root files have no section navigation.
html_sidebars: dict[str, list[str]] = {"index": [], "contributing": [], "changelog": [], "security-policy": []}
copyright = "the polyhead authors. Licensed under Apache-2.0"  # noqa: A001 - the name that Sphinx reads

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
highlight_language = "text"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    # Inherited members of a client are part of its interface; those that errors inherit from Python are not.
    "inherited-members": "BaseException, Enum, object, str",
}
autodoc_typehints = "description"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

# Pages of the site that include a file of the repository's root.
_INCLUDED = {"CONTRIBUTING": "contributing", "CHANGELOG": "changelog", "SECURITY": "security-policy", "README": "index"}
# Section of the TOML file by the name of its model in the JSON Schema.
_SECTIONS = {
    "Config": "Top level",
    "ModelConfig": "`[model]`",
    "HeadConfig": "`[[model.heads]]`",
    "DataConfig": "`[data]`",
    "TrainingConfig": "`[training]`",
    "StageConfig": "`[[training.stages]]`",
}
_INTRODUCTION = """# Training configuration

This page describes every field of the TOML file that `polyhead-train` reads. `--set KEY=VALUE` overrides a field, for
example `--set training.batch_size=16`. [Train](../guides/train.md) explains how to use the fields.
"""


def _configuration_reference() -> str:
    """The page about the training configuration, in Markdown."""
    from polyhead_training.config import Config

    schema = Config.model_json_schema()
    models = {**schema["$defs"], "Config": schema}
    lines = [_INTRODUCTION]
    for name, title in _SECTIONS.items():
        lines += [f"## {title}", "", models[name]["description"].split("\n\n")[0].replace("\n", " "), ""]
        lines += ["| field | type | default | description |", "| --- | --- | --- | --- |"]
        for field, entry in models[name]["properties"].items():
            default = _default(entry, required=field in models[name].get("required", []))
            lines.append(f"| `{field}` | {_type(entry)} | {default} | {_cell(entry.get('description', ''))} |")
        lines.append("")
    return "\n".join(lines)


def _type(entry: Mapping[str, Any]) -> str:
    """A JSON Schema's type, as a reader of TOML would write it."""
    if "$ref" in entry:
        return _SECTIONS[entry["$ref"].rpartition("/")[2]]
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if "anyOf" in entry:
        return " or ".join(_type(one) for one in entry["anyOf"] if one.get("type") != "null")
    if entry.get("type") == "array":
        items = entry.get("items") or entry.get("prefixItems", [{}])[0]
        return f"list of {_type(items)}"
    if entry.get("type") == "object":
        values = entry.get("additionalProperties") or next(iter(entry["patternProperties"].values()))
        return f"table of {_type(values)}"
    return {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}[entry["type"]]


def _default(entry: Mapping[str, Any], *, required: bool) -> str:
    """A field's default; structured ones are described in the guide."""
    value = entry.get("default")
    if required:
        return "required"
    if value is None:
        return "absent"
    if value and isinstance(value, list | dict) and "$ref" in json.dumps(entry):
        return "see [Train](../guides/train.md)"
    return f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _write_configuration_reference(app: Sphinx, _: object) -> None:
    """Writes the page before the sources are read."""
    page, text = Path(app.srcdir) / "reference/configuration.md", _configuration_reference()
    if not page.exists() or page.read_text("utf-8") != text:
        page.write_text(text, "utf-8")


def _repository_links(app: Sphinx, tree: nodes.document) -> None:
    """Resolves links that leave docs/: root files to the pages that include them, all others to their path as text.

    Links to pages are left to Sphinx, which reports those that lead nowhere. MyST names a page by its path without a
    suffix, so they must not be compared with the repository's files: a guide and a folder may have the same name.
    """
    for link in [*tree.findall(addnodes.pending_xref), *tree.findall(addnodes.download_reference)]:
        target = str(link.get("reftarget", "")).split("#", maxsplit=1)[0]
        if link.get("refdomain") == "doc" and not target.startswith("/"):
            continue
        suffix = ".md" if link.get("refdomain") == "doc" else ""
        for folder in (Path(app.env.doc2path(app.env.docname)).parent, ROOT):
            path = Path(os.path.normpath(folder / (target + suffix)))
            if not target or not path.exists() or not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "docs"):
                continue
            if path.parent == ROOT and path.stem in _INCLUDED and suffix:
                link["reftarget"] = _INCLUDED[path.stem]
            else:
                link.replace_self(nodes.literal(text=path.relative_to(ROOT).as_posix()))
            break


def _literal_examples(_: Sphinx, __: object, lines: list[str]) -> None:
    """Shows the examples of a help text, which sphinx-click renders as line blocks, as code."""
    shown: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        example = line.startswith("| ")
        if example and not before.startswith("| "):
            shown += ["", "::", ""]
        shown.append(f"   {line[2:]}" if example else line)
    lines[:] = shown


def setup(app: Sphinx) -> None:
    """Registers the hooks of this file."""
    app.connect("config-inited", _write_configuration_reference)
    app.connect("doctree-read", _repository_links)
    app.connect("sphinx-click-process-description", _literal_examples)
