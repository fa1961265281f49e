"""Each adapter names the extra that installs its framework, and importing the package requires no framework."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib

import pytest

from tests.support.demo import ROOT

# Adapter, extra, top-level package of the framework.
ADAPTERS = [
    ("encoder", "client", "numpy"),
    ("langchain", "langchain", "langchain_core"),
    ("llama_index", "llama-index", "llama_index"),
    ("haystack", "haystack", "haystack"),
]
PROGRAM = """
import importlib, sys
sys.modules[sys.argv[2]] = None
try:
    importlib.import_module(f"polyhead_adapters.{sys.argv[1]}")
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize(("adapter", "extra", "framework"), ADAPTERS)
def test_missing_framework_is_named_with_its_extra(adapter: str, extra: str, framework: str) -> None:
    arguments = [sys.executable, "-c", PROGRAM, adapter, framework]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert f"needs pip install 'polyhead[{extra}]': the package {framework} is not installed" in result.stdout


@pytest.mark.parametrize(("adapter", "extra", "framework"), ADAPTERS[1:])
def test_extra_exists_and_contains_the_client(adapter: str, extra: str, framework: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "polyhead[client]" in extras[extra]
    assert len(extras[extra]) == 2


def test_package_imports_nothing() -> None:
    program = "import sys; before = set(sys.modules); import polyhead_adapters; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert {name.partition(".")[0] for name in result.stdout.split()} <= {"polyhead_adapters"}


def test_every_adapter_is_tested_here() -> None:
    modules = {path.stem for path in (ROOT / "adapters/polyhead_adapters").glob("[!_]*.py")}
    assert modules == {adapter for adapter, _, _ in ADAPTERS}


def test_missing_module_of_this_distribution_is_not_blamed_on_the_extra() -> None:
    extras = importlib.import_module("polyhead_adapters._extras")
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'polyhead_nothing'"),
        extras.provided_by("langchain"),
    ):
        importlib.import_module("polyhead_nothing")
