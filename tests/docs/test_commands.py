"""Every command on a page runs against a real server and the demo model, or the page says why it does not run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from polyhead_export.signing import sign

from bench.harness.servers import free_port
from docs import sample_answer
from tests.e2e.conftest import Start, start  # noqa: F401, the fixture
from tests.support.demo import BIN, ROOT
from tests.support.extras import hide_all_but
from tests.support.markdown_pages import Block, PageRunner, blocks
from tests.support.search_data import write_search_data

# Some pages train or export, which takes longer on a busy machine than other tests.
pytestmark = pytest.mark.timeout(1200)
PATHS = (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
WITH_COMMANDS = [name for name, text in PAGES.items() if any(block.runs for block in blocks(text))]
# Commands that take most of the time of a page.
LONG_COMMANDS = re.compile(r"^\$ polyhead-(train|export) ", re.MULTILINE)
# Enough rows to train on, few enough to be quick.
ROWS = {"tickets.jsonl": ("train.jsonl", 48), "tickets-test.jsonl": ("test.jsonl", 24)}


# Extras of the environment that a page is about. Pages that are not listed are about a complete installation.
EXTRAS = {
    "docs/guides/bulk.md": ("bulk", "client"),
    "docs/guides/client.md": ("client",),
    "docs/guides/connect.md": ("client", "http"),
    "docs/guides/deploy.md": ("server",),
    "docs/guides/monitor.md": ("server",),
    "docs/guides/operate.md": ("server",),
    "docs/guides/security.md": ("server",),
    "docs/guides/serve.md": ("server",),
    "docs/guides/train.md": ("training",),
    "docs/tutorials/answer-a-table.md": ("bulk",),
    "docs/tutorials/call-from-a-service.md": ("client",),
    "docs/tutorials/run-a-server.md": ("client", "server"),
}


@pytest.fixture
def runner(tmp_path: Path, start: Start, request: pytest.FixtureRequest) -> Iterator[PageRunner]:  # noqa: F811
    """A runner in a folder with the input files that pages mention, in the environment that the page is about."""
    for name, (source, count) in ROWS.items():
        lines = (ROOT / "training/demo" / source).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:: len(lines) // count][:count]))
    write_search_data(tmp_path)
    (tmp_path / "reviews.txt").write_text("love this kettle\nthe parcel never came\n")
    (tmp_path / "texts.jsonl").write_text('{"id": "1", "text": "Where is my refund?"}\n')
    # The environment is active already.
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    port = free_port()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "POLYHEAD_TARGET": f"127.0.0.1:{port}"}
    page = request.node.callspec.params["page"] if hasattr(request.node, "callspec") else ""
    if page in EXTRAS:
        environment |= hide_all_but(tmp_path / ".modules", *EXTRAS[page])
    server_environment = hide_all_but(tmp_path / ".server-modules", "http" if page.endswith("connect.md") else "server")
    runner = PageRunner(tmp_path, environment, start, port, server_environment=server_environment)
    yield runner
    runner.stop()


def _sign(folder: Path) -> None:
    """Signs the bundle with a new key, whose public half is ``key.pub``."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    sign(folder / "bundles/tickets", folder / "bundles/tickets.sig", folder / "key.pem")


@pytest.fixture
def demo_runner(runner: PageRunner, demo_run: Path, demo_bundle: Path) -> PageRunner:
    """A runner beside the demo's run and bundle, with a server as soon as a page calls one."""
    shutil.copytree(demo_run, runner.folder / "runs/tickets")
    for name in ("tickets", "reviews"):
        shutil.copytree(demo_bundle, runner.folder / "bundles" / name)
    _sign(runner.folder)
    runner.bundle = runner.folder / "bundles/tickets"
    return runner


@pytest.mark.model
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow(minutes=0.2 * (1 + len(LONG_COMMANDS.findall(PAGES[page])))))
        for page in WITH_COMMANDS
    ],
)
def test_commands_of_page_succeed(page: str, demo_runner: PageRunner) -> None:
    assert demo_runner.run_page(PAGES[page]) > 0


def test_environments_are_those_of_pages_with_commands() -> None:
    assert set(EXTRAS) <= set(PAGES)
    # Otherwise nothing would notice that a page requires more than its environment has.
    assert {"docs/guides/deploy.md", "docs/guides/serve.md", "docs/guides/client.md"} <= set(WITH_COMMANDS)


def test_command_that_requires_another_extra_is_reported(runner: PageRunner) -> None:
    runner.environment |= hide_all_but(runner.folder / ".modules", "server")
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        runner.run("python -c 'import torch'", Block(1, "console", "", None))


def test_readme_and_the_guides_have_commands() -> None:
    names = ("quickstart", "train", "export", "serve", "client", "deploy", "security")
    guides = {f"docs/guides/{name}.md" for name in names}
    assert {"README.md"} | guides <= set(WITH_COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_page_run_or_say_why_not(page: str) -> None:
    programs = [block for block in blocks(PAGES[page]) if block.language in ("sh", "bash", "js")]
    assert [block.line for block in programs if not block.mark] == []


@pytest.mark.model
def test_sample_answer_of_readme_is_the_answer_of_the_demo(demo_runner: PageRunner) -> None:
    command, shown = sample_answer.sample(PAGES["README.md"])
    demo_runner.serve(demo_runner.folder / "bundles/tickets")
    assert demo_runner.server is not None
    answer = json.loads(sample_answer.ask(command, demo_runner.server.target))
    # Other CPUs compute slightly different numbers, in training most of all.
    assert approximate(answer) == approximate(json.loads(shown)), "run python -m docs.sample_answer"


def test_sample_answer_of_readme_is_generated() -> None:
    command, shown = sample_answer.sample(PAGES["README.md"])
    assert sample_answer.wrap(json.dumps(json.loads(shown))) == shown
    assert command in [command for block in blocks(PAGES["README.md"]) for command in _commands(block)]
    assert max(map(len, shown.splitlines())) <= 120


def _commands(block: Block) -> list[str]:
    return block.commands() if block.language == "console" else []


def test_sample_answer_is_replaced_and_nothing_else() -> None:
    text = PAGES["README.md"]
    changed = sample_answer.replaced(text, "{}\n")
    assert sample_answer.sample(changed)[1] == "{}\n"
    assert sample_answer.replaced(changed, sample_answer.sample(text)[1]) == text


def approximate(answer: dict[str, Any]) -> object:
    """An answer with its labels, and its numbers as far as they are the same on every machine."""
    scores = answer["classification"]["scores"]
    return (
        answer["id"],
        len(answer["embedding"]),
        answer["classification"]["head"],
        scores[0]["label"],
        pytest.approx(scores[0]["probability"], abs=0.1),
        {score["label"] for score in scores},
        answer["sentiment"]["head"],
        answer["sentiment"]["label"],
        answer["truncation"],
    )


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_failing_command_is_reported_with_its_line(runner: PageRunner) -> None:
    with pytest.raises(AssertionError, match=r"line 3: polyhead-train missing\.toml"):
        runner.run_page("# Page\n\n```console\n$ true\n$ polyhead-train missing.toml\n```\n")


def test_program_that_neither_runs_nor_is_marked_is_reported(runner: PageRunner) -> None:
    block = "```js\nconsole.log(1);\n```\n"
    with pytest.raises(AssertionError, match="line 1: js is neither run nor marked"):
        runner.run_page(block)
    assert runner.run_page(f"<!-- not run: there is no JavaScript here -->\n\n{block}") == 0


def test_commands_are_separated_from_their_output(runner: PageRunner) -> None:
    page = "```console\n$ echo one > \\\n    output\nan answer\n$ cat output\n```\n"
    assert [block.commands() for block in blocks(page)] == [["echo one > \\\n    output", "cat output"]]
    assert runner.run_page(page) == 2
    assert runner.run("cat output", Block(1, "console", "", None)) == "one\n"
