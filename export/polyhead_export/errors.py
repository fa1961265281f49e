"""What can go wrong between a run directory and a verified bundle.

Errors::

    ExportError
    +-- GraphError            the model does not become an ONNX graph that may leave this machine
    |   +-- FusionError       a part of the graph that was expected to become one operator did not
    +-- SettingsError         the export's configuration or what it names cannot be used; mend the file
    +-- ContentError          a bundle is whole, but what is in its files is not what its manifest says
    +-- GateError             a graph does not answer as the trained model does; nothing was written
        +-- NamesError        its inputs or outputs have other names
        +-- ShapeError         its inputs or outputs have other dimensions or types
        +-- ValuesError       its answers differ from the trained model's
        +-- LabelsError       it gives other labels
        +-- AccuracyError     it is right less often on the labelled rows
        +-- CalibrationError  its probabilities mean something else than the trained model's
        +-- InvarianceError   its answer to a text depends on the padding or on the other texts of the batch
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyhead_bundle import Check


class ExportError(Exception):
    """Base of everything that this room raises on purpose; ``polyhead_bundle`` has its own."""


class GraphError(ExportError):
    """The model does not become an ONNX graph that may leave this machine."""


class FusionError(GraphError):
    """A part of the graph that was expected to become one operator did not."""


class SettingsError(ExportError):
    """The export's configuration cannot be used.

    Attributes:
        path: The configuration file, or the file that an option names.
        reason: What is wrong with it, and the mend.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ContentError(ExportError):
    """A file of a bundle has its right hash, but not the content that the manifest promises.

    Attributes:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; export the model again")
        self.path = path
        self.reason = reason


class GateError(ExportError):
    """A graph did not pass its gate.

    Attributes:
        variant: Name of the variant that failed.
        failed: The checks that failed, with the measured value and the limit.
    """

    def __init__(self, variant: str, failed: Sequence[Check]) -> None:
        numbers = ", ".join(f"{check.name} is {check.value:.3g} (limit {check.limit:.3g})" for check in failed)
        super().__init__(f"variant {variant} did not pass its gate: {numbers}")
        self.variant = variant
        self.failed = tuple(failed)


class NamesError(GateError):
    """The graph's inputs or outputs have other names than the model's."""


class ShapeError(GateError):
    """The graph's inputs or outputs have other dimensions or types than the model's."""


class ValuesError(GateError):
    """The graph's answers differ from the trained model's."""


class LabelsError(GateError):
    """The graph gives texts other labels than the model."""


class AccuracyError(GateError):
    """The graph is right less often on the labelled rows than the model."""


class CalibrationError(GateError):
    """The graph's probabilities mean something else than the model's."""


class InvarianceError(GateError):
    """The graph's answer to a text depends on the padding or on the other texts of the batch."""
