"""CPU time of the server per text under versions of grpcio and Python, and variables of gRPC.

    python -m bench.server.grpc_versions --bundle build/demo/bundle --output bench/results/grpc_versions.json
    python -m bench.server.grpc_versions --bundle build/demo/bundle --python python3.11 python3.13 --grpcio 1.85.1
    python -m bench.server.grpc_versions --bundle build/demo/bundle --grpcio 1.85.1 --variable GRPC_POLL_STRATEGY=poll

Measures all versions of grpcio under the first Python, and the first version under the other ones and with each of the
environment variables, beside a minimal server of the same installation. Each Python gets a virtual environment in
build/grpc-versions with the server of this source tree and the packages of locks/server.txt. Each version of grpcio
gets a folder of its own, which takes precedence. What is installed already is used again; delete the folder to install
the server anew.

The servers of all versions run side by side and take turns. Microseconds of the event loop per text, by the loads of
bench.server.front_cost. ratio is that to the first Python with the first grpcio in the same round: compare ratios,
because a machine that does other work makes all times larger.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.results import Figures
from bench.harness.servers import free_port, running_command
from bench.harness.texts import DEMO_TEXTS, FORMAT_HELP, ROOT

from .front_cost import cpu_per_text

FOLDER = ROOT / "build/grpc-versions"
LOADS = ("unary", "stream")
SERVERS = {"polyhead": "bench.server.instant_server", "minimal": "bench.server.minimal_server"}
_LOCK = ROOT / "locks/server.txt"
_COMPANIONS = ("grpcio-channelz", "grpcio-health-checking", "grpcio-reflection")
# The lock's first.
_VERSIONS = ("1.85.1", "1.74.0", "1.75.0", "1.76.0", "1.78.0", "1.80.0", "1.82.3", "1.84.2", "1.85.3")


@dataclasses.dataclass(frozen=True)
class Installation:
    """One version of Python with one of grpcio.

    Attributes:
        python: The interpreter of its virtual environment.
        packages: Folder of the packages of gRPC that replace those of the environment.
        name: Both versions, for the result.
        variables: Environment variables of its servers.
    """

    python: Path
    packages: Path
    name: str
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Returns the variables of a process of this installation."""
        return {**os.environ, **self.variables, "PYTHONPATH": os.pathsep.join([str(self.packages), str(ROOT)])}

    def with_variable(self, assignment: str) -> Installation:
        """Returns the same installation with an environment variable, NAME=VALUE."""
        name, _, value = assignment.partition("=")
        return dataclasses.replace(self, name=f"{self.name}, {assignment}", variables={name: value})


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to serve")
    parser.add_argument("--texts", type=Path, default=DEMO_TEXTS, help=f"{FORMAT_HELP} (default: the demo's)")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--grpcio", nargs="+", default=list(_VERSIONS), help=f"(default: {' '.join(_VERSIONS)})")
    parser.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable, repeatable",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all servers and loads (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured seconds per load (default: 2)")
    add_output_flag(parser)
    arguments = parser.parse_args()
    arguments.bundle = arguments.bundle.resolve()
    first, *others = arguments.python
    installations = [install(first, version) for version in arguments.grpcio]
    installations += [install(python, arguments.grpcio[0]) for python in others]
    installations += [installations[0].with_variable(assignment) for assignment in arguments.variable]
    report = {
        **results.provenance(("polyhead",)),
        "rounds": arguments.rounds,
        "servers": {server: measure(server, installations, arguments) for server in SERVERS},
    }
    print(json.dumps(report, indent=2))
    results.write(arguments.output, report)


def install(python: str, version: str) -> Installation:
    """Installs the server and a version of grpcio, as far as they are not installed yet.

    Raises:
        subprocess.CalledProcessError: pip failed, for example because there is no such version for this Python.
    """
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    number = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    environment = FOLDER / f"python-{number}"
    interpreter = environment / "bin/python"
    if not (environment / "complete").exists():
        print(f"Python {number}: installing the server", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
        _pip(interpreter, "--require-hashes", "--requirement", str(_LOCK))
        _pip(interpreter, "--no-deps", str(ROOT))
        (environment / "complete").touch()
    packages = FOLDER / f"grpcio-{version}-python-{number}"
    if not packages.exists():
        print(f"Python {number}: installing grpcio {version}", flush=True)
        partial = packages.with_suffix(".partial")
        # grpcio has patch releases without its companions, which require their own version or a later one.
        minor = ".".join(version.split(".")[:2])
        companions = [f"{name}=={minor}.*,<={version}" for name in _COMPANIONS]
        _pip(interpreter, "--no-deps", "--target", str(partial), f"grpcio=={version}", *companions)
        partial.rename(packages)
    return Installation(interpreter, packages, f"Python {number}, grpcio {version}")


def _pip(interpreter: Path, *arguments: str) -> None:
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *arguments], check=True)


def measure(server: str, installations: Sequence[Installation], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the spread of the figures of a server for each installation and load."""
    found: dict[str, dict[str, list[Figures]]] = {one.name: {load: [] for load in LOADS} for one in installations}
    with contextlib.ExitStack() as stack:
        running = {one.name: stack.enter_context(run(server, one, arguments.bundle)) for one in installations}
        for number in tqdm(range(arguments.rounds), desc=server, unit="round"):
            for load in LOADS:
                # Every other round in the opposite order, so that a trend of the machine's speed cancels out.
                for name in list(running)[:: 1 if number % 2 else -1]:
                    process_id, target = running[name]
                    found[name][load].append(cpu_per_text(process_id, {"main": target}, load, arguments))
    first = found[installations[0].name]
    return {
        name: {
            load: {**results.spread_all(rounds), "ratio": _ratio(rounds, first[load])} for load, rounds in loads.items()
        }
        for name, loads in found.items()
    }


def _ratio(rounds: Sequence[Figures], reference: Sequence[Figures]) -> list[float]:
    pairs = zip(rounds, reference, strict=True)
    return results.spread([one["event_loop_us"] / other["event_loop_us"] for one, other in pairs])


@contextlib.contextmanager
def run(server: str, installation: Installation, bundle: Path) -> Iterator[tuple[int, str]]:
    """Runs a server of an installation; yields its process id and its HOST:PORT once it serves."""
    target = f"127.0.0.1:{free_port()}"
    command = [str(installation.python), "-m", SERVERS[server]]
    if server == "polyhead":
        command += [str(bundle), "--device", "cpu", "--threads", "2", "--log-level", "warning"]
    command += ["--listen", target]
    with running_command(command, target, env=installation.environment(), cwd=ROOT) as process:
        yield process.pid, target


if __name__ == "__main__":
    main()
