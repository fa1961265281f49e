"""Reports of one server process: the identity of its model, the result of a reload, its statistics.

The admin service sends them to operators, and workers send them to their supervisor. A server without ``--workers`` is
one process and reports in the same types.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeadIdentity:
    """Name, kind and ordered labels of one head."""

    name: str
    kind: str
    labels: tuple[str, ...]

    def __str__(self) -> str:
        """The head as shown in an error message."""
        labels = f": {', '.join(self.labels)}" if self.labels else ""
        return f"{self.name} ({self.kind}{labels})"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The properties of a model that clients rely on and that must not change without their knowledge.

    Attributes:
        embedding_space: Fingerprint; only embeddings of the same space can be compared.
        heads: The heads, in order.
        prompts: Text of each prompt, by its name.
    """

    embedding_space: str
    heads: tuple[HeadIdentity, ...]
    prompts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The model that a process serves after a reload.

    Attributes:
        process_id: The process.
        model_id: Name of the bundle, as in ``polyhead.v1.ModelInfo``.
        head_fingerprints: Fingerprint by head name.
        identity: Identity of the model.
        model_name: Its name in requests.
    """

    process_id: int
    model_id: str
    head_fingerprints: dict[str, str]
    identity: ModelIdentity
    model_name: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """State of one process. ``polyhead.v1.WorkerStats`` documents the fields; durations are in seconds here."""

    process_id: int
    model_id: str
    serving: bool
    up_time: float
    requests_running: int
    queued_items: int
    queued_tokens: int
    expected_wait: float
    items_total: int
    tokens_total: int
    padding_tokens_total: int
    batches_total: int
    compute_total: float
    item_errors_total: dict[str, int]
    compute_threads: int
    model_name: str = ""
