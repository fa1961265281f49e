"""All commands are alike: help, version, examples, exit codes, options of the same name, modules, shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner
from polyhead_client.cli.main import main as client
from polyhead_export.cli import main as export
from polyhead_server.cli import main as serve
from polyhead_server.security.api_keys import main as keys
from polyhead_training.cli import main as train

from tests.support.demo import BIN

KEYS = "python -m polyhead_server.security.api_keys"
PROGRAMS = {
    "polyhead": client,
    "polyhead-export": export,
    "polyhead-serve": serve,
    "polyhead-train": train,
    KEYS: keys,
}
MODULES = {
    "polyhead": "polyhead_client",
    "polyhead-export": "polyhead_export",
    "polyhead-serve": "polyhead_server",
    "polyhead-train": "polyhead_training",
    KEYS: "polyhead_server.security.api_keys",
}


def commands(program: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yields the names below the program, and the command, of a program and of all commands in it."""

    def walk(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield names, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from walk(child, *names, name)

    yield from walk(PROGRAMS[program])


ALL = {" ".join((program, *names)): (program, names) for program in PROGRAMS for names, _ in commands(program)}
COMMANDS = {" ".join((program, *names)): command for program in PROGRAMS for names, command in commands(program)}


def invoke(name: str, *arguments: str) -> tuple[int, str]:
    program, names = ALL[name]
    result = CliRunner().invoke(PROGRAMS[program], [*names, *arguments], prog_name=program)
    return result.exit_code, result.stdout


@pytest.mark.parametrize("name", ALL)
def test_both_help_flags_print_the_help(name: str) -> None:
    code, text = invoke(name, "--help")
    assert code == 0
    assert text.startswith(f"Usage: {name} ")
    assert invoke(name, "-h") == (0, text)
    # click removes the mark for kept lines only if it is a real backspace; a raw docstring would print it.
    assert "\\b" not in text


@pytest.mark.parametrize("name", ALL)
def test_help_shows_an_example(name: str) -> None:
    text = invoke(name, "--help")[1]
    examples = text.partition("  Examples:\n")[2].partition("\n\n")[0]
    program, names = ALL[name]
    # The default command of polyhead-export is not written.
    expected = program if isinstance(COMMANDS[name], click.Group) or names == ("export",) else name
    if names == ("admin",):
        expected = "polyhead admin stats"
    assert any(expected in line for line in examples.splitlines()), text


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_program_lists_exit_codes(program: str) -> None:
    codes = invoke(program, "--help")[1].partition("  Exit codes:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^ +(\d+) ", codes, re.MULTILINE)[0] == "0"
    assert {"0", "2"} <= set(re.findall(r"^ +(\d+) ", codes, re.MULTILINE))


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_flag_prints_program_and_version(program: str) -> None:
    assert invoke(program, "--version") == (0, f"{program} {version('polyhead')}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_module_is_the_program(program: str) -> None:
    command = [sys.executable, "-m", MODULES[program], "--no-such-flag"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Usage: {program} ")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_unknown_flag_ends_with_2(name: str) -> None:
    assert invoke(name, "--no-such-flag")[0] == 2


def options(command: click.Command) -> dict[str, click.Option]:
    return {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "--target" in options(command)])
def test_command_that_calls_a_server_reads_an_api_key_file(name: str) -> None:
    flag = options(COMMANDS[name])["--api-key-file"]
    assert flag.envvar == "POLYHEAD_API_KEY_FILE"
    assert "POLYHEAD_API_KEY_FILE" in invoke(name, "--help")[1]


# The admin service has an address of its own. A job takes any variant that its bundle has, an export those it can make.
DIFFERENT = {"--target", "--variant"}


def test_options_of_one_name_are_alike() -> None:
    seen: dict[str, tuple[str, str | None, str]] = {}
    for name, command in COMMANDS.items():
        for flag, option in options(command).items():
            kind = (str(option.envvar), option.metavar, type(option.type).__name__)
            if ALL[name][0] in ("polyhead", "polyhead-export") and flag not in DIFFERENT:
                assert seen.setdefault(flag, kind) == kind, (name, flag)


@pytest.mark.parametrize("name", ALL)
def test_option_has_a_help_text_that_ends_as_a_sentence(name: str) -> None:
    for flag, option in options(COMMANDS[name]).items():
        text = (option.help or "").partition("[default: ")[0].strip()
        assert text.endswith("."), flag


def completion_variable(program: str) -> str:
    return f"_{program.upper().replace('-', '_')}_COMPLETE"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", [program for program in PROGRAMS if program != KEYS])
def test_program_prints_its_shell_completion(program: str, shell: str) -> None:
    variable = completion_variable(program)
    result = CliRunner(env={variable: f"{shell}_source"}).invoke(PROGRAMS[program], prog_name=program)
    assert result.exit_code == 0
    assert f"{variable}={shell}_complete" in result.stdout


def test_installed_command_completes_by_its_own_name() -> None:
    environment = {**os.environ, completion_variable("polyhead"): "bash_source"}
    done = subprocess.run([BIN / "polyhead"], env=environment, capture_output=True, text=True, check=True)
    assert f"{completion_variable('polyhead')}=bash_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("polyhead cl", "classify"),
        ("polyhead admin re", "reload"),
        ("polyhead analyze --tr", "--truncation"),
        ("polyhead-export ver", "verify"),
        ("polyhead-export verify --pub", "--public-key"),
        ("polyhead-train --re", "--resume"),
        ("polyhead-serve --engine on", "onnx"),
    ],
)
def test_shell_completes_commands_options_and_values(words: str, expected: str) -> None:
    program, _, _ = words.partition(" ")
    environment = {
        completion_variable(program): "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = CliRunner(env=environment).invoke(PROGRAMS[program], prog_name=program)
    assert f"plain,{expected}" in result.stdout.splitlines()
