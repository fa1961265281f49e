"""The state of a candidate, as the admin service sends it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .description import Description
from .limits import CanaryLimits, SideReport
from .report import ShadowReport


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    """A comparison.

    Attributes:
        share: Share of the texts that the candidate answers too, 0 to 1.
        report: What it has found.
        age_s: Seconds since the report: a candidate without processor time gives no newer one.
        failure: Why it has ended by itself; empty while it runs.
    """

    share: float
    report: ShadowReport
    age_s: float
    failure: str = ""


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    """A canary.

    Attributes:
        share: Share of the keys whose calls the candidate answers, 0 to 1.
        limits: At which it is rolled back.
        served: Answers of the served model since it began.
        candidate: Those of the candidate.
        rollback: Why it was rolled back; empty while it runs.
    """

    share: float
    limits: CanaryLimits
    served: SideReport
    candidate: SideReport
    rollback: str = ""


@dataclass(frozen=True, slots=True)
class CandidateStatus:
    """A candidate.

    Attributes:
        bundle: Its directory.
        description: What it is.
        served_model_id: The model that it may replace.
        shadow: Its comparison; None without one.
        canary: Its canary; None without one.
    """

    bundle: Path
    description: Description
    served_model_id: str
    shadow: ShadowStatus | None
    canary: CanaryStatus | None
