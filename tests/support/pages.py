"""The commands of a Markdown page, and a folder to run them in.

A block in ``console`` holds commands after ``$``, a block in ``python`` a program. Both are run, in the order of the
page, unless the line above the block says why not: ``<!-- not run: REASON -->``. A block whose first line is a comment
with a file's name, ``# tickets.toml``, is that file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conftest import Server, Start

RUN = ("console", "python")
# In other languages a block may be a program, too; then it has to say why it is not run.
PROGRAMS = (*RUN, "sh", "bash", "js")
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- not run: (.+?) -->\n+\Z", re.DOTALL)
_FILE = re.compile(r"# ([\w-]+\.\w+)[ ,\n]")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        line: Where it begins, counted from 1.
        language: What it says of itself.
        code: Its lines.
        mark: Why it is not run; None where it is.
    """

    line: int
    language: str
    code: str
    mark: str | None

    def file(self) -> str | None:
        """Name of the file that it is, if it is one."""
        found = _FILE.match(self.code)
        return found[1] if found and self.language not in PROGRAMS else None

    def commands(self) -> list[str]:
        """What a reader would type; a line that ends with a backslash goes on."""
        lines = re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.code, re.MULTILINE)
        assert lines, f"line {self.line}: a console block without a command"
        return lines


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a page."""
    for found in _BLOCK.finditer(text):
        mark = _MARK.search(text[: found.start()])
        yield Block(text[: found.start()].count("\n") + 1, found[1], found[2], mark[1] if mark else None)


@dataclass
class Desk:
    """A reader at work: the folder, the commands' environment, and the server that the page has started last.

    Attributes:
        folder: Where the commands run.
        environment: Their environment.
        start: Starts servers.
        port: What stands in for the documented port, so that a server of somebody else disturbs nobody.
        server: The running server.
    """

    folder: Path
    environment: dict[str, str]
    start: Start
    port: int
    server: Server | None = None

    def follow(self, page: str) -> int:
        """Does what a page says; returns how many commands and programs that were.

        Raises:
            AssertionError: Names the line, the command, and what it said.
        """
        done = 0
        for block in blocks(page):
            if name := block.file():
                (self.folder / name).write_text(block.code)
            if block.language not in PROGRAMS or block.mark:
                continue
            assert block.language in RUN, f"line {block.line}: {block.language} is not run; say why above the block"
            for command in block.commands() if block.language == "console" else [block.code]:
                self._do(command, block)
                done += 1
        return done

    def serve(self, bundle: Path, *flags: str) -> None:
        """Starts a server in place of the one before."""
        self.stop()
        self.server = self.start(bundle, *flags, target=f"127.0.0.1:{self.port}")
        self.server.wait_until_serving()

    def stop(self) -> None:
        """Stops the server, if there is one."""
        if self.server is not None:
            self.server.stop()

    def _do(self, command: str, block: Block) -> None:
        command = command.replace("127.0.0.1:50051", f"127.0.0.1:{self.port}")
        if served := re.match(r"polyhead-serve (?!-)(\S+)(.*)", command):
            # `start` says itself where to listen.
            flags = re.sub(r"--listen \S+|#.*", "", served[2]).split()
            self.serve(self.folder / served[1], *flags)
            return
        program = [sys.executable, "-c", command] if block.language == "python" else ["bash", "-euc", command]
        done = subprocess.run(
            program, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"line {block.line}: {command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
