"""``polyhead admin shadow|compare|canary|promote|discard`` against a fake admin service."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_client.cli.comparison import wilson
from polyhead_client.cli.main import main

CANDIDATE = pb2.Candidate(model_id="new-1", bundle="/new")


def latency(texts: int = 10) -> pb2.Latency:
    duration = Duration(nanos=2_000_000)
    return pb2.Latency(texts=texts, mean=duration, p50=duration, p90=duration, p99=duration)


def comparison() -> pb2.CompareResponse:
    heads = [
        pb2.HeadComparison(
            name="topic",
            kind="softmax",
            rows=["app", "billing", "<refund>"],
            columns=["app", "billing", "<refund>"],
            cells=[
                pb2.MatrixCell(row=0, column=0, texts=1200),
                pb2.MatrixCell(row=0, column=1, texts=3),
                pb2.MatrixCell(row=1, column=2, texts=20),
            ],
            compared=1223,
            changed=23,
            weighted=0.01,
            difference=0.02,
            only_candidate=["<refund>"],
            texts=[pb2.ChangedText(text="<b>my text</b>\x1b[2J", served="app", candidate="billing")] * 3,
        ),
        pb2.HeadComparison(
            name="tags",
            kind="multilabel",
            rows=["late"],
            columns=["both", "served alone", "candidate alone"],
            cells=[pb2.MatrixCell(row=0, column=2, texts=4)],
            compared=1223,
            changed=4,
            difference=0.1,
        ),
        pb2.HeadComparison(name="price", kind="regression", compared=1223, difference=7.5),
    ]
    shadow = pb2.ShadowComparison(
        share=0.1,
        answered=20_000,
        selected=2000,
        dropped=777,
        compared=1223,
        errors_total={"INTERNAL": 2},
        other_model=5,
        embedding=pb2.EmbeddingComparison(
            space=pb2.EmbeddingComparison.SPACE_COMPARABLE, mean_cosine=0.99, low_cosine=0.98, least_cosine=0.9
        ),
        heads=heads,
        not_compared={"mood": "only the candidate has it"},
        served_latency=latency(),
        candidate_latency=latency(0),
    )
    return pb2.CompareResponse(candidate=CANDIDATE, served_model_id="old-1", shadow=shadow)


class FakeAdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """Remembers the requests.

    Attributes:
        requests: The requests, in order.
        state: What Compare answers.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.state = comparison()

    def Shadow(self, request: pb2.ShadowRequest, context: Any) -> pb2.ShadowResponse:  # noqa: N802
        self.requests.append(request)
        if request.share == 1:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "/new/model.onnx: has another SHA-256")
        return pb2.ShadowResponse(candidate=CANDIDATE)

    def Compare(self, request: pb2.CompareRequest, _: Any) -> pb2.CompareResponse:  # noqa: N802
        self.requests.append(request)
        answer = pb2.CompareResponse()
        answer.CopyFrom(self.state)
        if not request.include_texts:
            for head in answer.shadow.heads:
                del head.texts[:]
        return answer

    def Canary(self, request: pb2.CanaryRequest, _: Any) -> pb2.CanaryResponse:  # noqa: N802
        self.requests.append(request)
        return pb2.CanaryResponse(candidate=CANDIDATE)

    def Promote(self, request: pb2.PromoteRequest, _: Any) -> pb2.PromoteResponse:  # noqa: N802
        self.requests.append(request)
        return pb2.PromoteResponse(workers=[pb2.WorkerReload(process_id=7, model_id="new-1")])

    def Discard(self, request: pb2.DiscardRequest, _: Any) -> pb2.DiscardResponse:  # noqa: N802
        self.requests.append(request)
        return pb2.DiscardResponse()


@pytest.fixture
def service() -> FakeAdminService:
    return FakeAdminService()  # type: ignore[abstract]  # other files test the other calls


@pytest.fixture(autouse=True)
def _target_in_the_environment(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_ADMIN_TARGET", target)


def admin(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["admin", *arguments])


@pytest.mark.parametrize(("share", "value"), [("0.1", 0.1), ("10%", 0.1), (" 7.5 % ", 0.075)])
def test_shadow_sends_an_absolute_path_and_a_share(service: FakeAdminService, share: str, value: float) -> None:
    done = admin("shadow", "bundles/new", "--share", share)
    assert (done.exit_code, json.loads(done.stdout)["model_id"]) == (0, "new-1")
    (request,) = service.requests
    assert request.bundle == f"{Path.cwd()}/bundles/new"
    assert request.share == pytest.approx(value)
    assert (request.keep_texts, request.priority) == (0, pb2.ShadowRequest.PRIORITY_IDLE)


def test_shadow_sends_its_options(service: FakeAdminService) -> None:
    assert admin("shadow", "/new", "--share", "0.5", "--keep-texts", "9", "--priority", "normal").exit_code == 0
    assert service.requests == [
        pb2.ShadowRequest(bundle="/new", share=0.5, keep_texts=9, priority=pb2.ShadowRequest.PRIORITY_NORMAL)
    ]


@pytest.mark.parametrize("share", ["10", "-1%", "ten", "nan"])
def test_share_that_is_none_is_a_usage_error(service: FakeAdminService, share: str) -> None:
    done = admin("shadow", "/new", "--share", share)
    assert done.exit_code == 2
    assert "is not a share such as 0.1 or 10%" in done.stderr
    assert not service.requests


def test_rejected_candidate_ends_with_2(service: FakeAdminService) -> None:
    done = admin("shadow", "/new", "--share", "100%")
    assert done.exit_code == 2
    assert "has another SHA-256" in done.stderr
    assert service.requests


def test_comparison_is_printed_with_intervals(service: FakeAdminService) -> None:
    done = admin("compare")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "served: old-1",
        "candidate: new-1 (/new)",
        (
            "texts: 20,000 answered, 2,000 selected (10.00 %), 1,223 compared, 777 dropped, as no compute was left, "
            "5 answered by another served model, 2 failed (INTERNAL)"
        ),
        (
            "embedding: other weights, but close: vectors of both models can stand in one index; "
            "cosine 0.9900 on average, 0.9800 at the 5th percentile, 0.9000 at least"
        ),
        (
            "topic: 23 of 1,223 changed, 1.88 % (95 %: 1.26 to 2.81), weighted by confidence 1.00 %, "
            "mean difference 0.0200"
        ),
        "  labels of the candidate alone: <refund>",
        "  billing becomes <refund>: 20",
        "  app becomes billing: 3",
        "tags: 4 of 1,223 changed, 0.33 % (95 %: 0.13 to 0.84), mean difference 0.1000",
        "  late, candidate alone: 4",
        "price: mean difference 7.5000",
        "mood: not compared: only the candidate has it",
        "latency per text: served median 2 ms, p90 2 ms, p99 2 ms; candidate unknown",
    ]
    assert not service.requests[0].include_texts


def test_texts_are_printed_on_request_alone(service: FakeAdminService) -> None:
    assert "my text" not in admin("compare").stdout
    text = admin("compare", "--show-texts", "2").stdout
    assert text.count("app becomes billing: <b>my text</b>") == 2
    # Text of strangers controls no terminal.
    assert "\x1b" not in text
    assert [request.include_texts for request in service.requests] == [False, True]


def test_json_has_every_field() -> None:
    found = json.loads(admin("compare", "--json").stdout)
    assert found["shadow"]["heads"][0]["cells"][1] == {"row": 0, "column": 1, "texts": 3}


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_escapes_texts(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert admin("compare", "--html", str(page), "--show-texts", "5").exit_code == 0
    html = page.read_text()
    tags = _Tags()
    tags.feed(html)
    assert not tags.open
    assert "b" not in tags.seen
    assert "&lt;b&gt;my text&lt;/b&gt;" in html
    assert "<th>&lt;refund&gt;</th>" in html
    # One file that loads nothing.
    assert "http" not in html
    admin("compare", "--html", str(page))
    assert "my text" not in page.read_text()


def test_age_and_end_of_a_comparison_are_said(service: FakeAdminService) -> None:
    service.state.shadow.report_age.FromSeconds(40)
    assert "no compute is left for the candidate: these figures are 40 s old" in admin("compare").stdout
    service.state.shadow.failure = "its process has ended with code -9"
    assert "the comparison has ended: its process has ended with code -9" in admin("compare").stdout


def test_state_of_a_canary_is_printed(service: FakeAdminService) -> None:
    service.state.canary.CopyFrom(
        pb2.CanaryState(
            share=0.05,
            served=pb2.ModelAnswers(texts=95, latency=latency()),
            candidate=pb2.ModelAnswers(texts=5, errors_total={"INTERNAL": 1}, latency=latency()),
        )
    )
    text = admin("compare").stdout
    assert "canary: answers 5.00 % of the callers" in text
    assert "  candidate: 5 texts, 1 failed (INTERNAL), latency median 2 ms" in text
    service.state.canary.rollback = "it is slow"
    assert "canary: rolled back: it is slow" in admin("compare").stdout


def test_canary_sends_default_limits(service: FakeAdminService) -> None:
    assert admin("canary", "--share", "5%").exit_code == 0
    limits = pb2.CanaryLimits(error_rate=0.01, p99_ratio=2, min_texts=100)
    assert service.requests == [pb2.CanaryRequest(share=0.05, limits=limits)]


def test_canary_sends_its_options(service: FakeAdminService) -> None:
    flags = ("--max-error-rate", "3%", "--max-p99-ratio", "0", "--max-p99-ms", "150", "--min-texts", "7", "--force")
    assert admin("canary", "/new", "--share", "0.5", *flags).exit_code == 0
    limits = pb2.CanaryLimits(error_rate=0.03, p99_ratio=0, p99=Duration(nanos=150_000_000), min_texts=7)
    assert service.requests == [pb2.CanaryRequest(bundle="/new", share=0.5, limits=limits, force=True)]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--min-texts", "99999999999"),
        ("--max-p99-ms", "nan"),
        ("--max-p99-ms", "inf"),
        ("--max-p99-ms", "1e300"),
        ("--max-p99-ratio", "nan"),
        ("--max-p99-ratio", "inf"),
    ],
)
def test_canary_limit_out_of_range_is_a_usage_error(service: FakeAdminService, flag: str, value: str) -> None:
    done = admin("canary", "--share", "5%", flag, value)
    assert (done.exit_code, f"Invalid value for '{flag}'" in done.stderr, service.requests) == (2, True, [])


def test_promote_and_discard(service: FakeAdminService) -> None:
    done = admin("promote", "--force")
    assert (done.exit_code, json.loads(done.stdout)["model_id"]) == (0, "new-1")
    assert admin("discard").stdout == ""
    assert service.requests == [pb2.PromoteRequest(force=True), pb2.DiscardRequest()]


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 7), (23, 1223), (10, 10)])
def test_interval_is_that_of_scipy(count: int, total: int) -> None:
    # The client's own requirements do not include it.
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_path_of_a_link_is_kept(service: FakeAdminService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    admin("shadow", "link", "--share", "0.5")
    assert service.requests[0].bundle == os.path.join(tmp_path, "link")  # noqa: PTH118
