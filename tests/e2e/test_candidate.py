"""A candidate beside the served model, in real servers: shadow, comparison, canary, promotion."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import polyhead_bundle as bundle
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Client
from polyhead_export.compare.comparison import compare as compare_offline

from bench.harness.servers import free_port
from tests.support.command import polyhead
from tests.support.polling import wait_until
from tests.support.worker_load import Load, serving

from .conftest import Server, Start, patch_engine

pytestmark = pytest.mark.model

MODES = {"one process": (), "fronts": ("--fronts", "2"), "workers": ("--workers", "2")}
TEXTS = [
    f"{start} {end} {number}"
    for number, (start, end) in enumerate(
        (start, end)
        for start in ("My invoice", "The app", "Your support", "The parcel", "Nobody", "The new version")
        for end in ("is wrong again", "crashes all day", "was a great help", "came late", "answers me", "works well")
        for _ in range(5)
    )
]


@dataclasses.dataclass
class Admin:
    """A server with its admin service.

    Attributes:
        server: Its process.
        target: Target of the admin service.
        metrics: HOST:PORT of its metrics; empty if it has none.
    """

    server: Server
    target: str
    metrics: str = ""

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Runs ``polyhead admin``; returns its exit code, its output and its standard error."""
        return polyhead("admin", *arguments, "--target", self.target)

    def ok(self, *arguments: str) -> str:
        code, output, error = self.run(*arguments)
        assert code == 0, error
        return output

    def compare(self) -> Any:
        return json.loads(self.ok("compare", "--json", "--show-texts", "1000"))

    def compared(self, count: int) -> Any:
        """Waits until the candidate has answered so many texts; returns the comparison."""
        wait_until(lambda: self.compare()["shadow"]["compared"] >= count, f"{count} texts are compared")
        return self.compare()["shadow"]

    def heads(self) -> dict[str, str]:
        """Fingerprints of the heads that answer."""
        with Client(self.server.target) as client:
            return dict(client.info().fingerprints.heads)

    def analyze(self, *texts: str) -> None:
        with Client(self.server.target) as client:
            for answer in client.analyze(list(texts)):
                answer.unwrap()


def start_admin(start: Start, served: Path, mode: str, folder: Path, *flags: str, **options: Any) -> Admin:
    target = f"unix:{folder}/admin"
    server = start(served, "--admin-listen", target, *MODES[mode], *flags, **options)
    if mode == "one process":
        server.wait_until_serving()
    elif mode == "workers":
        wait_until(lambda: serving(server) == 2, "two workers serve")
    else:
        wait_until(lambda: server.log.read_text().count(" serves as process ") == 3, "the fronts serve")
    return Admin(server, target)


def changed(source: Path, path: Path, **heads: dict[str, Any]) -> Path:
    """Writes a bundle with changes of some heads, whose fingerprints change with them."""
    found = bundle.load(source)
    manifest = found.manifest
    new_heads = tuple(dataclasses.replace(head, **heads.get(head.name, {})) for head in manifest.heads)
    variants = {
        name: dataclasses.replace(
            variant,
            fingerprints=dataclasses.replace(
                variant.fingerprints,
                heads={
                    head: ("f" * 16 if head in heads else value) for head, value in variant.fingerprints.heads.items()
                },
            ),
        )
        for name, variant in manifest.variants.items()
    }
    new = dataclasses.replace(manifest, heads=new_heads, variants=variants)
    return bundle.write(path, new, {name: source / name for name in manifest.files}).path


@pytest.fixture(scope="module")
def stricter(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that calls fewer texts positive."""
    return changed(demo_bundle, tmp_path_factory.mktemp("bundles") / "stricter", sentiment={"threshold": 0.9})


@pytest.fixture(scope="module", params=MODES)
def lasting(
    request: pytest.FixtureRequest, start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Admin:
    """A server of the demo model in each layout of processes, for tests that leave it as they found it."""
    metrics = f"127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("admin")
    started = start_admin(start, demo_bundle, request.param, folder, "--metrics-listen", metrics)
    started.metrics = metrics
    return started


@pytest.fixture
def admin(lasting: Admin) -> Admin:
    """The server without a candidate, whatever the test before has left."""
    lasting.run("discard")
    return lasting


# For tests of what does not depend on the layout of processes; the first of the parameters, which order the tests.
in_one_process = pytest.mark.parametrize("lasting", ["one process"], indirect=True)


def test_same_bundle_agrees_fully(admin: Admin, demo_bundle: Path) -> None:
    described = json.loads(admin.ok("shadow", str(demo_bundle), "--share", "100%", "--priority", "normal"))
    assert described["model_id"] == bundle.load(demo_bundle).model_id
    for begin in range(0, len(TEXTS), 20):
        # Each over a connection of its own, so that several processes answer.
        admin.analyze(*TEXTS[begin : begin + 20])
    found = admin.compared(len(TEXTS))
    assert found["answered"] == found["selected"] == found["compared"] == len(TEXTS)
    assert [head["changed"] for head in found["heads"]] == [0, 0]
    assert found["embedding"]["least_cosine"] == pytest.approx(1, abs=1e-5)
    assert not found["errors_total"]
    with urllib.request.urlopen(f"http://{admin.metrics}/metrics") as response:
        page = response.read().decode()
    assert f'polyhead_shadow_texts_total{{outcome="compared"}} {len(TEXTS)}.0' in page
    assert 'mode="shadow"' in page
    admin.ok("discard")
    assert admin.run("compare")[0] == 2


@in_one_process
def test_matrix_is_that_of_the_offline_comparison(admin: Admin, demo_bundle: Path, tmp_path: Path) -> None:
    labels = bundle.load(demo_bundle).manifest.heads[0].labels
    candidate = changed(
        demo_bundle,
        tmp_path / "candidate",
        topic={"labels": (labels[1], labels[0], *labels[2:-1], "renamed")},
        sentiment={"threshold": 0.9},
    )
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    expected = compare_offline(demo_bundle, candidate, [data])
    admin.ok("shadow", str(candidate), "--share", "1", "--priority", "normal", "--keep-texts", "5")
    admin.analyze(*TEXTS)
    found = admin.compared(len(TEXTS))
    assert len(found["heads"]) == len(expected.heads)
    for head, offline in zip(found["heads"], expected.heads, strict=True):
        matrix = [[0] * len(head["columns"]) for _ in head["rows"]]
        for cell in head["cells"]:
            matrix[cell["row"]][cell["column"]] = cell["texts"]
        assert matrix == offline.matrix.tolist()
        assert tuple(head["rows"]) == offline.rows
        assert offline.changed
        assert head["changed"] == offline.changed.texts > 0
        assert head["weighted"] == pytest.approx(offline.weighted, abs=1e-4)
        assert 0 < len(head["texts"]) <= 5
        assert {one["text"] for one in head["texts"]} <= set(TEXTS)
    # Clients would notice these labels.
    code, _, error = admin.run("promote")
    assert code == 2
    assert "where the serving model has" in error
    assert admin.heads() == bundle.load(demo_bundle).manifest.variants["int8"].fingerprints.heads
    admin.ok("promote", "--force")
    assert admin.heads()["topic"] == "f" * 16
    admin.ok("reload", "--force")


@in_one_process
def test_bad_bundle_is_refused_and_the_served_model_answers(admin: Admin, demo_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in demo_bundle.iterdir():
        (damaged / file.name).symlink_to(file)
    before = admin.heads()
    for command in (("shadow", str(damaged)), ("canary", str(damaged)), ("shadow", str(tmp_path / "missing"))):
        code, _, error = admin.run(*command, "--share", "0.5")
        assert code == 2
        assert "FAILED_PRECONDITION" in error
    assert admin.heads() == before
    admin.analyze("one text")


def test_promotion_and_return_under_load_lose_nothing(admin: Admin, stricter: Path) -> None:
    old = admin.heads()
    admin.ok("shadow", str(stricter), "--share", "10%", "--priority", "normal")

    def under_load(*command: str) -> None:
        # Each over calls of its own, which end before their deadline on a slow machine.
        with Load(admin.server.target, pause_s=0.05) as load:
            load.wait_for(50)
            admin.ok(*command)
            load.wait_for(load.answers["result"] + 50)
        assert set(load.answers) == {"result"}
        assert set(load.ends) == {"OK"}

    under_load("promote")
    # No answer is of the old model any more, whichever process gives it.
    assert {admin.heads()["sentiment"] for _ in range(10)} == {"f" * 16}
    under_load("reload")
    assert all(admin.heads() == old for _ in range(10))


@pytest.mark.parametrize("mode", ["fronts", "workers"])
def test_restarted_process_serves_and_samples_what_is_in_force(
    start: Start, demo_bundle: Path, stricter: Path, tmp_path: Path, mode: str
) -> None:
    admin = start_admin(start, demo_bundle, mode, tmp_path)
    admin.ok("shadow", str(stricter), "--share", "1", "--priority", "normal")
    admin.ok("promote")
    admin.ok("shadow", str(demo_bundle), "--share", "1", "--priority", "normal")
    processes = [one["process_id"] for one in map(json.loads, admin.ok("stats").splitlines())]
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    restarted = len(processes)
    marker = " serves as process " if mode == "fronts" else " serves on cores "
    wait_until(lambda: admin.server.log.read_text().count(marker) == 2 * restarted, "all serve again")
    assert admin.heads()["sentiment"] == "f" * 16
    admin.analyze(*TEXTS[:20])
    assert admin.compared(20)["answered"] == 20


def answered_by(target: str, key: str) -> str:
    """Returns the fingerprint of the sentiment head that answers a caller."""
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")])
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        metadata = (("x-polyhead-routing-key", key),)
        (answer,) = stub.Analyze(request, timeout=100, wait_for_ready=True, metadata=metadata).answers
    return next(one.fingerprint for one in answer.result.fingerprints.heads if one.head == "sentiment")


def test_canary_answers_a_sticky_share_of_the_callers(admin: Admin, stricter: Path) -> None:
    admin.ok("canary", str(stricter), "--share", "40%")
    keys = [f"user {number}" for number in range(20)]
    first = [answered_by(admin.server.target, key) for key in keys]
    assert [answered_by(admin.server.target, key) for key in keys] == first
    by_candidate = Counter(first)["f" * 16]
    assert 2 <= by_candidate <= 16
    answered = admin.compare()["canary"]
    assert answered["candidate"]["texts"] == 2 * by_candidate
    assert answered["served"]["texts"] == 2 * (len(keys) - by_candidate)
    admin.ok("discard")
    assert "f" * 16 not in {answered_by(admin.server.target, key) for key in keys}


def test_canary_whose_engine_dies_is_rolled_back(admin: Admin, stricter: Path) -> None:
    with Client(admin.server.target) as client:
        admin.ok("canary", str(stricter), "--share", "100%")
        wait_until(lambda: client.info().fingerprints.heads["sentiment"] == "f" * 16, "the candidate answers")
        os.kill(engine_of(admin.server), signal.SIGKILL)
        # The client asks again where a stream was cut.
        for answer in client.stream((str(number), text) for number, text in enumerate(TEXTS)):
            answer.unwrap()
        wait_until(lambda: bool(admin.compare()["canary"]["rollback"]), "it is rolled back")
        assert "ended with code -9" in admin.compare()["canary"]["rollback"]
        assert client.info().fingerprints.heads["sentiment"] != "f" * 16


def child_of(server: Server, module: str) -> int:
    """Returns the candidate's process that runs a module."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((file.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if module.encode() in file.read_bytes() and parent == server.process.pid:
                return int(file.parent.name)
    raise AssertionError(module)


def engine_of(server: Server) -> int:
    """Returns the candidate's engine in a canary."""
    return child_of(server, "polyhead_server.lifecycle.candidate_engine")


def shadow_of(server: Server) -> int:
    """Returns the candidate's process in a shadow."""
    return child_of(server, "polyhead_server.candidate.main")


# An engine that fails, or waits, for as long as a file exists, in the candidate's process alone.
_FAULTY = """
if os.path.exists(os.environ["FAULT"]):
    if open(os.environ["FAULT"]).read() == "fail":
        raise RuntimeError("broken")
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def faulty(start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Admin, Path]:
    """A server whose candidates do what a file says, and that file."""
    folder = tmp_path_factory.mktemp("faulty")
    of_candidates = '"polyhead_server.lifecycle.candidate_engine" in sys.orig_argv'
    environment = {**patch_engine(folder, _FAULTY, of_candidates), "FAULT": str(folder / "fault")}
    return start_admin(start, demo_bundle, "one process", folder, environment=environment), folder / "fault"


# On a fast machine, an engine that fails ends before the share of its errors is looked at.
@pytest.mark.parametrize(
    ("fault", "reasons"),
    [("fail", ("of its texts failed", "its engine has ended")), ("wait", ("99th percentile",)), ("", ())],
    ids=["fail", "wait", "control"],
)
def test_canary_beyond_a_limit_is_rolled_back(
    faulty: tuple[Admin, Path], stricter: Path, fault: str, reasons: tuple[str, ...]
) -> None:
    admin, file = faulty
    file.unlink(missing_ok=True)
    admin.run("discard")
    limits = ("--max-p99-ratio", "0", "--max-p99-ms", "150") if fault == "wait" else ("--max-p99-ratio", "0")
    admin.ok("canary", str(stricter), "--share", "50%", "--min-texts", "20", *limits)
    keys = [f"user {number}" for number in range(40)]
    before = [answered_by(admin.server.target, key) for key in keys]
    if fault:
        file.write_text(fault)

    def rolled_back() -> str:
        for key in keys:
            try:
                answered_by(admin.server.target, key)
            except StopIteration:
                # An answer with an error.
                continue
        return str(admin.compare()["canary"]["rollback"])

    if fault:
        wait_until(rolled_back, "it is rolled back")
        assert any(reason in rolled_back() for reason in reasons)
        assert "f" * 16 not in {answered_by(admin.server.target, key) for key in keys}
        assert "is rolled back" in admin.server.log.read_text()
    else:
        # The control: as many calls, and no fault.
        assert not any(rolled_back() for _ in range(3))
        assert [answered_by(admin.server.target, key) for key in keys] == before


@in_one_process
def test_shadow_yields_under_overload_and_says_how_much_it_saw(admin: Admin, demo_bundle: Path) -> None:
    # With the priority that a machine which is always busy requires, so that the candidate can catch up.
    admin.ok("shadow", str(demo_bundle), "--share", "1", "--priority", "normal")
    candidate = shadow_of(admin.server)
    # No compute at all is the far end of an overload.
    os.kill(candidate, signal.SIGSTOP)
    with Client(admin.server.target) as client:
        texts = [f"{text} {number}" for text in TEXTS for number in range(10)]
        for answer in client.stream(enumerate_ids(texts)):
            answer.unwrap()
    os.kill(candidate, signal.SIGCONT)
    sent = len(texts)

    def caught_up() -> bool:
        # Its counts come with the next text that is not dropped.
        nonlocal sent
        admin.analyze(TEXTS[0])
        sent += 1
        return bool(admin.compare()["shadow"]["answered"] == sent)

    wait_until(caught_up, "the candidate has caught up")
    found = admin.compare()["shadow"]
    assert found["selected"] == sent
    assert found["dropped"] > 0
    wait_until(lambda: compared_and_dropped(admin) == sent, "what was not dropped is compared")


def enumerate_ids(texts: list[str]) -> list[tuple[str, str]]:
    return [(str(number), text) for number, text in enumerate(texts)]


def compared_and_dropped(admin: Admin) -> int:
    found = admin.compare()["shadow"]
    return int(found["compared"] + found["dropped"])


def test_candidate_ends_with_the_server(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory() as folder:
        admin = start_admin(start, demo_bundle, "one process", tmp_path, environment={"TMPDIR": folder})
        admin.ok("shadow", str(demo_bundle), "--share", "1", "--priority", "normal")
        admin.ok("canary", "--share", "50%")
        pids = [shadow_of(admin.server), engine_of(admin.server)]
        assert list(Path(folder).glob("polyhead-candidate-*"))
        admin.server.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "both have ended")
        assert not list(Path(folder).glob("polyhead-candidate-*"))
