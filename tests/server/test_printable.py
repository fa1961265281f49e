"""Strings of strangers, made safe to print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead_server.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("keys of Zürich, 東京 and 🙂", "keys of Zürich, 東京 and 🙂"),
        ("two\nlines\r\n\t", r"two\nlines\r\n\t"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("a\u202eb\u2066c\u200dd\ufeff", r"a\u202eb\u2066c\u200dd\ufeff"),
        ("a\u2028b\u00a0c\u3164d\ufe0f", r"a\u2028b\xa0c\u3164d\ufe0f"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
        ("", ""),
    ],
)
def test_characters_that_do_not_show_as_themselves_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_cut_and_says_so() -> None:
    assert printable("x" * 12_345, 10) == "xxxxxxxxxx... (12,335 more characters)"
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("\n" * 11, 10) == r"\n" * 10 + "... (1 more characters)"


@given(st.text(st.characters()))
def test_result_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text).encode().decode() == printable(text)
    assert len(printable(text, 20)) <= 20 * len(r"\U0010ffff") + 40
