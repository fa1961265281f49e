"""The documentation's site: the pages as they are read in the repository, and the reference made of docstrings.

``make docs`` builds it into build/site, without a network. README.md is the first page, and no text stands twice.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "polyhead"
version = release = metadata.version("polyhead")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"polyhead {version}"
html_show_sourcelink = False

myst_heading_anchors = 3
# A page of tables and flows has code in languages that have no highlighter.
highlight_language = "text"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    # What a client inherits is its interface, too; what an error inherits is Python's.
    "inherited-members": "BaseException, Enum, object, str",
}
autodoc_typehints = "description"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# The answer that README.md shows is cut short, so it is no JSON.
suppress_warnings = ["misc.highlighting_failure"]


def _repository_links(app: Sphinx, tree: nodes.document) -> None:
    """Shows links to the repository's files and folders, which are no pages, as what they name."""
    page = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(tree.findall(nodes.Element)):
        target = str(link.get("reftarget", ""))
        if not target or "://" in target or target.startswith("#"):
            continue
        for base in (page, ROOT):
            path = Path(os.path.normpath(base / target.split("#", maxsplit=1)[0]))
            if path.exists() and not path.is_relative_to(ROOT / "docs") and path.name != "README.md":
                link.replace_self(nodes.literal(text=path.relative_to(ROOT).as_posix()))
                break


def setup(app: Sphinx) -> None:
    """Registers what is ours."""
    app.connect("doctree-read", _repository_links)
