"""The parameters of a request of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhead_server.errors import InvalidRequestError

from .open_inference_input import shown

# Parameters that clients send by themselves and that change nothing here.
_IGNORED = frozenset({"priority", "triton_enable_empty_final_response", "request_type", "binary_data_output"})


class Parameters:
    """A request's parameters, each of which is taken by its name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Takes the parameters as the client sent them."""
        self._values = values
        self._known: set[str] = set(_IGNORED)

    def require_known(self) -> None:
        """Rejects a parameter that nobody took.

        Raises:
            InvalidRequestError: Names it, and those that are known.
        """
        for name, value in self._values.items():
            # MLServer's types write every parameter that they know, most of them as null.
            if name not in self._known and value is not None:
                known = ", ".join(sorted(self._known - _IGNORED - {"content_type"}))
                problem = f"parameter {shown(name)} is not known to this server; it knows {known}"
                raise InvalidRequestError("UNKNOWN_PARAMETER", problem)

    def choice(self, name: str, choices: Mapping[str, Any], default: Any) -> Any:
        """Returns the choice that a parameter names; the default without it.

        Raises:
            InvalidRequestError: It has any other value.
        """
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            raise _invalid(name, f"must be one of {', '.join(choices)}")
        return choices[value]

    def string(self, name: str) -> str:
        """Returns a text; empty without the parameter.

        Raises:
            InvalidRequestError: It has any other value.
        """
        value = self._take(name)
        if value is None or isinstance(value, str):
            return value or ""
        raise _invalid(name, "must be a string")

    def boolean(self, name: str) -> bool:
        """Returns a boolean; False without the parameter.

        Raises:
            InvalidRequestError: It has any other value.
        """
        value = self._take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _invalid(name, "must be a boolean")

    def integer(self, name: str, maximum: int) -> int:
        """Returns an integer from 0 to the maximum; 0 without the parameter.

        Raises:
            InvalidRequestError: It has any other value.
        """
        value = self._take(name)
        if value is None:
            return 0
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum:
            return value
        raise _invalid(name, f"must be an integer from 0 to {maximum}")

    def _take(self, name: str) -> Any:
        self._known.add(name)
        return self._values.get(name)


def _invalid(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError("INVALID_PARAMETER", f"parameter {name} {problem}")
