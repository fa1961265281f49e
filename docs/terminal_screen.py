"""The screen of a program that fills a terminal, as an HTML page."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html import escape

from rich.console import Console
from rich.text import Text

_TIMEOUT_S = 60.0
# Cursor to the top left corner, with which rich begins each screen.
_HOME = b"\x1b[H"
# Braces are doubled, as rich formats the page.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>TITLE</title>
<style>
body {{ margin: 0; padding: 16px; background: #fff; }}
main {{ border: 1px solid #d0d7de; border-radius: 8px; overflow: hidden; }}
h1 {{ margin: 0; padding: 6px 16px; background: #f0f2f4; color: #59626c; font: 13px/1.5 system-ui, sans-serif; }}
pre {{ margin: 0; padding: 12px 16px; color: {foreground}; background: {background};
  font: 15px/1.45 "DejaVu Sans Mono", monospace; }}
</style>
</head>
<body>
<main>
<h1>TITLE</h1>
<pre>{code}</pre>
</main>
</body>
</html>
"""


def capture(command: Sequence[str], *, columns: int, lines: int, last: str, draws: int) -> str:
    """Runs a program in a pseudo-terminal until it has drawn its screen several times, and ends it.

    Args:
        command: Program and arguments. The program draws each screen from the top left corner.
        columns: Width of the terminal in characters.
        lines: Height of the terminal.
        last: Text that ends the content of each screen.
        draws: Number of screens to wait for.

    Returns:
        The last screen, with ANSI sequences for its styles.

    Raises:
        RuntimeError: The program ended before, or drew nothing for a minute.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        output = b""
        for part in _output(ours):
            output += part
            screens = [screen for screen in output.split(_HOME) if last.encode() in screen]
            if len(screens) >= draws:
                return screens[-1].decode().replace("\r\n", "\n")
        raise RuntimeError(f"{command[0]} drew fewer than {draws} screens: {output.decode(errors='replace')}")
    finally:
        process.terminate()
        # A terminal that nobody reads would block the program's last output.
        for _ in _output(ours):
            pass
        os.close(ours)
        process.wait(_TIMEOUT_S)


def _output(terminal: int) -> Iterator[bytes]:
    """Yields the output of the program of a terminal until it ends, or pauses for a minute."""
    # Linux reports an error where other terminals report the end of a file.
    with suppress(OSError):
        while select.select([terminal], [], [], _TIMEOUT_S)[0]:
            if not (part := os.read(terminal, 1 << 16)):
                return
            yield part


def as_html(screen: str, title: str) -> str:
    """Renders a screen in a window with a title.

    Args:
        screen: Text with ANSI sequences.
        title: Title of the window and of the page.
    """
    content = Text.from_ansi("\n".join(line.rstrip() for line in screen.rstrip().splitlines()))
    console = Console(file=io.StringIO(), record=True)
    console.print(content, soft_wrap=True)
    page = _PAGE.replace("TITLE", escape(title).replace("{", "{{").replace("}", "}}"))
    return console.export_html(code_format=page, inline_styles=True)
