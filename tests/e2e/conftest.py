"""A real server process on a real socket, with the demo model."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polyhead_bundle as bundle
import pytest

from bench.harness.servers import free_port, wait_until_serving
from tests.support.demo import BIN

# Long, for machines that do much else; a server that has ended is noticed at once.
START_S = 120


@dataclass
class Server:
    """A server process.

    Attributes:
        process: The process; its standard error goes to ``log``.
        target: HOST:PORT.
        log: File with everything that the server said.
    """

    process: subprocess.Popen[bytes]
    target: str
    log: Path

    def wait_until_serving(self) -> list[int]:
        """Follows the health service until it says SERVING; returns every status that it said on the way."""
        return wait_until_serving(self.process, self.target, self.log, timeout_s=START_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


Start = Callable[..., Server]


def _with(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with more in it; modules of a path that is set come before those that are there."""
    environment = {**os.environ, **variables}
    if "PYTHONPATH" in variables and "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], os.environ["PYTHONPATH"]])
    return environment


# A module that Python imports at its start. It changes the engine of the processes for which a condition is true.
_PATCHED_ENGINE = """
import os, pathlib, sys, time
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

class Patch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "polyhead_server.engines.onnx":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            run = module.OnnxEngine.run
            def patched(self, *arguments):
                FAULT
                return run(self, *arguments)
            module.OnnxEngine.run = patched
        spec.loader.exec_module = exec_module
        return spec

if CONDITION:
    sys.meta_path.insert(0, Patch())
"""


def patch_engine(folder: Path, fault: str, condition: str = "True") -> dict[str, str]:
    """Returns the environment of processes whose engine first runs the code ``fault``."""
    code = _PATCHED_ENGINE.replace("FAULT", textwrap.indent(fault.strip(), 16 * " ").strip())
    (folder / "sitecustomize.py").write_text(code.replace("CONDITION", condition))
    return {"PYTHONPATH": str(folder)}


_HANG = """
file = pathlib.Path(os.environ["HANG"])
if file.exists():
    file.with_suffix(".hangs").touch()
    while file.exists():
        time.sleep(0.01)
"""


@dataclass(frozen=True)
class Hang:
    """An engine that hangs when it is told to.

    Attributes:
        environment: What a server is started with, for its engine to be such.
    """

    file: Path
    environment: Mapping[str, str]

    def begin(self) -> None:
        """Lets every pass from now on hang."""
        self.file.touch()

    def end(self) -> None:
        """Lets them go on."""
        self.file.unlink()

    def has_begun(self) -> bool:
        """Whether a pass hangs."""
        return self.file.with_suffix(".hangs").exists()


@pytest.fixture
def hang(tmp_path: Path) -> Hang:
    modules = tmp_path / "hanging"
    modules.mkdir()
    file = tmp_path / "hang"
    return Hang(file, {**patch_engine(modules, _HANG), "HANG": str(file)})


@pytest.fixture
def twin(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle like that of the demo model, in what says that it is of another embedding space."""
    source = bundle.load(demo_bundle)
    variants = {
        name: dataclasses.replace(
            variant, fingerprints=dataclasses.replace(variant.fingerprints, embedding_space="0123456789abcdef")
        )
        for name, variant in source.manifest.variants.items()
    }
    manifest = dataclasses.replace(source.manifest, variants=variants)
    return bundle.write(tmp_path / "twin", manifest, {name: demo_bundle / name for name in manifest.files}).path


def put(new: Path, at: Path) -> None:
    """Puts a bundle in place of another, which nobody sees half done."""
    staging = at.with_name(f"{at.name}.new")
    staging.unlink(missing_ok=True)
    staging.symlink_to(new)
    staging.rename(at)


class Starter:
    """Starts servers of one file of tests."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.servers: list[Server] = []
        self._factory = factory

    def __call__(
        self, served: Path, *flags: str, environment: Mapping[str, str] | None = None, target: str | None = None
    ) -> Server:
        """Starts a server of a bundle, which may not serve yet."""
        log = self._factory.mktemp("server") / "log"
        address = target or f"127.0.0.1:{free_port()}"
        # Nobody balances here; a test that wants the delay says so.
        flags = ("--listen", address, "--drain-delay-s", "0", *flags)
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [str(BIN / "polyhead-serve"), str(served), *flags], stderr=stderr, env=_with(environment or {})
            )
        self.servers.append(Server(process, address, log))
        return self.servers[-1]

    def end(self, first: int = 0) -> None:
        """Kills the servers that still run, from the one with this number on."""
        for server in self.servers[first:]:
            if server.process.poll() is None:
                server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts servers, which end with their test, or with the file if a fixture of the module started them."""
    starter = Starter(tmp_path_factory)
    yield starter
    starter.end()


@pytest.fixture(autouse=True)
def _servers_of_a_test_end_with_it(start: Starter) -> Iterator[None]:
    shared = len(start.servers)
    yield
    start.end(shared)
