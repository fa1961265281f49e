"""The base package: its version, and commands that name the extra that they lack."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import polyhead
import polyhead_client
import pytest
from polyhead import commands

# Blocks every third-party package but those named, as in an environment without them.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top.startswith(("polyhead", "_")) or top in sys.stdlib_module_names or top in INSTALLED
        if not known:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
CORE = ["google", "grpc", "typing_extensions"]
CLIENT = [*CORE, "click", "numpy", "rich", "colorama"]
COMMANDS = {"polyhead": "client", "polyhead-train": "train", "polyhead-export": "export", "polyhead-serve": "serve"}


def run(program: str, installed: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process that can import only some packages."""
    code = f"INSTALLED = {installed!r}\n{BLOCKER}\n{program}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_version_is_that_of_the_distribution() -> None:
    assert polyhead.__version__ == metadata.version("polyhead")
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        polyhead.version  # type: ignore[attr-defined]  # noqa: B018


def test_every_command_of_the_distribution_is_known() -> None:
    scripts = metadata.distribution("polyhead").entry_points.select(group="console_scripts")
    assert set(scripts.names) == set(commands.MODULES) == set(COMMANDS)
    for script in scripts:
        assert script.load() is getattr(commands, COMMANDS[script.name])
    extras = set(metadata.metadata("polyhead").get_all("Provides-Extra") or [])
    assert {extra for _, extra in commands.MODULES.values()} | set(commands._OPTIONAL.values()) <= extras


@pytest.mark.parametrize(
    ("command", "argument"),
    [*((command, "--help") for command in COMMANDS), ("polyhead", "--version"), ("polyhead", "anything")],
)
def test_command_of_a_base_install_names_its_extra_in_one_line(command: str, argument: str) -> None:
    done = run(f"from polyhead import commands; commands.{COMMANDS[command]}()", CORE, argument)
    extra = commands.MODULES[command][1]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{command}: needs pip install 'polyhead[{extra}]': the package click is not installed\n"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("polyhead-train", ["FILE"]), ("polyhead-export", ["FILE", "OUT"]), ("polyhead-serve", ["FILE"])],
)
def test_command_in_the_environment_of_the_client_names_its_extra(
    command: str, arguments: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('name = "a"\n')
    paths = [str(file) if argument == "FILE" else str(tmp_path / argument) for argument in arguments]
    done = run(f"from polyhead import commands; commands.{COMMANDS[command]}()", CLIENT, *paths)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"needs pip install 'polyhead[{commands.MODULES[command][1]}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_client_works_with_its_own_extra() -> None:
    done = run("from polyhead import commands; commands.client()", CLIENT, "info", "--target", "127.0.0.1")
    assert (done.returncode, "has no port" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "Answer"])
def test_name_of_the_client_in_a_base_install_names_the_extra(name: str) -> None:
    program = "import polyhead_client\n"
    program += f"try:\n  from polyhead_client import {name}\nexcept ImportError as error: print(error)"
    done = run(program, CORE)
    assert done.stderr == ""
    assert done.stdout.startswith("polyhead_client needs pip install 'polyhead[client]': the package ")


def test_package_of_another_extra_is_named_with_that_extra() -> None:
    for package, extra in [("datasets.arrow", "hub"), ("opentelemetry", "otel"), ("onnx", "export")]:
        message = commands.missing_package(ModuleNotFoundError("", name=package), "export")
        assert f"'polyhead[{extra}]'" in message


def test_missing_module_of_polyhead_itself_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="broken"):
        commands.missing_package(ModuleNotFoundError("broken", name="polyhead_client.gone"), "client")


def test_every_public_name_of_the_client_is_the_one_that_type_checkers_see() -> None:
    assert set(polyhead_client.__all__) == set(polyhead_client._MODULE_OF)
    for name in polyhead_client.__all__:
        module = importlib.import_module(f"polyhead_client.{polyhead_client._MODULE_OF[name]}")
        assert getattr(polyhead_client, name) is getattr(module, name)
        assert name in dir(polyhead_client)
    with pytest.raises(AttributeError):
        polyhead_client.nothing  # type: ignore[attr-defined]  # noqa: B018
