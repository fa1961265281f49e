"""Runs real clients of other servers against real polyhead servers, and writes docs/interoperability.md.

Each client is installed in an environment of its own, with the pinned versions of requirements/CLIENT.txt, and makes
the calls of clients/CLIENT.py: once to a server in plain text, once to one with TLS and API keys. Every vector and
probability is compared with the answer of polyhead.v1. The clients also make mistakes, and what they raise is recorded.

    python -m tests.interoperability.run --bundle build/demo/bundle                # every client
    python -m tests.interoperability.run --bundle build/demo/bundle --only openai  # some of them
    python -m tests.interoperability.run --write-page                              # only writes the page

Results are stored in bench/results/interoperability.json; clients that were not run keep theirs. The exit code is 1 if
a call failed, an answer differs, or a client accepted a mistake.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.harness import source
from bench.harness.arguments import make_parser
from bench.harness.results import provenance, write

from .calls import Server
from .comparison import TOLERANCE, Reference, is_clear
from .environments import CLIENTS, ENVIRONMENTS, install, versions
from .report import RESULTS, ROOT, write_page
from .servers import plain_server, protected_server

TEXTS = [
    "Where is my refund?",
    "The parcel came a day late, but wow, the quality! 😀",
    "Die Lieferung war pünktlich, danke",
    "配送が遅れました。",
    'He said: "line one"\nline two\tend',
    "a",
    "[SEP] is not a special token here",
]
_TIMEOUT_S = 300
_TRANSPORTS = ("plain", "protected")


def main() -> None:
    """Runs the command line."""
    arguments = _parse()
    if arguments.write_page:
        write_page()
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["clients"] if RESULTS.exists() else {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="polyhead-interoperability-") as directory, ExitStack() as stack:
        servers = [
            stack.enter_context(make(arguments.bundle.resolve(), Path(directory), TEXTS))
            for make in (plain_server, protected_server)
        ]
        references = [Reference(server) for server in servers]
        for client in arguments.only or CLIENTS:
            result = run_client(client, dict(zip(_TRANSPORTS, servers, strict=True)), references)
            results[client] = result | {"commit": source.head()}
            _save(results)
            failures += [f"{client}: {problem}" for problem in problems(result)]
            print(f"{client}: {len(result['calls'])} calls, {len(problems(result))} problems", flush=True)
    if failures:
        sys.exit("not as expected:\n" + "\n".join(failures))


def _save(results: Mapping[str, Any]) -> None:
    """Stores the results of all clients, and updates the page."""
    commits = [one.get("commit", "") for one in results.values()]
    report = provenance() | {
        "commit": source.of_all(commits, program="tests.interoperability.run"),
        "tolerance": TOLERANCE,
        "texts": len(TEXTS),
        "clients": {client: results[client] for client in CLIENTS if client in results},
    }
    write(RESULTS, report)
    write_page()


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--bundle", type=Path, help="bundle to serve")
    task.add_argument("--write-page", action="store_true", help="only write the page from the stored results")
    parser.add_argument(
        "--only", action="append", choices=CLIENTS, metavar="CLIENT", help=f"one of {', '.join(CLIENTS)}"
    )
    return parser.parse_args()


def run_client(client: str, servers: Mapping[str, Server], references: list[Reference]) -> dict[str, Any]:
    """Returns the results of a client: its versions, its calls over both transports, and what it refuses."""
    python = install(client)
    calls: dict[str, dict[str, Any]] = {}
    refusals: list[dict[str, Any]] = []
    found = versions(client)
    for (transport, server), reference in zip(servers.items(), references, strict=True):
        made = _run(client, python, server)
        found |= made["versions"]
        for outcome in made["outcomes"]:
            key = {"call": outcome["call"], "protocol": outcome["protocol"]}
            if outcome["kind"] == "call":
                row = calls.setdefault(json.dumps(key), dict(key))
                row[transport] = judge(outcome, reference)
            else:
                refusals.append(key | {"kind": outcome["kind"]} | _refusal(outcome, server))
    return {"versions": found, "calls": list(calls.values()), "refusals": refusals}


def _run(client: str, python: Path, server: Server) -> Any:
    """Runs the module of a client in its environment; its log is kept beside the environment."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ANONYMIZED_TELEMETRY": "False"}
    if server.ca:
        # How an organization makes its own authority known to programs that have no option for it.
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
        environment |= dict.fromkeys(names, server.ca)
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    log = ENVIRONMENTS / f"{client}-{'protected' if server.ca else 'plain'}.log"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [str(python), "-m", "tests.interoperability.calls", client],
            input=json.dumps(dataclasses.asdict(server)),
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            cwd=ROOT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{client} ended with code {done.returncode}; see {log}")
    return json.loads(done.stdout)


def judge(outcome: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
    """Returns the result of one call: ``skipped``, ``error``, or the largest ``difference``."""
    if "answers" not in outcome:
        return {name: outcome[name] for name in ("skipped", "error") if name in outcome}
    try:
        # A call without answers, such as one for metadata, checks them itself.
        difference = reference.difference(outcome["answers"]) if outcome["answers"] else None
    except ValueError as error:
        return {"error": str(error)}
    if difference is not None and not difference <= TOLERANCE:
        return {"error": f"differs by {difference:.3g}"}
    return {"difference": difference}


def _refusal(outcome: Mapping[str, Any], server: Server) -> dict[str, Any]:
    raised = outcome.get("error")
    if raised is None:
        return {"raised": None, "is_clear": False}
    # Ports differ from run to run.
    raised = raised.replace(server.http, "URL").replace(server.grpc, "HOST:PORT")
    return {"raised": raised, "is_clear": outcome["kind"] == "mistake" and is_clear(outcome["call"], raised)}


def problems(result: Mapping[str, Any]) -> list[str]:
    """Returns the calls of a client that failed and the refusals that did not happen."""
    failed = [
        f"{row['call']} ({transport}): {row[transport]['error']}"
        for row in result["calls"]
        for transport in _TRANSPORTS
        if "error" in row[transport]
    ]
    return failed + [f"{row['call']} is accepted" for row in result["refusals"] if row["raised"] is None]


if __name__ == "__main__":
    main()
