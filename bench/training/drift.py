"""Drift: how soon it is detected, how often it is reported without any, and what counting costs.

    python -m bench.training.drift DATA --bundle BUNDLE --output bench/results/drift.json
    python -m bench.training.drift DATA --bundle BUNDLE --rows 1200 --weeks 10 --output /tmp/quick.json

DATA is a folder with data sets; BUNDLE is any bundle, of which only the embedding is used. A logistic regression on the
embeddings of AG News is the head. For each of ten divisions of its rows, one half trains, 1,000 texts are the
validation whose reference a bundle would have, and the others are drawn again and again as the traffic of weeks, with
one bucket for each hour and a window of a day, the defaults of polyhead-serve.

In *independent* traffic each text is drawn by itself. In *sessions* ten texts of one label follow each other, and the
share of each label rises and falls with the time of day. In drift by *reviews*, a share of the texts are reviews of
products; in drift by *label*, of one label. *Sudden* drift has its full share from the third day on, *slow* drift
reaches it at the end of the week.

A week without drift with any report is a false alarm. *Delay* counts from the beginning of the drift. *Uncorrected* are
the weeks in which a measure would be significant if texts were independent; *significant* those in which one is.

*Cost* is the CPU time of counting in the event loop, per text, beside that of the forward pass of full batches.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_server.drift.counting import Counter, Rows
from polyhead_server.drift.measures import measures_of
from polyhead_server.drift.report import MAX_P_VALUE, compare
from polyhead_server.drift.sketch import Sketch
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.settings import Settings
from polyhead_training.evaluation.calibration import fit_temperature
from polyhead_training.evaluation.novelty import NoveltyModel, fit_novelty
from polyhead_training.evaluation.probabilities import probabilities
from polyhead_training.evaluation.reference import describe_validation
from polyhead_training.model_config import HeadConfig
from tqdm import tqdm

from bench.harness import results
from bench.harness import texts as files
from bench.harness.arguments import add_output_flag, make_parser

from .drift_cost import cost
from .frozen_embeddings import Embedder, fit_head

Counts = NDArray[np.float64]

VALIDATION_TEXTS = 1000
DIVISIONS = 10
WEEK_H, DRIFT_FROM_H, EVERY_H = 168, 48, 4
SESSION_TEXTS = 10
SETTINGS = Settings(bundle=Path("unused"))


class Traffic(NamedTuple):
    """Texts that weeks are drawn from.

    Attributes:
        counts: (N, width) of each usual text.
        labels: (N,) predicted labels.
        reviews: (M, width) of each review.
        counter: The measures.
    """

    counts: Counts
    labels: NDArray[np.intp]
    reviews: Counts
    counter: Counter


class Scenario(NamedTuple):
    """A kind of weeks.

    Attributes:
        traffic: ``independent`` or ``sessions``.
        drift: ``none``, ``reviews`` or ``label``.
        onset: ``sudden`` or ``slow``; empty without drift.
        share: Of the texts at the end.
    """

    traffic: str
    drift: str = "none"
    onset: str = ""
    share: float = 0.0


SCENARIOS = (
    Scenario("independent"),
    Scenario("sessions"),
    *(Scenario("sessions", "reviews", "sudden", share) for share in (0.1, 0.2, 0.5)),
    *(Scenario("sessions", "label", "sudden", share) for share in (0.2, 0.5)),
    Scenario("sessions", "reviews", "slow", 0.5),
)


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle whose embedding is used")
    parser.add_argument("--variant", default="int8", help="variant that embeds the texts (default: int8)")
    parser.add_argument("--rows", type=int, default=6000, help="news texts (default: 6000)")
    parser.add_argument("--weeks", type=int, default=200, help="weeks of each kind (default: 200)")
    parser.add_argument("--per-hour", type=int, default=50, help="texts per hour (default: 50)")
    parser.add_argument("--work-dir", type=Path, default=Path("build/embeddings"), help="folder of the embeddings")
    add_output_flag(parser, Path("bench/results/drift.json"))
    arguments = parser.parse_args()
    embed = Embedder(arguments.bundle, arguments.variant, arguments.work_dir)
    news = files.read(arguments.data / "agnews_train.jsonl.gz")
    chosen = np.random.default_rng(0).permutation(len(news))[: arguments.rows]
    reviews = files.read_texts(arguments.data / "blitzer_joint_dev.jsonl.gz")[:1000]
    source = bundle.load(arguments.bundle)
    corpus = Corpus(source, [news[index] for index in chosen], reviews, embed)
    weeks: dict[Scenario, list[dict[str, Any]]] = {scenario: [] for scenario in SCENARIOS}
    for division in tqdm(range(DIVISIONS), unit="division"):
        traffic = corpus.divide(division)
        for number, scenario in enumerate(SCENARIOS):
            rng = np.random.default_rng([division, number])
            for _ in range(arguments.weeks // DIVISIONS):
                weeks[scenario].append(simulate(traffic, scenario, arguments.per_hour, rng))
    width = traffic.counter.width
    report = {
        **results.provenance(("polyhead", "scikit-learn")),
        "variant": arguments.variant,
        "per_hour": arguments.per_hour,
        "validation_texts": VALIDATION_TEXTS,
        "min_distance": SETTINGS.drift_min_distance,
        "max_p_value": MAX_P_VALUE,
        "memory_bytes": Sketch(width, SETTINGS.drift_bucket_s, 24).nbytes,
        "cost": cost(arguments.bundle, arguments.variant),
        "runs": [{**scenario._asdict(), **summary(found)} for scenario, found in weeks.items()],
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


class Corpus:
    """News and reviews: embeddings, lengths and labels."""

    def __init__(
        self, source: bundle.Bundle, news: Sequence[dict[str, Any]], reviews: Sequence[str], embed: Embedder
    ) -> None:
        manifest = source.manifest
        self._manifest = manifest
        self._labels, self._targets = np.unique([row["label"] for row in news], return_inverse=True)
        texts = [[row["text"] for row in news], list(reviews)]
        self._vectors = [embed(one) for one in texts]
        tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 250 * manifest.max_tokens)
        tokens = [tokenizer.encode(one) for one in texts]
        self._seen = [np.array([text.seen for text in one]) for one in tokens]
        unknown = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
        self._read = [
            [(len(text.windows[0]) - tokenizer.special_tokens, text.windows[0].count(unknown)) for text in one]
            for one in tokens
        ]
        tokenizer.close()

    def divide(self, seed: int) -> Traffic:
        """Divides the news, trains a head and describes its validation; returns the counts of the other texts."""
        vectors, reviews = self._vectors
        order = np.random.default_rng(seed).permutation(len(vectors))
        half = len(order) // 2
        train, validation, others = np.split(order, [half, min(half + VALIDATION_TEXTS, half + half // 2)])
        head = fit_head(vectors[train], self._targets[train])
        logits = head.logits(vectors[validation])
        temperature = fit_temperature("softmax", logits, self._targets[validation])
        novelty = fit_novelty(vectors[train], vectors[validation])
        manifest = self._with_reference(validation, logits, temperature, novelty)
        counter = Counter(manifest, measures_of(manifest))
        answers = [probabilities("softmax", head.logits(one), temperature) for one in (vectors[others], reviews)]
        everything = np.arange(len(reviews))
        return Traffic(
            np.array(list(self._count(counter, 0, others, answers[0], novelty))),
            answers[0].argmax(axis=1),
            np.array(list(self._count(counter, 1, everything, answers[1], novelty))),
            counter,
        )

    def _with_reference(
        self, rows: NDArray[np.intp], logits: Counts, temperature: float, novelty: NoveltyModel
    ) -> bundle.Manifest:
        read = [self._read[0][row] for row in rows]
        found = describe_validation(
            [HeadConfig(name="topic", kind="softmax", labels=tuple(map(str, self._labels)))],
            {"topic": logits},
            {"topic": temperature},
            {"topic": None},
            tokens=self._seen[0][rows].tolist(),
            max_tokens=self._manifest.max_tokens,
            unknown_tokens=sum(one[1] for one in read) / sum(one[0] for one in read),
            novelty=novelty,
        )
        assert found is not None  # noqa: S101 - there are rows
        topic = bundle.HeadReference(
            *(tuple(found["heads"]["topic"][key]) for key in ("answers", "confidence", "edges"))
        )
        reference = bundle.Reference(
            found["rows"],
            {"topic": topic},
            tuple(found["tokens"]),
            found["truncated"],
            found["unknown_tokens"],
            tuple(found["embedding_mean"]),
            tuple(found["embedding_spread"]),
        )
        head = bundle.Head("topic", "softmax", "logits", tuple(map(str, self._labels)), temperature=temperature)
        described = bundle.Novelty(1, (), 1.0, tuple(novelty.percentiles.tolist()))
        return dataclasses.replace(self._manifest, heads=(head,), reference=reference, novelty=described)

    def _count(
        self, counter: Counter, part: int, rows: NDArray[np.intp], answers: Counts, novelty: NoveltyModel
    ) -> Iterator[Counts]:
        """Yields the counts of each text by itself."""
        vectors, seen = self._vectors[part][rows], self._seen[part][rows]
        scores = novelty.score(vectors)
        for place, row in enumerate(rows):
            one = slice(place, place + 1)
            truncated = seen[one] > self._manifest.max_tokens
            yield counter.count(
                Rows({"topic": answers[one]}, seen[one], truncated, self._read[part][row], vectors[one], scores[one])
            )


def simulate(traffic: Traffic, scenario: Scenario, per_hour: int, rng: np.random.Generator) -> dict[str, Any]:
    """Simulates a week; returns the hour of the first report, if any, and whether a measure was ever significant."""
    label = int(rng.integers(traffic.labels.max() + 1))
    sketch = Sketch(traffic.counter.width, SETTINGS.drift_bucket_s, round(SETTINGS.drift_window_s / 3600))
    found: dict[str, Any] = {"hour": None, "measure": "", "significant": False, "uncorrected": False}
    for hour in range(WEEK_H):
        now = 3600.0 * hour
        sketch.add(draw(traffic, scenario, hour, per_hour, label, rng), now)
        if hour < 24 or hour % EVERY_H:
            continue
        _, blocks = sketch.blocks(now)
        measures = compare(traffic.counter.measures, blocks, SETTINGS.drift_min_distance)
        if scenario.drift == "none":
            alike = np.repeat(blocks.mean(axis=0)[None], len(blocks), axis=0)
            independent = compare(traffic.counter.measures, alike, 0.0)
            found["significant"] |= any((one.p_value or 0) <= MAX_P_VALUE for one in measures)
            found["uncorrected"] |= any(one.drifted for one in independent)
        drifted = [one for one in measures if one.drifted]
        # A report before the drift begins is a false alarm, which the weeks without drift count.
        if drifted and found["hour"] is None and (scenario.drift == "none" or hour > onset(scenario)):
            first = max(drifted, key=lambda one: one.distance).measure
            found |= {"hour": hour, "measure": f"{first.head} {first.name}".strip()}
            if scenario.drift != "none":
                break
    return found


def draw(  # noqa: PLR0917
    traffic: Traffic, scenario: Scenario, hour: int, per_hour: int, label: int, rng: np.random.Generator
) -> Counts:
    """Draws the texts of an hour; returns their counts."""
    share = drift_share(scenario, hour)
    if scenario.traffic == "independent":
        return np.asarray(traffic.counts[rng.integers(len(traffic.counts), size=per_hour)].sum(axis=0))
    total = np.zeros(traffic.counter.width)
    number = int(traffic.labels.max()) + 1
    usual = np.bincount(traffic.labels, minlength=number) / len(traffic.labels)
    phases = 2 * np.pi * (hour / 24 + np.arange(number) / number)
    weights = usual * (1 + 0.5 * np.sin(phases))
    for _ in range(per_hour // SESSION_TEXTS):
        if scenario.drift == "reviews" and rng.random() < share:
            pool = traffic.reviews
        else:
            changed = scenario.drift == "label" and rng.random() < share
            topic = label if changed else rng.choice(number, p=weights / weights.sum())
            pool = traffic.counts[traffic.labels == topic]
        total += pool[rng.integers(len(pool), size=SESSION_TEXTS)].sum(axis=0)
    return total


def drift_share(scenario: Scenario, hour: int) -> float:
    """Returns the share of the texts that drift has changed in an hour."""
    if scenario.onset == "slow":
        return scenario.share * hour / WEEK_H
    return scenario.share if hour >= DRIFT_FROM_H else 0.0


def onset(scenario: Scenario) -> int:
    """Returns the hour at which the drift begins."""
    return DRIFT_FROM_H if scenario.onset == "sudden" else 0


def summary(weeks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of all weeks of a kind."""
    first = [week for week in weeks if week["hour"] is not None]
    hours = [week["hour"] for week in first]
    names = sorted({week["measure"] for week in first})
    return {
        "weeks": len(weeks),
        "reported": len(first),
        "hours": [float(value) for value in np.quantile(hours, (0.1, 0.5, 0.9))] if hours else None,
        "measures": {name: sum(week["measure"] == name for week in first) for name in names},
        "significant": sum(week["significant"] for week in weeks),
        "uncorrected": sum(week["uncorrected"] for week in weeks),
    }


if __name__ == "__main__":
    main()
