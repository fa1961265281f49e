"""The process in which ``Redactor`` matches regular expressions; imports the standard library alone.

It reads a line with the patterns, then a text from each line, and answers each with a line: the redacted text and the
number of replacements. All lines are JSON. It ends with its input, or by a signal when a text takes too long.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import BinaryIO

# Processor time of one text in seconds. Patterns without backtracking take milliseconds for the longest texts.
MAX_SECONDS = 1.0


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Redacts texts until the input ends."""
    # The server ends it; a terminal or a service manager signals all processes at once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The default action ends the process in the middle of a match, which no handler of Python's would.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    patterns = [(f"[{name}]", re.compile(pattern)) for name, pattern in json.loads(source.readline()).items()]
    for line in source:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        text, count = json.loads(line), 0
        for placeholder, pattern in patterns:
            text, found = pattern.subn(lambda _, one=placeholder: one, text)  # type: ignore[misc]
            count += found
        signal.setitimer(signal.ITIMER_PROF, 0)
        target.write(json.dumps([text, count]).encode() + b"\n")
        target.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
