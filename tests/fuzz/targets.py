"""What is fuzzed: for each target, a function of bytes that raises for a fault, and inputs to start from.

A reader may reject an input only in its own words: with the errors that its docstring names, or in its answer. Any
other exception is a fault, and so is an answer that contradicts the input. The server's model is a golden bundle of
``tests/compat``, with heads of every kind.
"""

from __future__ import annotations

from .bundle_targets import BUNDLE_TARGETS
from .row_targets import ROW_TARGETS
from .server_targets import SERVER_TARGETS

TARGETS = {**SERVER_TARGETS, **BUNDLE_TARGETS, **ROW_TARGETS}
