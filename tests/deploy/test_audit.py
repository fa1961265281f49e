"""The audit with the real pip-audit and a vulnerability service on loopback."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo import ROOT

AUDIT: dict[str, Any] = runpy.run_path(str(ROOT / "deploy/audit.py"))
Findings, evaluate = AUDIT["Findings"], AUDIT["evaluate"]


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


def audit(folder: Path, url: str, lock: str, *flags: str, page: str = "") -> tuple[int, str]:
    (folder / "lock.txt").write_text(lock)
    (folder / "page.md").write_text(page)
    command = [sys.executable, str(ROOT / "deploy/audit.py"), str(folder / "lock.txt"), *flags]
    command += ["--osv-url", url, "--explained", str(folder / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_packages_without_known_vulnerabilities_pass(tmp_path: Path, url: str) -> None:
    assert audit(tmp_path, url, "fragile==1.1\nsolid==2.0\n") == (
        0,
        "audit: 2 packages, 0 vulnerabilities, 0 unexplained\n",
    )


def test_vulnerability_fails_and_names_the_fixed_version(tmp_path: Path, url: str) -> None:
    code, log = audit(tmp_path, url, "fragile==1.0\n")
    assert code == 1
    assert "fragile 1.0: PYSEC-2026-1, CVE-2026-11; fixed in 1.1" in log


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-11"])
def test_vulnerability_that_the_page_explains_passes(tmp_path: Path, url: str, name: str) -> None:
    code, log = audit(
        tmp_path, url, "fragile==1.0\n", page=f"| id | why |\n| --- | --- |\n| `{name}` | not reached |\n"
    )
    assert (code, log) == (0, "audit: 1 packages, 1 vulnerabilities, 0 unexplained\n")


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_unreachable_service_is_reported(tmp_path: Path, flags: tuple[str, ...], expected: int) -> None:
    code, log = audit(tmp_path, "http://127.0.0.1:9/v1/query", "solid==2.0\n", *flags)
    assert code == expected
    assert log.startswith("audit: NOT DONE: ")


@pytest.mark.parametrize(("flags", "expected"), [((), 0), (("--required",), 1)])
def test_lock_without_an_answer_fails_only_if_required(
    tmp_path: Path, url: str, flags: tuple[str, ...], expected: int
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("broken==1.0\n")
    code, log = audit(tmp_path, url, "solid==2.0\n", str(other), *flags)
    assert code == expected
    assert log.startswith("audit: NOT DONE for other.txt: ")
    assert log.endswith("audit: 1 packages, 0 vulnerabilities, 0 unexplained\n")


def test_vulnerability_fails_even_if_another_lock_has_no_answer(tmp_path: Path, url: str) -> None:
    other = tmp_path / "other.txt"
    other.write_text("broken==1.0\n")
    assert audit(tmp_path, url, "fragile==1.0\n", str(other))[0] == 1


def test_unknown_package_fails_unless_all_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {"own": "not found"}
    assert evaluate(Findings(audited={"solid 2.0"}, unknown=unknown), set(), required=False) == 1
    assert "packages that the service does not know: own" in capsys.readouterr().err
    # For example behind a mirror without an advisory service.
    assert evaluate(Findings(unknown=unknown), set(), required=False) == 0
    assert "NOT DONE: the service knows none" in capsys.readouterr().err
