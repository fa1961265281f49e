"""Starts the compared servers and their clients, each in the server's own environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness.servers import free_port, serving
from bench.harness.texts import ROOT

SERVERS_FOLDER = Path(__file__).resolve().parent / "servers"
ENVIRONMENTS = ROOT / "build/comparison"
_STUBS = ROOT / "proto/gen"
_CLIENTS = "bench.comparison"
_STOP_TIMEOUT_S = 20.0
# Maximum time of a startup or a load; an overloaded server takes half a minute to answer what was sent.
_LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Setting:
    """Batching of a server."""

    batch: int
    wait_ms: float

    def __str__(self) -> str:
        if self.batch == 1:
            return "no batching"
        return f"batches of up to {self.batch} texts, {self.wait_ms:g} ms wait"


@dataclass(frozen=True)
class Server:
    """A compared server, and the client that its users would choose.

    Attributes:
        name: Its folder in bench/comparison/servers and its environment in build/comparison.
        package: Its name on PyPI.
        protocol: Protocol and payload, in words.
        client: Module of its client in ``bench.comparison``.
        command: Its command in its environment; ``{port}`` and ``{folder}`` are filled in.
    """

    name: str
    package: str
    protocol: str
    client: str
    command: tuple[str, ...] = field(default=("python", "{folder}/server.py"))

    @property
    def installed(self) -> bool:
        """Whether the environment exists."""
        return (ENVIRONMENTS / self.name / "bin/python").exists()

    @property
    def version(self) -> str:
        """The version in the environment."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        command = [self._bin("python"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @contextlib.contextmanager
    def serving(self, bundle: Path, variant: str, setting: Setting) -> Iterator[Load]:
        """Runs the server with all of its processes; yields its load generator."""
        # Some servers also use the next port, which is most likely free.
        port, folder = free_port(), SERVERS_FOLDER / self.name
        environment = self._environment() | {
            "COMPARISON_BUNDLE": str(bundle.resolve()),
            "COMPARISON_VARIANT": variant,
            "COMPARISON_PORT": str(port),
            "COMPARISON_BATCH": str(setting.batch),
            "COMPARISON_WAIT_MS": str(setting.wait_ms),
        }
        program, *flags = (one.format(port=port, folder=folder) for one in self.command)
        with (ENVIRONMENTS / f"{self.name}.log").open("w") as log, tempfile.TemporaryDirectory() as scratch:
            process = subprocess.Popen(
                [self._bin(program), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
            try:
                client = (self._bin("python"), "-m", f"{_CLIENTS}.{self.client}", f"127.0.0.1:{port}")
                yield Load(client, self._environment())
            finally:
                _stop(process)

    def _bin(self, program: str) -> str:
        return str(ENVIRONMENTS / self.name / "bin" / program)

    def _environment(self) -> dict[str, str]:
        path = f"{ENVIRONMENTS / self.name / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # The server's folder comes first: the root has a folder `server`, which must not hide `server.py`.
        return _client_environment(SERVERS_FOLDER / self.name, ROOT, _STUBS) | {
            "PATH": path,
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@dataclass(frozen=True)
class Load:
    """A client's command without its load, and its environment."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def run(self, texts: Path, seconds: float, *flags: str) -> dict[str, float]:
        """Runs the client in its own process and returns its figures."""
        found: dict[str, float] = self._run(str(texts.resolve()), "--seconds", str(seconds), *flags)
        return found

    def answers(self, texts: Path, count: int) -> list[tuple[str, list[float], float]]:
        """Waits until the server is ready; returns its answers to the first texts, with embeddings in base64."""
        found: list[tuple[str, list[float], float]] = self._run(str(texts.resolve()), "--answers", str(count))
        return found

    def _run(self, *flags: str) -> Any:
        command = [*self.command, *flags]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment, timeout=_LOAD_TIMEOUT_S
        )
        return json.loads(done.stdout)


@contextlib.contextmanager
def polyhead(bundle: Path, variant: str) -> Iterator[Load]:
    """Runs polyhead's server with its default flags."""
    with serving(bundle, "--engine", "onnx", "--device", "cpu", "--variant", variant) as target:
        yield _polyhead_load("analyze_client", target)


@contextlib.contextmanager
def three_polyheads(bundle: Path, variant: str) -> Iterator[Load]:
    """Runs three polyhead servers side by side; the client requests one task from each."""
    with contextlib.ExitStack() as stack:
        flags = ("--engine", "onnx", "--device", "cpu", "--variant", variant)
        targets = [stack.enter_context(serving(bundle, *flags)) for _ in range(3)]
        yield _polyhead_load("servers.three_servers.client", ",".join(targets))


def sentence_transformers_offline(folder: Path, texts: Path) -> dict[str, float]:
    """Returns texts per second of sentence-transformers over the whole list."""
    python = str(ENVIRONMENTS / "sentence_transformers/bin/python")
    module = f"{_CLIENTS}.servers.sentence_transformers.offline"
    command = [python, "-m", module, str(folder.resolve()), str(texts.resolve())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_client_environment(ROOT))
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _polyhead_load(client: str, target: str) -> Load:
    return Load((sys.executable, "-m", f"{_CLIENTS}.{client}", target), _client_environment(ROOT))


def _client_environment(*path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "TOKENIZERS_PARALLELISM": "false"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates a server, then kills the remaining processes of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


SERVERS: Sequence[Server] = (
    Server(
        "mosec",
        "mosec",
        "HTTP, MessagePack",
        "servers.mosec.client",
        ("python", "{folder}/server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
    ),
    Server("mlserver", "mlserver", "gRPC, V2 protocol", "v2_client"),
    Server("pytriton", "nvidia-pytriton", "gRPC, V2 protocol", "v2_client"),
    Server("litserve", "litserve", "HTTP, JSON with base64 embeddings", "servers.litserve.client"),
    Server("ray", "ray", "gRPC, polyhead's protocol", "analyze_client"),
    Server(
        "bentoml",
        "bentoml",
        "HTTP, JSON with base64 embeddings",
        "servers.bentoml.client",
        ("bentoml", "serve", "server:Polyhead", "--working-dir", "{folder}", "--host", "127.0.0.1", "--port", "{port}"),
    ),
)
