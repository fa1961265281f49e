"""Redacts texts before they are written, with the regular expressions of ``--collect-redact``.

Matching runs in a process of its own. Python's matching can take exponential time on a text that somebody made for it,
and holds the interpreter's lock meanwhile, which would stop the event loop. The process limits its own processor time
for each text and dies beyond it; the text is then dropped, and another process starts for the next one.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from polyhead_server.errors import StartupError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_COMMAND = (sys.executable, "-P", "-m", "polyhead_server.collection.redaction_process")


def read_patterns(path: Path) -> dict[str, str]:
    """Reads a TOML file with lines such as ``email = '[^@ ]+@[^@ ]+'``, each a name and a regular expression.

    Raises:
        StartupError: The file cannot be read, is empty, or a pattern in it is invalid or matches the empty text.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StartupError(f"--collect-redact {path}: cannot be read: {error}") from error
    if not content:
        raise StartupError(f"--collect-redact {path}: has no pattern; write one a line, such as digits = '[0-9]+'")
    for name, pattern in content.items():
        if not _NAME.fullmatch(name):
            raise StartupError(f"--collect-redact {path}: {name!a} is not a valid name; use letters, digits, - and _")
        if not isinstance(pattern, str):
            raise StartupError(f"--collect-redact {path}: {name} is not a string with a regular expression")
        try:
            matches_nothing = re.compile(pattern).fullmatch("")
        except (re.error, RecursionError, OverflowError) as error:
            raise StartupError(f"--collect-redact {path}: {name} is not a valid regular expression: {error}") from error
        if matches_nothing:
            raise StartupError(f"--collect-redact {path}: {name} matches the empty text, which is everywhere")
    return content


class Redactor:
    """Replaces what patterns match by their names in brackets, such as ``[email]``. One thread at a time; blocks."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        """Starts no process yet.

        Args:
            patterns: Regular expressions by name, applied in this order.
        """
        self._patterns = json.dumps(dict(patterns)).encode() + b"\n"
        self._process: subprocess.Popen[bytes] | None = None
        self._has_warned = False

    def redact(self, text: str) -> tuple[str, int] | None:
        """Returns the redacted text and the number of replacements; None where that failed or took too long."""
        try:
            answer = self._exchange(json.dumps(text).encode() + b"\n")
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            self._fail()
            return None
        redacted, count = json.loads(answer)
        return redacted, count

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _exchange(self, line: bytes) -> bytes:
        begin = b""
        if self._process is None:
            begin = self._patterns
            self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        source, target = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        source.write(begin + line)
        source.flush()
        return target.readline()

    def _fail(self) -> None:
        self.close()
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a text was not collected, as its redaction failed or took too long; further ones are counted in "
                "polyhead_uncollected_texts_total"
            )
