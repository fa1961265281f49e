"""Redaction: what it replaces, which patterns it refuses, and that no text can hold it up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhead_server.collection import redaction
from polyhead_server.collection.redaction import Redactor, read_patterns
from polyhead_server.errors import StartupError

EMAIL = r"[\w.+-]+@[\w-]+(\.[\w-]+)+"


@pytest.fixture
def redactor() -> Iterator[Redactor]:
    one = Redactor({"email": EMAIL, "digits": "[0-9]{4,}", "slow": "(a+)+!"})
    yield one
    one.close()


def test_matches_are_replaced_by_the_names_of_their_patterns(redactor: Redactor) -> None:
    text = 'write to anna.b@example.org, "bob@x.co.uk"\n or call 0123456789 - naïve 😀 \\1'
    expected = 'write to [email], "[email]"\n or call [digits] - naïve 😀 \\1'
    assert redactor.redact(text) == (expected, 3)
    assert redactor.redact("nothing here") == ("nothing here", 0)


def test_text_that_matches_for_ever_is_dropped_and_the_next_one_is_not(redactor: Redactor) -> None:
    assert redactor.redact("a" * 60) is None
    assert redactor.redact("a@b.c " + "a" * 10) == ("[email] aaaaaaaaaa", 1)


def test_process_that_was_killed_is_replaced(redactor: Redactor) -> None:
    assert redactor.redact("1234") == ("[digits]", 1)
    process = redactor._process
    assert process
    process.kill()
    process.wait()
    assert redactor.redact("1234") is None
    assert redactor.redact("1234") == ("[digits]", 1)


def test_process_that_cannot_start_drops_the_text(monkeypatch: pytest.MonkeyPatch, redactor: Redactor) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(redaction, "_COMMAND", ("/no/such/program",))
        assert redactor.redact("1234") is None
    assert redactor.redact("1234") == ("[digits]", 1)


def test_patterns_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "redact.toml"
    path.write_text(f"# personal data\nemail = '{EMAIL}'\ndigits = '[0-9]+'\n")
    assert list(read_patterns(path).items()) == [("email", EMAIL), ("digits", "[0-9]+")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no pattern"),
        ("email = [", "cannot be read"),
        ("email = '('", "email is not a valid regular expression"),
        ("email = 'x*'", "email matches the empty text"),
        ("email = 3", "email is not a string"),
        ("'e mail' = 'x'", "is not a valid name"),
    ],
)
def test_file_of_patterns_that_cannot_work_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "redact.toml"
    path.write_text(content)
    with pytest.raises(StartupError, match=problem):
        read_patterns(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        read_patterns(tmp_path / "missing.toml")
