"""The Go and TypeScript clients against real servers: same answers, retries of items and streams, deadlines.

Both ship a command with the same output, so that a test runs against each of them. They are skipped where the toolchain
is absent; clients/README.md says how to install it. The Go client is compiled in each of the ways that is possible:
with the modules of go.sum, and with Debian's packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from filelock import FileLock
from polyhead_client import Client

from tests.support.demo import ROOT
from tests.support.fake_server import BUSY, ERROR, FakeServicer, serve_fake

from .conftest import Start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("other languages")]

GO = ROOT / "clients/go"
GO_SOURCES = Path("/usr/share/gocode/src")  # of Debian's golang-*-dev packages
# The first is of golang-github-golang-protobuf-1-5-dev, instead of which apt may choose 1-3.
GO_PACKAGES = ("github.com/golang/protobuf/proto/registry.go", "google.golang.org/grpc", "google.golang.org/genproto")
NPM = ROOT / "clients/npm"
TEXTS = [f"Parcel {number} is {'late, and nobody answers' if number % 3 else 'here'}" for number in range(300)]


@dataclass(frozen=True)
class Command:
    """The command of a client.

    Attributes:
        arguments: The program.
        dash: Prefix of its flags.
        timeout: Formats seconds as the flag of the deadline and its value.
    """

    arguments: Sequence[str | Path]
    dash: str
    timeout: Callable[[float], list[str]]

    def run(
        self, target: str, texts: Sequence[str], *flags: str, timeout_s: float | None = None, key: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Analyzes texts, which are its standard input."""
        options = [f"{self.dash}target", target, *(f"{self.dash}{flag}" for flag in flags)]
        if timeout_s is not None:
            options += self.timeout(timeout_s)
        environment = os.environ | ({"POLYHEAD_API_KEY": key} if key else {})
        lines = "".join(f"{text}\n" for text in texts)
        return subprocess.run(
            [*map(str, self.arguments), *options],
            input=lines,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=120,
        )

    @contextlib.contextmanager
    def open(self, target: str) -> Iterator[subprocess.Popen[bytes]]:
        """Starts the command as a process whose pipes stay open."""
        pipe = subprocess.PIPE
        arguments = [*map(str, self.arguments), f"{self.dash}target", target]
        with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as process:
            watchdog = threading.Timer(60, process.kill)  # of a command that waits for ever
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                process.kill()

    def answers(self, target: str, texts: Sequence[str], *flags: str) -> list[dict[str, Any]]:
        """Returns the answer of each text, in their order."""
        done = self.run(target, texts, *flags)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert sorted(int(record["id"]) for record in records) == list(range(len(texts))), done.stderr
        assert done.returncode == int(any("error" in record for record in records))
        return sorted(records, key=lambda record: int(record["id"]))


def go_modules_command(folder: Path) -> Command:
    """Compiles with the modules that go.mod names, verified against go.sum."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    environment = {"GO111MODULE": "on", "GOFLAGS": "-mod=readonly"}
    try:
        downloaded = _go(GO, environment, "mod", "download", timeout_s=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the Go module proxy does not answer")
    if downloaded.returncode != 0:
        assert "checksum mismatch" not in downloaded.stderr
        pytest.skip(f"Go modules cannot be downloaded: {downloaded.stderr.splitlines()[-1]}")
    return _go_command(GO, environment, folder)


def go_debian_command(folder: Path) -> Command:
    """Compiles with Debian's packages, without modules."""
    if shutil.which("go") is None or not all((GO_SOURCES / package).exists() for package in GO_PACKAGES):
        pytest.skip("Debian's Go toolchain and packages are not installed")
    package = folder / "src/github.com/polyhead/polyhead/clients/go"
    package.parent.mkdir(parents=True)
    package.symlink_to(GO)
    environment = {"GO111MODULE": "off", "GOFLAGS": "", "GOPATH": f"{folder}:{GO_SOURCES.parent}"}
    return _go_command(package, environment, folder)


def _go_command(package: Path, environment: Mapping[str, str], folder: Path) -> Command:
    program = folder / "polyhead-analyze"
    for arguments in (
        ["vet", ".", "./cmd/..."],
        ["test", "."],
        ["build", "-o", str(program), "./cmd/polyhead-analyze"],
    ):
        built = _go(package, environment, *arguments)
        assert built.returncode == 0, built.stdout + built.stderr
    return Command([program], "-", lambda seconds: ["-timeout", f"{seconds}s"])


def _go(
    package: Path, environment: Mapping[str, str], *arguments: str, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    # The shell's own notion of the folder: the compiler finds a linked package by the path of the link.
    variables = {**os.environ, **environment, "PWD": str(package)}
    return subprocess.run(
        ["go", *arguments], cwd=package, env=variables, capture_output=True, text=True, check=False, timeout=timeout_s
    )


def npm_command(folder: Path) -> Command:
    compiler = NPM / "node_modules/.bin/tsc"
    if shutil.which("node") is None or not compiler.exists():
        pytest.skip("node or the packages of clients/npm are not installed; `make test-slow` installs the latter")
    with FileLock(NPM / "node_modules/.build.lock"):
        built = subprocess.run([compiler, "--project", NPM], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout
    return Command(["node", NPM / "dist/cli.js"], "--", lambda seconds: ["--timeout-ms", str(round(seconds * 1000))])


@pytest.fixture(
    scope="module", params=[go_modules_command, go_debian_command, npm_command], ids=["go-modules", "go-debian", "npm"]
)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    found: Command = request.param(tmp_path_factory.mktemp("client"))
    return found


@pytest.fixture
def servicer() -> Iterator[FakeServicer]:
    with serve_fake() as servicer:
        yield servicer


def labels(answers: Sequence[dict[str, Any]]) -> list[str | None]:
    """Returns the text that the fake server received for each answer; None for an error."""
    return [answer["sentiment"]["label"] if "sentiment" in answer else None for answer in answers]


@pytest.mark.model
@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
def test_answers_are_those_of_the_python_client(
    command: Command, flags: tuple[str, ...], demo_bundle: Path, start: Start
) -> None:
    server = start(demo_bundle)
    server.wait_until_serving()
    answers = command.answers(server.target, TEXTS, *flags)
    with Client(server.target) as client:
        expected = [answer.unwrap() for answer in client.analyze(TEXTS)]
    for answer, result in zip(answers, expected, strict=True):
        assert result.embedding is not None
        assert answer["embedding"] == pytest.approx(result.embedding.tolist(), abs=1e-6)
        assert result.classification is not None
        scores = [(score.label, pytest.approx(score.probability, abs=1e-6)) for score in result.classification.scores]
        assert [(score["label"], score["probability"]) for score in answer["classification"]["scores"]] == scores
        assert result.sentiment is not None
        assert answer["sentiment"]["label"] == result.sentiment.label
        assert answer["truncated"] is False
    assert server.stop() == 0


@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
@pytest.mark.parametrize("abstained", [True, False])
def test_confidence_novelty_and_prediction_set_are_printed(
    command: Command, servicer: FakeServicer, flags: tuple[str, ...], abstained: bool
) -> None:
    servicer.abstained = abstained
    (answer,) = command.answers(servicer.target, ["text"], *flags, "novelty", "prediction-sets")
    expected = {"confidence": 0.75, "abstained": abstained}
    assert expected.items() <= answer["classification"].items()
    assert expected.items() <= answer["sentiment"].items()
    assert answer["novelty"] == 0.25
    assert answer["classification"]["prediction_set"] == ["text"]


def test_answers_without_doubt_have_the_fields_of_before(command: Command, servicer: FakeServicer) -> None:
    (answer,) = command.answers(servicer.target, ["text"])
    assert answer.keys() == {"id", "embedding", "classification", "sentiment", "truncated"}
    assert answer["classification"].keys() == {"head", "scores"}
    assert answer["sentiment"].keys() == {"head", "probability", "label"}


@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
def test_rejected_items_are_sent_again(command: Command, servicer: FakeServicer, flags: tuple[str, ...]) -> None:
    texts = [f"{BUSY}{number}" if number % 4 == 0 else f"text {number}" for number in range(200)]
    assert labels(command.answers(servicer.target, texts, *flags)) == texts
    assert sum(len(request.items) for request in servicer.requests) == 250


@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
def test_rejection_is_returned_without_retries(
    command: Command, servicer: FakeServicer, flags: tuple[str, ...]
) -> None:
    """Control: the fake server does reject these items."""
    answers = command.answers(servicer.target, [f"{BUSY}1", "text"], *flags, "max-attempts=1")
    assert labels(answers) == [None, "text"]
    assert answers[0]["error"]["code"] == "ResourceExhausted"
    assert answers[0]["error"]["reason"] == "REQUESTED"


@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
def test_error_of_an_item_does_not_affect_others(
    command: Command, servicer: FakeServicer, flags: tuple[str, ...]
) -> None:
    answers = command.answers(servicer.target, ["first", f"{ERROR} bad", "last"], *flags)
    assert labels(answers) == ["first", None, "last"]
    assert answers[1]["error"]["code"] == "InvalidArgument"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED], ids=lambda code: code.name)
def test_broken_stream_loses_nothing(command: Command, servicer: FakeServicer, code: grpc.StatusCode) -> None:
    servicer.stream_failures = [(0, code), (3, code)]
    texts = [f"text {number}" for number in range(200)]
    assert labels(command.answers(servicer.target, texts)) == texts
    assert servicer.calls == ["StreamAnalyze"] * 3


def test_final_error_ends_a_stream(command: Command, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(0, grpc.StatusCode.PERMISSION_DENIED)]
    done = command.run(servicer.target, ["text"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "requested failure" in done.stderr
    assert servicer.calls == ["StreamAnalyze"]


def test_unary_call_is_retried_while_the_server_is_unavailable(command: Command, servicer: FakeServicer) -> None:
    servicer.unary_failures = [grpc.StatusCode.UNAVAILABLE] * 2
    assert labels(command.answers(servicer.target, ["text"], "unary")) == ["text"]
    assert servicer.calls == ["Analyze"] * 3


@pytest.mark.parametrize("flags", [(), ("unary",)], ids=["stream", "unary"])
def test_call_ends_at_its_deadline(command: Command, servicer: FakeServicer, flags: tuple[str, ...]) -> None:
    servicer.gate.clear()
    done = command.run(servicer.target, ["text"], *flags, timeout_s=1)
    assert done.returncode == 1
    assert "deadline" in done.stderr.replace("_", " ").lower()
    servicer.gate.set()


def test_stream_limits_the_items_in_flight(command: Command, servicer: FakeServicer) -> None:
    texts = [f"text {number}" for number in range(2000)]
    assert labels(command.answers(servicer.target, texts)) == texts
    assert servicer.max_in_flight_seen <= 256
    assert len(servicer.requests) < len(texts)


def test_api_key_is_sent_to_this_machine_only(command: Command, servicer: FakeServicer) -> None:
    assert command.run(servicer.target, ["text"], key="secret").returncode == 0
    assert servicer.metadata[0]["authorization"] == "Bearer secret"
    refused = command.run("polyhead.invalid:50051", ["text"], key="secret")
    assert refused.returncode != 0
    assert "loopback" in refused.stderr
    assert "secret" not in refused.stderr


@pytest.mark.parametrize("flags", [(), ("unary",)])
def test_name_of_the_model_is_sent_if_it_is_given(
    command: Command, servicer: FakeServicer, flags: tuple[str, ...]
) -> None:
    assert command.run(servicer.target, ["text"], "model=tickets", *flags).returncode == 0
    assert command.run(servicer.target, ["text"], *flags).returncode == 0
    assert [one.get("x-polyhead-model") for one in servicer.metadata] == ["tickets", None]


# Prints how many texts a stream read for ten answers, and whether it closed its input.
ABANDONED_STREAM = """
import { Client } from "@polyhead/client";

const client = new Client(process.argv[2], { maxInFlight: 16 });
let [read, closed, answered] = [0, false, 0];
async function* texts() {
  try {
    for (;;) yield `text ${read++}`;
  } finally {
    closed = true;
  }
}
for await (const answer of client.stream(texts())) {
  if (++answered === 10) break;
}
console.log(JSON.stringify({ read, closed }));
client.close();
"""


def test_npm_stream_reads_no_further_than_its_consumer(servicer: FakeServicer) -> None:
    npm_command(NPM)
    path = NPM / "dist/abandoned.js"
    path.write_text(ABANDONED_STREAM)
    done = subprocess.run(["node", path, servicer.target], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    state = json.loads(done.stdout)
    assert state["closed"]
    assert state["read"] <= 10 + 16 + 1
    assert servicer.stream_ended.wait(10)
    path.unlink()


# Ends a stream whose input waits for ever after its first text, and prints how it ended.
WAITING_INPUT = """
import { Client } from "@polyhead/client";

const [target, how] = process.argv.slice(2);
const client = new Client(how === "unreachable" ? "127.0.0.1:1" : target, { maxAttempts: 1 });
const abort = new AbortController();
async function* texts() {
  yield "text";
  await new Promise(() => {});
}
try {
  const options = { timeoutMs: how === "timeout" ? 300 : undefined, signal: abort.signal };
  for await (const answer of client.stream(texts(), options)) {
    if (how === "break") break;
    if (how === "abort") abort.abort();
  }
  console.log("ended");
} catch (error) {
  console.log(error.code);
}
client.close();
"""


@pytest.mark.parametrize(("how", "end"), [("break", "ended"), ("timeout", "4"), ("abort", "1"), ("unreachable", "14")])
def test_npm_stream_ends_while_its_input_waits(servicer: FakeServicer, how: str, end: str) -> None:
    npm_command(NPM)
    path = NPM / f"dist/waiting-{how}.js"
    path.write_text(WAITING_INPUT)
    done = subprocess.run(["node", path, servicer.target, how], capture_output=True, text=True, check=False, timeout=60)
    # Without an end, node runs out of work and exits with 13.
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{end}\n", "")
    path.unlink()


def test_command_answers_each_line_before_the_next_arrives(command: Command, servicer: FakeServicer) -> None:
    with command.open(servicer.target) as process:
        assert process.stdin
        assert process.stdout
        for text in ("one", "two"):
            process.stdin.write(f"{text}\n".encode())
            assert labels([json.loads(process.stdout.readline())]) == [text]
        assert process.communicate() == (b"", b"")
    assert process.returncode == 0


def test_command_ends_silently_if_its_output_is_not_read(command: Command, servicer: FakeServicer) -> None:
    with command.open(servicer.target) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"one\n")
        assert json.loads(process.stdout.readline())["id"] == "0"
        process.stdout.close()
        process.stdin.write(b"two\n")  # stdin stays open: only the closed pipe can end the process
        # The runtime of Go ends the process by the signal.
        assert process.wait(20) in {0, -signal.SIGPIPE}
        assert process.stderr.read() == b""


def test_npm_command_names_the_failure_of_its_output(servicer: FakeServicer) -> None:
    command = [*npm_command(NPM).arguments, "--target", servicer.target, "text"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ENOSPC" in done.stderr


@pytest.mark.parametrize("flags", [("max-attempts=0",), ("max-attempts=x",)])
def test_invalid_option_is_a_usage_error(command: Command, flags: tuple[str, ...]) -> None:
    done = command.run("127.0.0.1:1", ["text"], *flags)
    assert done.returncode == 2
    assert "max-attempts" in done.stderr


@pytest.fixture(scope="module")
def npm_tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as ``npm publish`` would upload it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    npm_command(NPM)
    folder = tmp_path_factory.mktemp("package")
    command = ["npm", "pack", "--ignore-scripts", "--offline", "--pack-destination", str(folder)]
    subprocess.run(command, cwd=NPM, capture_output=True, check=True, timeout=60)
    (tarball,) = folder.iterdir()
    return tarball


def test_npm_package_works_as_a_dependency(npm_tarball: Path, tmp_path: Path, servicer: FakeServicer) -> None:
    """The example of its page, in TypeScript, in a project in which only the package is installed."""
    installed = tmp_path / "node_modules/@polyhead/client"
    installed.mkdir(parents=True)
    subprocess.run(["tar", "-xzf", npm_tarball, "-C", installed, "--strip-components=1"], check=True)
    for scope in ("@bufbuild", "@connectrpc", "@types", "undici-types"):
        (tmp_path / "node_modules" / scope).symlink_to(NPM / "node_modules" / scope)
    (example, *_) = re.findall(r"^```js\n(.*?)^```", (installed / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert example.count("127.0.0.1:50051") == 1
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "example.ts").write_text(example.replace("127.0.0.1:50051", servicer.target))
    # Without skipLibCheck: the declarations of the package are checked too.
    compiler = str(NPM / "node_modules/.bin/tsc")
    command = [compiler, "--strict", "--module", "NodeNext", "--target", "ES2022", "example.ts"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert compiled.returncode == 0, compiled.stdout
    done = subprocess.run(["node", "example.js"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["0 Where is my refund? 3", "1 Love it! 3"]


def test_npm_package_contains_code_types_and_licence(npm_tarball: Path) -> None:
    with tarfile.open(npm_tarball) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    manifest = json.loads((NPM / "package.json").read_text())
    exported = [target for one in manifest["exports"].values() if isinstance(one, dict) for target in one.values()]
    assert {path.removeprefix("./") for path in [*exported, *manifest["bin"].values()]} <= names
    assert {"LICENSE", "README.md", "package.json", "src/index.ts", "dist/gen/polyhead/v1/item_pb.d.ts"} <= names
    assert [name for name in names if name.startswith(("node_modules", "package-lock"))] == []


def test_checksums_of_every_required_go_module_are_recorded() -> None:
    """Otherwise ``go build`` refuses the module; ``go mod tidy`` writes both files."""
    required = re.findall(r"^\t(\S+ v\S+)", (GO / "go.mod").read_text(), re.MULTILINE)
    recorded = set(re.findall(r"^(\S+ v\S+) h1:\S{43}=$", (GO / "go.sum").read_text(), re.MULTILINE))
    assert len(required) >= 3
    assert {f"{module}{file}" for module in required for file in ("", "/go.mod")} <= recorded


def test_versions_are_those_of_the_server() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((NPM / "package.json").read_text())["version"] == version
    assert json.loads((NPM / "package-lock.json").read_text())["version"] == version
