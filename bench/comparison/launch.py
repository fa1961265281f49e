"""Starts rivals and puts loads on them; each runs in its own environment, its client too. See ``rivals.py``."""

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

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "rivals"
ENVIRONMENTS = HERE.parent / "build/rivals"
STUBS = HERE.parent / "proto/gen"
_STOP_S = 20.0
# So long may a server take to start, or a load to end; an overloaded one takes half a minute to answer what is due.
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class Setting:
    """How a rival gathers texts into batches."""

    batch: int
    wait_ms: float

    def __str__(self) -> str:
        if self.batch == 1:
            return "no batches"
        return f"at most {self.batch} texts a batch, waits {self.wait_ms:g} ms for them"


@dataclass(frozen=True)
class Rival:
    """A server, and the client that its users would take.

    Attributes:
        name: Its folder beside this file and its environment under build/rivals.
        package: What it is called on PyPI.
        way: How it is asked, in words.
        client: Its client, below bench/rivals.
        command: How it is started, in its environment; ``{port}`` and ``{folder}`` are filled in.
    """

    name: str
    package: str
    way: str
    client: str
    command: tuple[str, ...] = field(default=("python", "{folder}/server.py"))

    @property
    def installed(self) -> bool:
        """Whether there is an environment."""
        return (ENVIRONMENTS / self.name / "bin/python").exists()

    @property
    def version(self) -> str:
        """The version in the environment."""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        command = [self._bin("python"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @contextlib.contextmanager
    def serving(self, bundle: Path, variant: str, setting: Setting) -> Iterator[Load]:
        """A server process with all that it starts; yields what puts loads on it."""
        # The next port is most likely free as well, which some rivals take too.
        port, folder = free_port(), PROGRAMS / self.name
        environment = self._environment() | {
            "RIVAL_BUNDLE": str(bundle.resolve()),
            "RIVAL_VARIANT": variant,
            "RIVAL_PORT": str(port),
            "RIVAL_BATCH": str(setting.batch),
            "RIVAL_WAIT_MS": str(setting.wait_ms),
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
                command = (self._bin("python"), str(PROGRAMS / self.client), f"127.0.0.1:{port}")
                yield Load(command, self._environment())
            finally:
                _end(process)

    def _bin(self, program: str) -> str:
        return str(ENVIRONMENTS / self.name / "bin" / program)

    def _environment(self) -> dict[str, str]:
        path = f"{ENVIRONMENTS / self.name / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return _client_environment() | {
            "PATH": path,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, PROGRAMS / self.name, STUBS))),
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@dataclass(frozen=True)
class Load:
    """A client's command, without its loads, and its environment."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def put(self, texts: Path, seconds: float, *flags: str) -> dict[str, float]:
        """Runs the client's process and reads its line."""
        found: dict[str, float] = self._run(str(texts.resolve()), "--seconds", str(seconds), *flags)
        return found

    def answers(self, texts: Path, count: int) -> list[tuple[str, list[float], float]]:
        """Waits until the server is ready; what it says about the first texts, embeddings in base64."""
        found: list[tuple[str, list[float], float]] = self._run(str(texts.resolve()), "--answers", str(count))
        return found

    def _run(self, *flags: str) -> Any:
        command = [*self.command, *flags]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment, timeout=_PATIENCE_S
        )
        return json.loads(done.stdout)


@contextlib.contextmanager
def polyhead(bundle: Path, variant: str) -> Iterator[Load]:
    """Our server as it is started by default."""
    with serving(bundle, "--engine", "onnx", "--device", "cpu", "--variant", variant) as target:
        yield Load((sys.executable, str(PROGRAMS / "analyze_client.py"), target), _client_environment())


@contextlib.contextmanager
def three_polyheads(bundle: Path, variant: str) -> Iterator[Load]:
    """Three servers side by side, asked for one task each."""
    with contextlib.ExitStack() as stack:
        flags = ("--engine", "onnx", "--device", "cpu", "--variant", variant)
        targets = [stack.enter_context(serving(bundle, *flags)) for _ in range(3)]
        client = str(PROGRAMS / "three_servers/client.py")
        yield Load((sys.executable, client, ",".join(targets)), _client_environment())


def offline(folder: Path, texts: Path) -> dict[str, float]:
    """Texts a second of sentence-transformers over the whole list."""
    command = [
        str(ENVIRONMENTS / "sentence_transformers/bin/python"),
        str(PROGRAMS / "sentence_transformers/offline.py"),
        str(folder),
        str(texts),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_client_environment())
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _client_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, and then whatever of its process group is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


SERVERS: Sequence[Rival] = (
    Rival(
        "mosec",
        "mosec",
        "HTTP, MessagePack",
        "mosec/client.py",
        ("python", "{folder}/server.py", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
    ),
    Rival("mlserver", "mlserver", "gRPC, V2 protocol", "v2_client.py"),
    Rival("pytriton", "nvidia-pytriton", "gRPC, V2 protocol", "v2_client.py"),
    Rival("litserve", "litserve", "HTTP, JSON with a base64 embedding", "litserve/client.py"),
    Rival("ray", "ray", "gRPC, polyhead's contract", "analyze_client.py"),
    Rival(
        "bentoml",
        "bentoml",
        "HTTP, JSON with a base64 embedding",
        "bentoml/client.py",
        ("bentoml", "serve", "server:Polyhead", "--working-dir", "{folder}", "--host", "127.0.0.1", "--port", "{port}"),
    ),
)
