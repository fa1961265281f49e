"""Configuration of the adapters that are pydantic models."""

from __future__ import annotations

import os
from typing import Any

from polyhead_client import Tls, TruncationPolicy
from polyhead_client.choices import DEFAULT_TARGET
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_serializer

from ._connection import Connection, tls_to_dict

# The variable that the command ``polyhead`` reads.
API_KEY_VARIABLE = "POLYHEAD_API_KEY"


def _api_key_from_environment() -> SecretStr | None:
    key = os.environ.get(API_KEY_VARIABLE)
    return SecretStr(key) if key else None


class ConnectionFields(BaseModel):
    """Server, credentials and options of an adapter's calls; see ``ConnectionOptions`` for their meaning.

    The API key is read from ``POLYHEAD_API_KEY`` unless it is given. It appears in no repr and in no serialized form.

    Raises:
        InvalidRequestError: A field has an invalid value.
    """

    model_config = ConfigDict(extra="forbid")

    target: str = DEFAULT_TARGET
    api_key: SecretStr | None = Field(default_factory=_api_key_from_environment, exclude=True)
    tls: Tls | None = None
    truncation: TruncationPolicy = "truncate"
    deadline_s: float | None = None
    expected_embedding_space: str | None = None
    client_options: dict[str, Any] = Field(default_factory=dict)

    _connection: Connection = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Creates the clients, which connect at the first call."""
        super().model_post_init(context)
        self._connection = Connection(
            self.target,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            tls=self.tls,
            truncation=self.truncation,
            prompt=getattr(self, "prompt", None),
            deadline_s=self.deadline_s,
            expected_embedding_space=self.expected_embedding_space,
            dimensions=getattr(self, "dimensions", None),
            client_options=self.client_options,
        )

    @field_serializer("tls")
    def _tls_as_dict(self, tls: Tls | None) -> dict[str, str] | None:
        return tls_to_dict(tls)

    def close(self) -> None:
        """Closes the connections of synchronous calls."""
        self._connection.close()

    async def aclose(self) -> None:
        """Closes the connections of the running event loop."""
        await self._connection.aclose()
