"""A server whose engine answers at once, so that everything else is what its CPU time goes to.

    python -m bench.server.instant_server build/demo/bundle --listen 127.0.0.1:50051

Takes the flags of polyhead-serve. The bundle is loaded and verified as usual; then every text gets the outputs of the
first golden text.
"""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from polyhead_server import cli
from polyhead_server.engines import Engine
from polyhead_server.engines.collate import pad
from polyhead_server.inference.model import Loading, Model, load_model
from polyhead_server.lifecycle import model_unit
from polyhead_server.settings import Settings

from bench.harness.arguments import make_parser

_ROWS = 4096


class InstantEngine:
    """Answers every text with the same outputs."""

    def __init__(self, model: Model) -> None:
        """Computes the outputs with the engine of the model."""
        self._engine: Engine = model.engine
        self.runtime = model.engine.runtime
        manifest = model.source.manifest
        (text,) = model.tokenizer.encode([manifest.variants[self.runtime.variant].golden[0].text])
        outputs = self._engine.run(*pad([text.windows[0]], manifest.pad_token_id))
        self._outputs = [np.repeat(one, _ROWS, axis=0) for one in outputs]  # (_ROWS, outputs) each

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Returns the outputs for each row of a batch."""
        del attention_mask
        return [one[: len(input_ids)].copy() for one in self._outputs]

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()


def main() -> None:
    """Runs the command line of the server."""
    _, flags = make_parser(__doc__).parse_known_args()
    with mock.patch.object(model_unit, "load_model", load_instantly):
        cli.main(flags)


def load_instantly(settings: Settings, loading: Loading | None = None) -> Model:
    """Loads a model as ``load_model`` does, and replaces its engine."""
    model = load_model(settings, loading)
    return dataclasses.replace(model, engine=InstantEngine(model), intra_op_engine=None)


if __name__ == "__main__":
    main()
