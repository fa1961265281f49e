"""Errors raised while a run directory is exported to a bundle, or a bundle is verified.

::

    ExportError
    +-- GraphError            the model cannot be exported to an ONNX graph that may be distributed
    |   +-- FusionError       a subgraph was not fused into one operator as expected
    +-- SettingsError         the export configuration, or a file that it names, is invalid
    +-- ContentError          a bundle is intact, but a file does not match its manifest
    +-- GateError             a graph does not match the trained model; nothing was written
        +-- ImplausibleModelError  the trained model itself makes no sense
        +-- NamesError        its inputs or outputs have other names
        +-- ShapeError        its inputs or outputs have other dimensions or types
        +-- ValuesError       its outputs differ from the trained model's
        +-- LabelsError       it predicts other labels
        +-- AccuracyError     it is less accurate on the evaluation data
        +-- CalibrationError  its probabilities are less well calibrated
        +-- InvarianceError   its output for a text depends on padding or on the other texts in the batch
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyhead_bundle import Check


class ExportError(Exception):
    """Base class of the errors of this package; ``polyhead_bundle`` defines its own.

    Attributes:
        exit_code: Exit code of a command that the error ends: 2 if its input is invalid, otherwise 1.
    """

    exit_code = 1


class GraphError(ExportError):
    """The model cannot be exported to an ONNX graph that may be distributed."""


class FusionError(GraphError):
    """A subgraph was not fused into one operator as expected."""


class SettingsError(ExportError):
    """The export configuration is invalid.

    Attributes:
        path: The configuration file, or the file that an option names.
        reason: What is wrong with it, and how to fix it.
    """

    exit_code = 2

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ContentError(ExportError):
    """A file of a bundle has the expected hash, but its content does not match the manifest.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    exit_code = 2

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; export the model again")
        self.path = path
        self.reason = reason


class GateError(ExportError):
    """A graph failed its gate.

    Attributes:
        variant: Name of the variant that failed.
        failed: The failed checks, each with the measured value and the limit.
    """

    def __init__(self, variant: str, failed: Sequence[Check]) -> None:
        numbers = ", ".join(f"{check.name} is {check.value:.3g} (limit {check.limit:.3g})" for check in failed)
        super().__init__(f"variant {variant} failed its gate: {numbers}")
        self.variant = variant
        self.failed = tuple(failed)


class NamesError(GateError):
    """The graph's inputs or outputs have other names than the model's."""


class ShapeError(GateError):
    """The graph's inputs or outputs have other dimensions or types than the model's."""


class ImplausibleModelError(GateError):
    """The trained model's outputs are not numbers, or hardly depend on the text."""


class ValuesError(GateError):
    """The graph's outputs differ from the trained model's."""


class LabelsError(GateError):
    """The graph predicts other labels than the model."""


class AccuracyError(GateError):
    """The graph is less accurate on the evaluation data than the model."""


class CalibrationError(GateError):
    """The graph's probabilities are less well calibrated than the model's."""


class InvarianceError(GateError):
    """The graph's output for a text depends on padding or on the other texts in the batch."""
