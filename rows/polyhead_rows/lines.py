"""Numbered lines of a UTF-8 stream, each of bounded length."""

from __future__ import annotations

import io
from typing import IO, cast

from .limits import MAX_ROW_CHARACTERS

ROW_TOO_LONG = f"has more than the limit of {MAX_ROW_CHARACTERS:,} characters of a row: split or shorten it"


class LineTooLongError(Exception):
    """A line exceeds its limit. The reader is at the start of the next line."""


class Lines:
    """Reads lines that end with LF, CR LF or CR. Bytes that are not UTF-8 become surrogates.

    A byte order mark, which spreadsheet programs write, is skipped.

    Attributes:
        number: Number of the last line that was read, counted from 1.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.number = 0
        self._text = io.TextIOWrapper(
            cast(io.BufferedReader, stream), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )

    def read(self, limit: int = MAX_ROW_CHARACTERS) -> str:
        """Reads the next line with its line end; returns an empty string at the end of the stream.

        Raises:
            LineTooLongError: The line has more than ``limit`` characters.
        """
        line = self._text.readline(limit + 1)
        self.number += bool(line)
        if len(line) <= limit:
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(2**16)
        raise LineTooLongError

    def detach(self) -> None:
        """Leaves the stream open when this object is deleted."""
        self._text.detach()
