"""Other libraries that embed files of texts, each with a script that is run in an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.harness.texts import ROOT

FOLDER = Path(__file__).parent
ENVIRONMENTS = ROOT / "build/bulk-libraries"


@dataclass(frozen=True)
class Library:
    """A library in one configuration.

    Attributes:
        environment: Name of its environment and of ``requirements/NAME.txt``.
        script: Script that embeds a Parquet file: ``SCRIPT INPUT OUTPUT [ARGUMENTS]``.
        arguments: Further arguments of the script.
        graph_of: Name of the library whose ONNX graph it runs, and which must come before it.
    """

    environment: str
    script: Path
    arguments: tuple[str, ...] = ()
    graph_of: str | None = None

    @property
    def python(self) -> Path:
        """Interpreter of its environment."""
        return ENVIRONMENTS / self.environment / "bin/python"


LIBRARIES = {
    "sentence-transformers, onnx int8": Library(
        "sentence_transformers", FOLDER / "embed_sentence_transformers.py", ("onnx",)
    ),
    "sentence-transformers, openvino": Library(
        "sentence_transformers", FOLDER / "embed_sentence_transformers.py", ("openvino",)
    ),
    "sentence-transformers, torch": Library(
        "sentence_transformers", FOLDER / "embed_sentence_transformers.py", ("torch",)
    ),
    "fastembed": Library("fastembed", FOLDER / "embed_fastembed.py", graph_of="sentence-transformers, onnx int8"),
    "infinity, offline": Library("infinity", FOLDER / "embed_infinity.py"),
    "daft": Library("daft", FOLDER / "embed_daft.py"),
    "ray data": Library("ray", FOLDER / "embed_ray.py"),
}
