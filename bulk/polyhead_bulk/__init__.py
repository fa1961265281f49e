"""Bulk jobs: one model over files of texts, and ``Annotator`` for frameworks that work on Arrow or NumPy batches.

::

    files -> fragments -> Texts -> local: blocks sorted by length -> Answers -> parts, one for each fragment
                                   remote: the client's stream
                                   ray_data: the same on the nodes of a cluster, part by part

``polyhead bulk`` is the command. Neither the package nor a model in this process requires gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annotator import Annotator
    from .errors import BulkError, EngineError, InputError, OutputError, ResumeError, RowError, UsageError

# Imported when they are used: --help does not wait for pyarrow.
_MODULES = {
    "annotator": ("Annotator",),
    "errors": ("BulkError", "EngineError", "InputError", "OutputError", "ResumeError", "RowError", "UsageError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Annotator",
    "BulkError",
    "EngineError",
    "InputError",
    "OutputError",
    "ResumeError",
    "RowError",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    """Imports a name when it is used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
