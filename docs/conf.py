"""Sphinx configuration: the documentation site, built by ``make docs`` into build/site without a network.

Pages are Markdown and read well in the repository, too. CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are included from
the root. ``proto.reference`` generates the protocol reference, ``docs.reference_pages`` those of configuration and
command line, and Sphinx all other references from docstrings.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

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


def setup(app: Sphinx) -> None:
    """Registers the hooks of this file."""
    app.connect("doctree-read", _repository_links)
