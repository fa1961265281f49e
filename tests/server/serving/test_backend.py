"""One model behind the dialects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

from polyhead_server.inference.model import Model
from polyhead_server.serving.backend import Backend, Service
from polyhead_server.settings import Settings


def test_view_of_each_model_is_made_once(model: Model, settings: Callable[..., Settings]) -> None:
    made: list[Model] = []

    def make(_: Backend, of: Model) -> object:
        made.append(of)
        return object()

    backend = Backend(cast(Service, None), settings(), lambda: True)
    models = [model, dataclasses.replace(model)]
    first = [backend.view(make, one) for one in models]
    assert [backend.view(make, one) for one in models] == first
    assert made == models
