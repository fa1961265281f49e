"""The bundle of a candidate: where it is, and how it is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Loading, Model, load_model
from polyhead_server.settings import Settings

from .parameters import CandidateBundle


def settings_for(settings: Settings, path: Path) -> Settings:
    """Returns the settings to load another bundle with. A signature is expected in the bundle's default place."""
    if path == settings.bundle:
        return settings
    return dataclasses.replace(settings, bundle=path, signature="")


def load_candidate(settings: Settings, candidate: CandidateBundle, loading: Loading | None = None) -> Model:
    """Loads a candidate as ``load_model`` loads the bundle of the command line.

    Raises:
        StartupError: As ``load_model``, or the bundle has another digest by now.
    """
    model = load_model(settings_for(settings, candidate.path), loading)
    if candidate.digest not in {"", model.source.digest}:
        model.close()
        raise StartupError(f"{candidate.path}: has changed since it became the candidate; discard it and begin again")
    return model
