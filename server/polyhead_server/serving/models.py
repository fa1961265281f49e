"""The models of a server by name, in front of the backend of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from polyhead_server.errors import ModelNotFoundError

from .backend import Backend

# Metadata key of a gRPC call, and header of an HTTP request, that names the model.
MODEL_KEY = "x-polyhead-model"


class Models:
    """The models of a server, at least one. The first answers requests that name none.

    Attributes:
        default: Backend of the first model.
        body_bytes: Bytes of HTTP bodies and unread responses that are kept, for whichever model.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Creates the registry.

        Args:
            backends: One for each model; their names differ.
        """
        self.default = backends[0]
        self.body_bytes = 0
        self._backends = tuple(backends)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends)

    @property
    def ready(self) -> bool:
        """Whether the server should receive calls."""
        return self.default.ready

    def names(self) -> list[str]:
        """Returns the names of the models, the default first.

        Raises:
            NotReadyError: A model without a name of its own is still loading.
        """
        return [backend.served_name() for backend in self._backends]

    def named(self, name: str) -> Backend:
        """Returns the backend of a model by its served name, or by the model's id.

        Raises:
            ModelNotFoundError: No model has the name; lists those that there are.
            NotReadyError: The model, or one that may have this id, is still loading.
        """
        for backend in self._backends:
            if backend.served_name() == name:
                return backend
        for backend in self._backends:
            if name in backend.service.model_ids():
                return backend
        raise self.not_found()

    def selected(self, name: str | None) -> Backend:
        """Returns the backend of the named model; the default without a name.

        Raises:
            ModelNotFoundError: No model has the name.
            NotReadyError: It is still loading.
        """
        return self.named(name) if name else self.default

    def not_found(self) -> ModelNotFoundError:
        """Returns the error of a request for another model or version, which lists those that there are."""
        return ModelNotFoundError(*self.names())


def name_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Returns the name of the model in the metadata of a call; empty if there is none."""
    for key, value in metadata or ():
        if key == MODEL_KEY:
            return str(value)
    return ""
