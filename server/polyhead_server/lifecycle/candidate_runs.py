"""The candidate and what runs for it: its process in a shadow, its engine in a canary, with their last reports."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyhead_server.candidate.description import Description
from polyhead_server.candidate.limits import CanaryLimits, Window, exceeded, merged, report_of
from polyhead_server.candidate.parameters import CanaryCounts, CandidateBundle
from polyhead_server.candidate.process import CandidateProcess
from polyhead_server.candidate.report import ShadowReport
from polyhead_server.candidate.status import CanaryStatus, CandidateStatus, ShadowStatus
from polyhead_server.errors import CandidateError

# Seconds between two reports, for the metrics.
SHADOW_INTERVAL_S = 5.0
# Seconds between two looks at the limits of a canary, and how many of them the limits count.
CANARY_INTERVAL_S = 1.0
WINDOW_POLLS = 60


@dataclass(eq=False)
class ShadowRun:
    """A comparison.

    Attributes:
        process: Computes it.
        folder: Folder of its socket.
        share: Share of the texts.
        failure: Why it has ended by itself; empty while it runs.
    """

    process: CandidateProcess
    folder: Path
    share: float
    failure: str = ""
    interval_s: float = SHADOW_INTERVAL_S
    _report: ShadowReport = field(default_factory=ShadowReport)
    _reported: float = field(default_factory=time.monotonic)

    async def update(self) -> None:
        """Asks for a report; keeps the last one if there is no answer."""
        if not self.failure:
            with contextlib.suppress(CandidateError):
                self._report = await self.process.request(ShadowReport)
                self._reported = time.monotonic()

    def status(self) -> ShadowStatus:
        """Returns the last report."""
        return ShadowStatus(self.share, self._report, time.monotonic() - self._reported, self.failure)

    async def stop(self) -> None:
        """Ends the process."""
        await self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class CanaryRun:
    """A canary.

    Attributes:
        process: The candidate's engine.
        folder: Folder of its socket.
        share: Share of the keys.
        limits: At which it is rolled back.
        rollback: Why it was rolled back; empty while it runs.
        counts: Those of every serving process at the last look.
    """

    process: CandidateProcess
    folder: Path
    share: float
    limits: CanaryLimits
    rollback: str = ""
    counts: Sequence[CanaryCounts] = ()
    interval_s: float = CANARY_INTERVAL_S
    _window: Window = field(default_factory=lambda: Window(WINDOW_POLLS))

    def exceeded(self) -> str | None:
        """Adds the counts to those of the last minute; returns which limit was exceeded, None for none."""
        return exceeded(self.limits, *self._window.add(self.counts))

    def status(self) -> CanaryStatus:
        """Returns the counts at the last look."""
        served, candidate = (one.served for one in self.counts), (one.candidate for one in self.counts)
        return CanaryStatus(
            self.share, self.limits, report_of(merged(served)), report_of(merged(candidate)), self.rollback
        )

    async def stop(self) -> None:
        """Ends the engine."""
        await self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class Candidate:
    """The candidate.

    Attributes:
        bundle: Its bundle.
        description: What its process reported at its start.
        shadow: The comparison, if there is one.
        canary: The last canary; also one that was rolled back.
    """

    bundle: CandidateBundle
    description: Description
    shadow: ShadowRun | None = None
    canary: CanaryRun | None = None

    @property
    def model_id(self) -> str:
        """Identifier of its model."""
        return self.description.model_id

    @property
    def running_canary(self) -> CanaryRun | None:
        """The canary, unless it was rolled back."""
        return self.canary if self.canary and not self.canary.rollback else None

    def status(self, served_model_id: str = "") -> CandidateStatus:
        """Returns its state beside a served model."""
        return CandidateStatus(
            self.bundle.path,
            self.description,
            served_model_id,
            self.shadow.status() if self.shadow else None,
            self.canary.status() if self.canary else None,
        )
