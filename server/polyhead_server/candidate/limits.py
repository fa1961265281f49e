"""The limits at which a canary is rolled back, on the counts that the serving processes report."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .histogram import Latency, LogHistogram
from .parameters import Answers, CanaryCounts


@dataclass(frozen=True, slots=True)
class CanaryLimits:
    """Limits of a canary, each on the texts of the last minute.

    Attributes:
        error_rate: How much larger than the served model's share of failed texts the candidate's may be, 0 to 1.
        p99_ratio: 99th percentile of the candidate's latency, divided by that of the served model; 0 for no limit.
        p99_s: 99th percentile of the candidate's latency in seconds; 0 for no limit.
        min_texts: Texts that the candidate must have answered before the limits count.
    """

    error_rate: float = 0.01
    p99_ratio: float = 2.0
    p99_s: float = 0.0
    min_texts: int = 100


@dataclass(frozen=True, slots=True)
class SideReport:
    """Answers of one model during a canary, in all processes."""

    texts: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    latency: Latency = field(default_factory=Latency)

    @property
    def error_rate(self) -> float:
        """Share of the texts that failed."""
        return sum(self.errors.values()) / max(self.texts, 1)


class Window:
    """The counts of the last minute: totals come in, and differences to a minute ago come out."""

    def __init__(self, polls: int) -> None:
        """Takes how many totals a minute has."""
        self._totals: deque[tuple[Answers, Answers]] = deque([(Answers(), Answers())], maxlen=polls)
        self._processes = self._ignored = 0

    def add(self, counts: Sequence[CanaryCounts]) -> tuple[SideReport, SideReport]:
        """Takes the totals of all processes; returns the served model's and the candidate's answers since a minute."""
        served, candidate = merged(one.served for one in counts), merged(one.candidate for one in counts)
        oldest = self._totals[0]
        self._ignored = self._ignored + 1 if len(counts) < self._processes else 0
        # Totals without a process that hangs for a moment would later make all its answers those of a minute.
        if not self._ignored or self._ignored > (self._totals.maxlen or 0):
            self._totals.append((served, candidate))
            self._processes, self._ignored = len(counts), 0
        return _difference(served, oldest[0]), _difference(candidate, oldest[1])


def exceeded(limits: CanaryLimits, served: SideReport, candidate: SideReport) -> str | None:
    """Returns which limit the candidate exceeds; None for none."""
    if candidate.texts < limits.min_texts:
        return None
    rate, usual = candidate.error_rate, served.error_rate
    if rate - usual > limits.error_rate:
        reasons = ", ".join(sorted(candidate.errors))
        return f"{rate:.2%} of its texts failed ({reasons}); of the served model's {usual:.2%}"
    p99_s = candidate.latency.p99
    if limits.p99_s and p99_s > limits.p99_s:
        return f"the 99th percentile of its latency is {p99_s * 1000:.0f} ms, the limit {limits.p99_s * 1000:.0f} ms"
    if limits.p99_ratio and served.texts >= limits.min_texts and p99_s > limits.p99_ratio * served.latency.p99:
        return (
            f"the 99th percentile of its latency is {p99_s * 1000:.0f} ms, "
            f"more than {limits.p99_ratio:g} times the {served.latency.p99 * 1000:.0f} ms of the served model"
        )
    return None


def merged(answers: Iterable[Answers]) -> Answers:
    """Adds up the counts of several processes."""
    texts, total_s = 0, 0.0
    errors: Counter[str] = Counter()
    buckets: Counter[str] = Counter()
    for one in answers:
        texts, total_s = texts + one.texts, total_s + one.total_s
        errors.update(one.errors)
        buckets.update(one.buckets)
    return Answers(texts, dict(errors), dict(buckets), total_s)


def report_of(answers: Answers) -> SideReport:
    """Summarizes counts."""
    histogram = LogHistogram()
    histogram.add_counts(answers.buckets, answers.total_s)
    return SideReport(answers.texts, answers.errors, histogram.latency())


def _difference(new: Answers, old: Answers) -> SideReport:
    # A process that has ended takes its counts with it: a difference below 0 counts as none.
    errors = Counter(new.errors) - Counter(old.errors)
    buckets = Counter(new.buckets) - Counter(old.buckets)
    texts = max(new.texts - old.texts, 0)
    return report_of(Answers(texts, dict(errors), dict(buckets), max(new.total_s - old.total_s, 0.0)))
