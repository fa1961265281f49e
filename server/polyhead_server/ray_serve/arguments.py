"""The arguments of the application: the server's own settings that have a meaning in a replica, and Ray Serve's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from polyhead_server.errors import StartupError
from polyhead_server.settings import STREAM_SHARE, Settings

_SETTINGS = {field.name: field for field in dataclasses.fields(Settings)}
# The ports are Ray's: its gRPC proxy listens on every interface, without TLS.
_LISTEN = "0.0.0.0:0"
# Tokens of a small call. With fewer, as many calls as fit into the queue would be more than a replica can hold.
_TOKENS_PER_CALL = 128


def _setting(name: str) -> Any:
    """Declares an argument with the default and the description of a setting."""
    return Field(default=_SETTINGS[name].default, description=_SETTINGS[name].metadata["help"])


class Arguments(BaseModel):
    """Arguments of ``polyhead_server.ray_serve:application``, as ``NAME=VALUE`` or under ``args:`` of a config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path = Field(description="Folder of the bundle, at the same path on every node.")
    public_key: str = _setting("public_key")
    signature: str = _setting("signature")
    engine: Literal["auto", "onnx", "torch"] = _setting("engine")
    device: Literal["auto", "cpu", "cuda"] = _setting("device")
    variant: str = _setting("variant")
    threads: int = _setting("threads")
    max_batch_tokens: int = _setting("max_batch_tokens")
    max_padding: float = _setting("max_padding")
    max_queue_s: float = _setting("max_queue_s")
    max_queue_tokens: int = _setting("max_queue_tokens")
    answer_cache_mb: int = _setting("answer_cache_mb")
    max_items_per_message: int = _setting("max_items_per_message")
    max_message_bytes: int = _setting("max_message_bytes")
    max_held_bytes: int = _setting("max_held_bytes")
    max_characters_per_token: int = _setting("max_characters_per_token")
    max_windows: int = _setting("max_windows")
    stream_window: int = _setting("stream_window")
    batch_timeout_s: float = _setting("batch_timeout_s")
    drain_timeout_s: float = _setting("drain_timeout_s")
    start_timeout_s: float = _setting("start_timeout_s")
    api_keys: str = _setting("api_keys")
    allow_plaintext_keys: bool = _setting("allow_plaintext_keys")
    served_name: str = _setting("served_name")
    dialects: str = Field(
        default=Settings.dialects,
        description="HTTP protocols to serve beside polyhead's and OpenAI's, separated by commas: oip, tei. Ray's gRPC "
        "proxy serves polyhead.v1 alone.",
    )
    no_playground: bool = _setting("no_playground")
    collect: str = _setting("collect")
    collect_share: float = _setting("collect_share")
    collect_mb: int = _setting("collect_mb")
    collect_redact: str = _setting("collect_redact")
    otlp_endpoint: str = _setting("otlp_endpoint")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("log_level")
    log_format: Literal["text", "json"] = _setting("log_format")
    access_log: Literal["debug", "info"] = _setting("access_log")

    min_replicas: int = Field(default=1, ge=1, description="Minimum number of replicas.")
    max_replicas: int = Field(default=1, ge=1, description="Maximum number of replicas.")
    target_queued_tokens: int = Field(
        default=20_000, ge=1, description="Tokens in the queue for each replica above which replicas are added."
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="Seconds until replicas are added.")
    downscale_delay_s: float = Field(default=300.0, ge=0, description="Seconds until replicas are removed.")
    cpus_per_replica: float = Field(
        default=1.0, gt=0, description="Cores of a replica. It runs as many compute threads, unless threads says else."
    )
    gpus_per_replica: float = Field(default=0.0, ge=0, description="GPUs of a replica.")
    max_streams: int = Field(default=1000, ge=1, description="Maximum number of open streams of a replica.")
    max_stream_age_s: float = Field(
        default=60.0,
        gt=0,
        description="Age in seconds at which a stream ends, so that a replica can stop and new replicas get streams. "
        "The clients continue on another stream.",
    )

    @field_validator("bundle")
    @classmethod
    def _absolute(cls, bundle: Path) -> Path:
        if bundle.is_absolute():
            return bundle
        if not bundle.exists():
            raise ValueError(f"{bundle} does not exist here; name a folder by its absolute path, which every node has")
        return bundle.absolute()

    @model_validator(mode="after")
    def _consistent(self) -> Arguments:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        try:
            self.settings()
        except StartupError as error:
            # Settings names flags of the command line.
            raise ValueError(re.sub(r"--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), str(error))) from None
        return self

    def settings(self, cores: int = 0) -> Settings:
        """Returns the settings of a replica.

        Args:
            cores: Number of cores of the replica; 0 asks the system.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields if name in _SETTINGS}
        return Settings(
            **values,
            cores=cores,
            listen=_LISTEN,
            allow_plaintext=True,
            # Any maximum age makes streams end after a part of the grace period.
            max_connection_age_s=self.max_stream_age_s,
            max_connection_age_grace_s=max(1.0, self.max_stream_age_s / STREAM_SHARE),
        )

    @property
    def max_ongoing_requests(self) -> int:
        """Calls that a replica accepts at once: its streams, and the unary calls that its queue has tokens for.

        Ray Serve holds further calls back without their deadlines, so the replica's own admission control, which knows
        them, should be the one that refuses.
        """
        return self.max_streams + max(1, self.max_queue_tokens // _TOKENS_PER_CALL)
