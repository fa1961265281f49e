"""Checks that public texts use the project's vocabulary; prints each private word with its place and replacement.

    python -m tests.support.public_wording             # exit code 1 if it finds any
    python -m tests.support.public_wording deploy      # one surface only

A surface is a kind of text that users read: the help of every command, metrics, error reasons, the protocol, pages,
deployment files, training configurations and the Makefile. ``RULES`` lists the words. A rule matches narrowly enough
that a correct sentence never trips it; widen it only together with an example. A page that has to name old words puts
them between ``<!-- vocabulary: off -->`` and ``<!-- vocabulary: on -->``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from polyhead.commands import MODULES

from . import sources

_UNCHECKED = re.compile(r"<!-- vocabulary: off -->.*?<!-- vocabulary: on -->", re.DOTALL)
# Pages that are generated from other surfaces, or that must name old words.
_SKIPPED_PAGES = {"docs/reference/protocol.md", "CHANGELOG.md"}


@dataclass(frozen=True)
class Passage:
    """A public text, and the place where an author finds it.

    Attributes:
        place: Name of the text, such as a file or a flag.
        text: The text. A rule's spaces match line breaks too.
        numbered: Whether findings add the line to the place.
    """

    place: str
    text: str
    numbered: bool = False


@dataclass(frozen=True)
class Rule:
    """A private word.

    Attributes:
        pattern: Regular expression of the word, case-insensitive.
        replacement: What to write instead.
        example: A text that breaks the rule; a test checks that it is found.
        surfaces: Where the rule applies; empty for everywhere.
    """

    pattern: str
    replacement: str
    example: str
    surfaces: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Finding:
    """A private word in a public text."""

    place: str
    word: str
    replacement: str

    def __str__(self) -> str:
        return f'{self.place}: "{self.word}" -> {self.replacement}'


_ONE_LINERS = frozenset({"help", "metrics"})
_BATCH_WORDS = (
    r"(?:a|an|one|each|the|every|per|this|that|its|single|in|of) pass\b"
    r"|\b(?:the|several|two|all|of|many|other) passes\b"
)
_THINGS = (
    r"URL|file|socket|protobuf|message|number|bundle|model|directory|folder|TOML|JSON|HOST:PORT|checkpoint|manifest|digest|"
    r"path|name|label|text|UTF-8|run|key|certificate|obstacle|metric|error|reason|good|use"
)

RULES = (
    # Words.
    Rule(r"\bwish(?:es|ed)?\b", "option, request", "the wishes of the client"),
    Rule(r"\bmend(?:s|ed|ing)?\b", "fix, correct", "mend the text"),
    Rule(r"\b(?:in|other|another|its|whose|good) company\b", "batch-mates", "in other company"),
    Rule(r"\b(?<!nearest )(?<!nearest-)neighbou?rs?\b", "entry of similar length", "neighbours ride out of turn"),
    Rule(r"\b(?:rides?|riding|rode|riders?)\b", "share a batch", "who rides together"),
    Rule(r"\brivals?\b", "comparison, other servers", "measured beside its rivals"),
    Rule(r"\bhogs?\b", "resource abuse", "clients that are hogs"),
    Rule(r"\btold\b", "configured, reported", "cannot start as it was told to"),
    Rule(r"\bwhoever\b", "name the subject", "whoever runs the server"),
    Rule(r"\bwants\b(?!=)|\bwant (?:--|each other)", "requires", "the server wants TLS"),
    Rule(
        rf"(?<!there )\b(?:is|are) no (?:valid )?(?:{_THINGS})s?\b",
        "is not a valid ...",
        "the message is no protobuf message",
    ),
    Rule(r"\bapart\b(?! from)", "offloaded (threads), difference (numbers)", "they are tokenized apart"),
    Rule(r"\bow(?:e|es|ed|ing)\b", "virtual finish time, debt of a flow", "a call owes its tokens"),
    Rule(r"\blanes?\b", "length bucket", "one lane for each length"),
    Rule(r"\bpatient\b", "blocking", "patient calls wait"),
    Rule(r"\b(?:its|their|whose|earlier|next) turns?\b", "scheduling slot", "until its turn comes"),
    Rule(rf"\b(?:{_BATCH_WORDS})", "batch, forward pass", "the tokens of a pass"),
    Rule(r"\bbur(?:y|ies|ied)\b", "merge_dead_worker", "the dead are buried"),
    Rule(r"\bstrangers?\b", "unexpected file, other process", "no strangers in the folder"),
    Rule(r"\bheeds?\b|\bhears? of\b", "apply, receive", "balancers hear of it"),
    Rule(r"\blet off\b", "not charged", "is let off its last text"),
    Rule(r"\banswer(?:s|ed)? right\b", "reproduced the golden results", "the golden texts were answered right"),
    Rule(r"\b(?:is|are) (?:it |they )?well\b(?=[,.?!;]|$)", "healthy", "Is it well, and since when not?"),
    Rule(r"\brubbish\b", "malformed input", "rubbish is answered"),
    Rule(r"\bat most so (?:many|long|much)\b|\bfor so long\b", "name the number", "at most so many passes"),
    Rule(r"\bfor ever\b", "forever, indefinitely", "nothing waits for ever"),
    Rule(r"\bno good\b", "invalid", "a file is no good"),
    Rule(r"\banatomy\b", "latency breakdown", "the anatomy of a call"),
    Rule(
        r"\bbare (?:limit|onnxruntime)\b|\bshare of the limit\b",
        "onnxruntime upper bound, efficiency",
        "the bare limit",
    ),
    Rule(r"\bmix-?ups?\b", "response isolation", "no mixups"),
    Rule(r"\bunfinished\b", "in progress", "an unfinished run", _ONE_LINERS),
    # Sentence fragments.
    Rule(
        r"(?-i:(?:\A|[.;:] )(?:Of|That of|Those of|Such as|What|Whoever) )",
        "a sentence with a subject and a verb",
        "Of log lines: text, or a JSON object each.",
        _ONE_LINERS,
    ),
    Rule(r"(?-i:(?:\A|[.:;|] )(?:That of|Those of|Such as) )", "a full sentence", "It is read. Such as a file."),
    # Headings of former pages.
    Rule(
        r"(?-i:^#+ (?:From nothing to an answer|What it measures|Who gets in|Asking twice|What is tried again))",
        "Quickstart, Benchmarks, Authentication, Hedging, Retries",
        "## Asking twice",
    ),
    # Flags, variables and their values.
    Rule(r"(?<!\w)--drain-s\b|\bPOLYHEAD_DRAIN_S\b", "--drain-timeout-s", "polyhead-serve --drain-s 5"),
    Rule(r"(?<!\w)--watch-s\b|\bPOLYHEAD_WATCH_S\b", "--reload-interval-s", "--watch-s 10"),
    Rule(r"(?<!\w)--max-pass-s\b|\bPOLYHEAD_MAX_PASS_S\b", "--batch-timeout-s", "--max-pass-s 9"),
    Rule(r"(?<!\w)--expect-space\b", "--expect-embedding-space", "--expect-space abc"),
    Rule(r"(?<!\w)--labelled\b", "--eval-data", "--labelled data.csv"),
    Rule(r"(?<!\w)--also\b", "--format", "--also safetensors"),
    Rule(r"(?<!\w)--check-only\b", "--dry-run", "polyhead-train --check-only"),
    Rule(r"(?<!\w)--way\b", "--mode", "--way stream"),
    Rule(r"\border[=\s]\W?finished\b|\bANSWER_ORDER_FINISHED\b", "completion", "--order finished"),
    # Metrics, labels, reasons, fields.
    Rule(r"\bpolyhead_calls_total\b", "polyhead_requests_total", "polyhead_calls_total"),
    Rule(r"\bpolyhead_refused_items", "polyhead_item_errors_total", "polyhead_refused_items_total"),
    Rule(r"\bpolyhead_call_seconds", "polyhead_request_duration_seconds", "polyhead_call_seconds_sum"),
    Rule(r"\bpolyhead_running_calls", "polyhead_requests_running", "polyhead_running_calls"),
    Rule(r"\bpolyhead_pass_seconds", "polyhead_batch_duration_seconds", "polyhead_pass_seconds_sum"),
    Rule(r"\bpolyhead_pass_items", "polyhead_batch_size", "polyhead_pass_items_sum"),
    Rule(r"\bof=\W?embedding_space", "component", '{of="embedding_space"}'),
    Rule(r"(?-i:\bEXPIRED\b)", "DEADLINE_EXPIRED", "reason EXPIRED"),
    Rule(r"(?-i:\bORDER_CHANGED\b)", "STREAM_ORDER_CHANGED", "reason ORDER_CHANGED"),
    Rule(r"\bfurther_(?:classifications|sentiments)\b", "additional_...", "further_sentiments"),
    Rule(
        r"\b(?:passes|refused|padding)_total\b|\brefused_items\b",
        "batches_total, item_errors_total, padding_tokens_total",
        "passes_total",
    ),
)


def help_passages() -> Iterator[Passage]:
    """Help texts, option names and metavars of every command that an installation provides."""
    from polyhead_server.security.api_keys import main as api_keys

    scripts = importlib.metadata.distribution("polyhead").entry_points
    for name in scripts.select(group="console_scripts").names:
        module, _ = MODULES[name]
        yield from _command_passages(importlib.import_module(module).main, name)
    yield from _command_passages(api_keys, "python -m polyhead_server.security.api_keys")


def _command_passages(command: click.Command, name: str) -> Iterator[Passage]:
    for paragraph in "\n\n".join([command.help or "", command.epilog or "", command.short_help or ""]).split("\n\n"):
        # A backspace marks paragraphs whose lines click keeps.
        yield Passage(f"{name} --help", paragraph.removeprefix("\b").strip())
    for option in command.params:
        place = f"{name} {option.opts[-1]}"
        yield Passage(place, " ".join([*option.opts, *option.secondary_opts, option.metavar or ""]))
        yield Passage(place, getattr(option, "help", None) or "")
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _command_passages(child, f"{name} {child.name}")


def metric_passages() -> Iterator[Passage]:
    """Names, labels and HELP texts of all metrics."""
    from polyhead_server.observability.metrics import Metrics

    metrics = Metrics()
    metrics.certificate_expiry()
    for metric in metrics.instruments.descriptions:
        yield Passage(metric.name, " ".join([metric.name, *metric.labels]))
        yield Passage(metric.name, metric.help)


def reason_passages() -> Iterator[Passage]:
    """Reasons of errors."""
    for reason in sorted(sources.error_reasons()):
        yield Passage("error reasons", reason)


def protocol_passages() -> Iterator[Passage]:
    """Comments and names of the protocol."""
    yield from _files((sources.ROOT / "proto/polyhead/v1").glob("*.proto"))


def page_passages() -> Iterator[Passage]:
    """README.md, the other pages of the repository's root, and the documentation."""
    pages = {*sources.documentation_pages(), *sources.ROOT.glob("*.md"), *(sources.ROOT / "training").rglob("*.md")}
    yield from _files(page for page in pages if page.relative_to(sources.ROOT).as_posix() not in _SKIPPED_PAGES)


def deployment_passages() -> Iterator[Passage]:
    """Manifests, units, dashboards, alert rules and scripts for operators."""
    yield from _files(path for path in (sources.ROOT / "deploy").rglob("*") if path.is_file() and path.suffix != ".pyc")


def configuration_passages() -> Iterator[Passage]:
    """Training configurations that users copy."""
    yield from _files((sources.ROOT / "training").rglob("*.toml"))


def make_passages() -> Iterator[Passage]:
    """The Makefile: its help and its comments."""
    yield from _files([sources.ROOT / "Makefile"])


SURFACES: dict[str, Callable[[], Iterator[Passage]]] = {
    "help": help_passages,
    "metrics": metric_passages,
    "reasons": reason_passages,
    "protocol": protocol_passages,
    "pages": page_passages,
    "deploy": deployment_passages,
    "config": configuration_passages,
    "make": make_passages,
}


def find(surface: str, passages: Iterable[Passage], rules: Sequence[Rule] = RULES) -> list[Finding]:
    """Returns every private word in the passages of a surface."""
    applied = [rule for rule in rules if not rule.surfaces or surface in rule.surfaces]
    flags = re.IGNORECASE | re.MULTILINE
    compiled = [(re.compile(rule.pattern.replace(" ", "[ \n]"), flags), rule.replacement) for rule in applied]
    return [
        Finding(_place(passage, match.start()), " ".join(match[0].split()), replacement)
        for passage in passages
        for pattern, replacement in compiled
        for match in pattern.finditer(passage.text)
    ]


def _place(passage: Passage, position: int) -> str:
    return f"{passage.place}:{passage.text.count(chr(10), 0, position) + 1}" if passage.numbered else passage.place


def _files(paths: Iterable[Path]) -> Iterator[Passage]:
    """Yields a passage for each file, without the marks of comments, so that rules match across their lines."""
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".md":
            text = re.sub(r"^[ \t]*(?://|#)?[ \t]*", "", text, flags=re.MULTILINE)
        # Blank lines keep the numbers of the lines that follow.
        text = _UNCHECKED.sub(lambda match: "\n" * match[0].count("\n"), text)
        yield Passage(path.relative_to(sources.ROOT).as_posix(), text, numbered=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings of all surfaces, or of those that are named; returns the exit code."""
    names = list(sys.argv[1:] if arguments is None else arguments) or list(SURFACES)
    findings = [finding for name in names for finding in find(name, SURFACES[name]())]
    for finding in findings:
        sys.stderr.write(f"{finding}\n")
    sys.stderr.write(f"vocabulary: {len(findings)} private words in {', '.join(names)}\n")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
