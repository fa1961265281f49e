"""Public texts use the project's vocabulary; ``python -m tests.support.public_wording`` prints the same findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import public_wording, sources
from tests.support.public_wording import RULES, SURFACES, Passage, find

# Fewest passages of each surface: a scan that finds fewer looks in the wrong place.
MIN_PASSAGES = {
    "help": 300,
    "metrics": 40,
    "reasons": 20,
    "protocol": 4,
    "pages": 12,
    "deploy": 15,
    "config": 5,
    "make": 1,
}
CORRECT = [
    "The nearest neighbours of an embedding.",
    "There is no file at this path.",
    "The text passes the gate, and each message passes through the queue.",
    "Apart from the tokenizer, nothing changes.",
    "All tasks share one forward pass.",
    "The server requires TLS.",
    "Wants=network-online.target",
    "DEADLINE_EXPIRED",
    "polyhead_item_errors_total",
    "Log output format.",
    "with --drain-timeout-s 5",
    "a well-kept library",
]


@pytest.mark.parametrize("surface", SURFACES)
def test_public_texts_use_the_vocabulary(surface: str) -> None:
    passages = list(SURFACES[surface]())
    found = find(surface, passages)
    assert not found, "\n".join(map(str, ["", *found]))
    assert len(passages) >= MIN_PASSAGES[surface]
    assert sum(len(passage.text) for passage in passages) > 300


def test_private_words_are_found() -> None:
    for rule in RULES:
        surface = min(rule.surfaces, default="pages")
        found = find(surface, [Passage("page.md", f"First line.\n{rule.example}", numbered=True)], [rule])
        assert found, rule.example
        assert found[0].replacement == rule.replacement
        assert found[0].place in {"page.md:1", "page.md:2"}


@pytest.mark.parametrize("surface", ["help", "pages"])
def test_correct_texts_are_accepted(surface: str) -> None:
    assert find(surface, [Passage("page.md", text) for text in CORRECT]) == []


def test_phrase_is_found_across_a_line_break() -> None:
    (found,) = find("pages", [Passage("page.md", "An answer\n\nis the same in other\ncompany.", numbered=True)])
    assert str(found) == 'page.md:3: "other company" -> batch-mates'


def test_marked_part_of_a_page_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "Makefile").write_text("<!-- vocabulary: off -->\nmend\n<!-- vocabulary: on -->\nmend\n")
    assert [found.place for found in find("make", public_wording.make_passages())] == ["Makefile:4"]


def test_command_fails_if_it_finds_a_private_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(public_wording.SURFACES, "make", lambda: iter([Passage("Makefile", "mend the code")]))
    assert public_wording.main(["make"]) == 1
    assert 'Makefile: "mend" -> fix, correct' in capsys.readouterr().err
    monkeypatch.setitem(public_wording.SURFACES, "make", lambda: iter([Passage("Makefile", "fix the code")]))
    assert public_wording.main(["make"]) == 0
