"""Markdown pages: their code blocks and links, and a folder in which the commands of a page run.

A ``console`` block holds commands after ``$``, a ``python`` block a program. Both are run in the order of the page
unless a comment above the block says why not: ``<!-- not run: REASON -->``. A block whose first line is a comment with
a file name, such as ``# tickets.toml``, is written to that file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.conftest import Server, Start

RUNNABLE = ("console", "python")
# Blocks in other languages may be programs, too; then they have to say why they are not run.
PROGRAMS = (*RUNNABLE, "sh", "bash", "js")
LISTEN = "127.0.0.1:50051"
# A command that calls a server.
_CALL = re.compile(rf"\bpolyhead |{re.escape(LISTEN)}")
# One of several bundles of a server.
_NAMED = re.compile(r"[\w.-]+=bundles/")
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^ *(`{3,}|:{3,}).*?^ *\1$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_MARK = re.compile(r"<!-- not run: (.+?) -->\n+\Z", re.DOTALL)
_FILE = re.compile(r"# ([\w-]+\.\w+)[ ,\n]")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        line: Line on which it begins, counted from 1.
        language: Language of the fence.
        code: Content.
        mark: Reason why it is not run; None if it is run.
    """

    line: int
    language: str
    code: str
    mark: str | None

    @property
    def runs(self) -> bool:
        """Whether the block is run."""
        return self.language in RUNNABLE and not self.mark

    def file(self) -> str | None:
        """Name of the file that the block shows, if it shows one."""
        found = _FILE.match(self.code)
        return found[1] if found and self.language not in PROGRAMS else None

    def commands(self) -> list[str]:
        """Commands that a reader types; a line that ends with a backslash continues on the next."""
        lines = re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.code, re.MULTILINE)
        assert lines, f"line {self.line}: a console block without a command"
        return lines


def blocks(text: str) -> Iterator[Block]:
    """Code blocks of a page."""
    for found in _BLOCK.finditer(text):
        mark = _MARK.search(text[: found.start()])
        yield Block(text[: found.start()].count("\n") + 1, found[1], found[2], mark[1] if mark else None)


def links(text: str) -> Iterator[str]:
    """Targets of the links and images of a page, code excluded."""
    for found in _LINK.finditer(_CODE.sub("", _FENCE.sub("", text))):
        yield found[1]


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MyST name them."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    plain = (re.sub(r"[^\w\- ]", "", _CODE.sub(lambda code: code[0][1:-1], title)) for title in headings)
    return {title.strip().lower().replace(" ", "-") for title in plain}


@dataclass
class PageRunner:
    """Runs the commands of pages in one folder, against the server that a page has started last.

    Attributes:
        folder: Folder in which the commands run.
        environment: Environment of the commands.
        start: Starts servers.
        server_environment: Variables of the servers.
        port: Replaces the documented port, so that another server on this machine does not interfere.
        server: The running server.
        bundle: What is served to a page that calls a server before it has started one; None to start none.
    """

    folder: Path
    environment: dict[str, str]
    start: Start
    port: int
    server: Server | None = None
    server_environment: Mapping[str, str] = field(default_factory=dict)
    bundle: Path | None = None

    def run_page(self, page: str) -> int:
        """Runs a page; returns the number of commands and programs.

        Raises:
            AssertionError: A command failed; names the line, the command and its output.
        """
        count = 0
        for block in blocks(page):
            if name := block.file():
                (self.folder / name).write_text(block.code)
            if block.language not in PROGRAMS or block.mark:
                continue
            assert block.language in RUNNABLE, f"line {block.line}: {block.language} is neither run nor marked"
            for command in block.commands() if block.language == "console" else [block.code]:
                self.run(command, block)
                count += 1
        return count

    def run(self, command: str, block: Block) -> str:
        """Runs one command or program; returns its standard output."""
        served = re.match(r"polyhead-serve (?!-)(\S+)(.*)", command)
        if self.bundle and not self.server and not served and _CALL.search(command):
            self.serve(self.bundle)
        command = command.replace(LISTEN, f"127.0.0.1:{self.port}")
        if served and "--check" not in command:
            # `start` chooses the address.
            arguments = re.sub(r"--listen \S+|#.*", "", served[2]).split()
            self.serve(self._bundle(served[1]), *map(self._argument, arguments))
            return ""
        program = [sys.executable, "-c", command] if block.language == "python" else ["bash", "-euc", command]
        result = subprocess.run(
            program, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert result.returncode == 0, f"line {block.line}: {command}\n{result.stdout[-1000:]}{result.stderr[-2000:]}"
        return result.stdout

    def _argument(self, argument: str) -> str:
        """Returns an argument of a server; if it names a bundle or a file in the folder, with the whole path."""
        if _NAMED.match(argument):
            return str(self._bundle(argument))
        path = self.folder / argument
        return str(path) if path.is_file() else argument

    def _bundle(self, argument: str) -> Path:
        """Returns a bundle in the folder, with the name before it if there is one."""
        name, separator, path = argument.rpartition("=")
        return Path(f"{name}{separator}{self.folder / path}")

    def serve(self, bundle: Path, *flags: str) -> None:
        """Starts a server in place of the previous one."""
        self.stop()
        target = f"127.0.0.1:{self.port}"
        self.server = self.start(bundle, *flags, target=target, environment=self.server_environment)
        self.server.wait_until_serving()

    def stop(self) -> None:
        """Stops the server, if one is running."""
        if self.server is not None:
            self.server.stop()
            self.server = None
