"""The audit with the real pip-audit and a vulnerability service on loopback."""

from __future__ import annotations

import json
import runpy
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.demo import ROOT

AUDIT: dict[str, Any] = runpy.run_path(str(ROOT / "deploy/audit.py"))
Findings, evaluate = AUDIT["Findings"], AUDIT["evaluate"]
Audit = Callable[..., tuple[int, str]]


class Service(BaseHTTPRequestHandler):
    """An OSV service that knows one vulnerability, of fragile 1.0, and fails for the package broken."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}
        affected = {"package": {"name": "fragile", "ecosystem": "PyPI"}, "ranges": [fixed]}
        one = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-11"], "summary": "breaks", "affected": [affected]}
        answer = {"vulns": [one]} if (request["package"]["name"], request["version"]) == ("fragile", "1.0") else {}
        self.send_response(500 if request["package"]["name"] == "broken" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def outputs() -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    """The output of each run of pip-audit by its flags and its lock; it starts slowly, and tests share locks."""
    return {}


@pytest.fixture
def audit(
    outputs: dict[tuple[str, ...], subprocess.CompletedProcess[str]],
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Audit:
    """Audits locks: ``audit(*locks, flags=(), page="")``; returns the exit code and what is printed."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        key = (*command[:-1], Path(command[-1]).read_text())
        if key not in outputs:
            outputs[key] = subprocess.run(command, **options)  # noqa: PLW1510
        return outputs[key]

    def audited(*locks: str, flags: tuple[str, ...] = (), page: str = "", service: str = url) -> tuple[int, str]:
        files = [tmp_path / f"lock-{number}.txt" for number in range(len(locks))]
        for file, lock in zip(files, locks, strict=True):
            file.write_text(lock)
        (tmp_path / "page.md").write_text(page)
        arguments = [*map(str, files), *flags, "--osv-url", service, "--explained", str(tmp_path / "page.md")]
        return AUDIT["main"](arguments), capsys.readouterr().err

    monkeypatch.setitem(AUDIT["main"].__globals__, "subprocess", SimpleNamespace(run=run))
    return audited


def test_packages_without_known_vulnerabilities_pass(audit: Audit) -> None:
    assert audit("fragile==1.1\nsolid==2.0\n") == (0, "audit: 2 packages, 0 vulnerabilities, 0 unexplained\n")


def test_vulnerability_fails_and_names_the_fixed_version(audit: Audit) -> None:
    code, log = audit("fragile==1.0\n")
    assert code == 1
    assert "fragile 1.0: PYSEC-2026-1, CVE-2026-11; fixed in 1.1" in log


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-11"])
def test_vulnerability_that_the_page_explains_passes(audit: Audit, name: str) -> None:
    page = f"| id | why |\n| --- | --- |\n| `{name}` | not reached |\n"
    expected = "audit: 1 packages, 1 vulnerabilities, 0 unexplained\n"
    assert audit("fragile==1.0\n", page=page) == (0, expected)


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_unreachable_service_is_reported(audit: Audit, flags: tuple[str, ...], expected: int) -> None:
    code, log = audit("solid==2.0\n", flags=flags, service="http://127.0.0.1:9/v1/query")
    assert code == expected
    assert log.startswith("audit: NOT DONE: ")


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_lock_without_an_answer_fails_only_if_required(audit: Audit, flags: tuple[str, ...], expected: int) -> None:
    code, log = audit("solid==2.0\n", "broken==1.0\n", flags=flags)
    assert code == expected
    assert log.startswith("audit: NOT DONE for lock-1.txt: ")
    assert log.endswith("audit: 1 packages, 0 vulnerabilities, 0 unexplained\n")


def test_vulnerability_fails_even_if_another_lock_has_no_answer(audit: Audit) -> None:
    assert audit("fragile==1.0\n", "broken==1.0\n")[0] == 1


def test_unknown_package_fails_unless_all_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {"own": "not found"}
    assert evaluate(Findings(audited={"solid 2.0"}, unknown=unknown), set(), required=False) == 1
    assert "packages that the service does not know: own" in capsys.readouterr().err
    # For example behind a mirror without an advisory service.
    assert evaluate(Findings(unknown=unknown), set(), required=False) == 0
    assert "NOT DONE: the service knows none" in capsys.readouterr().err
