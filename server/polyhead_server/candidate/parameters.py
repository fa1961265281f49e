"""What the processes of a server tell each other about a candidate. Requires no model, so a supervisor imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polyhead_server.process_reports import ModelIdentity
from polyhead_server.settings import Settings

from .description import Description


@dataclass(frozen=True, slots=True)
class CandidateBundle:
    """A bundle that is not the one of the command line.

    Attributes:
        path: Its directory.
        digest: SHA-256 of its manifest, which covers all files; empty for any.
    """

    path: Path
    digest: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Which texts to send to the candidate's process.

    Attributes:
        socket: Its socket; empty to stop.
        share: Share of the texts, 0 to 1.
    """

    socket: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class CanaryParams:
    """Which calls the candidate's engine answers.

    Attributes:
        socket: Its socket; empty to stop.
        share: Share of the keys, 0 to 1.
        lost: With an empty socket: whether the engine does not answer any more, so that nobody waits for it.
    """

    socket: str = ""
    share: float = 0.0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """Counts of the answers of one model in one process.

    Attributes:
        texts: Texts that were answered, or failed.
        errors: Those that failed, by reason.
        buckets: Latencies from the arrival of a message to the answer, by bucket of ``LogHistogram``.
        total_s: Their sum in seconds.
    """

    texts: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, int] = field(default_factory=dict)
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CanaryCounts:
    """Counts of one process since the canary began."""

    served: Answers = field(default_factory=Answers)
    candidate: Answers = field(default_factory=Answers)


@dataclass(frozen=True)
class ShadowConfig:
    """What the process is to do.

    Attributes:
        settings: The server's.
        candidate: Bundle of the candidate.
        served: Bundle of the served model.
        socket: Where to listen for packets.
        keep_texts: Number of changed texts to keep of each head.
        only_when_idle: Whether to compute only while nothing else does.
    """

    settings: Settings
    candidate: CandidateBundle
    served: Path
    socket: Path
    keep_texts: int
    only_when_idle: bool


@dataclass(frozen=True)
class EngineConfig:
    """What the process is to do.

    Attributes:
        settings: The server's.
        candidate: Bundle of the candidate.
        socket: Where to listen for the serving processes.
    """

    settings: Settings
    candidate: Path
    socket: Path


@dataclass(frozen=True)
class EngineStart:
    """What became of the start: the candidate and its identity; no identity if it was not loaded."""

    description: Description
    identity: ModelIdentity | None = None
