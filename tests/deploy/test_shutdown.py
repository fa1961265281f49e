"""Every deployment gives the server the time that it needs to shut down."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]
from polyhead_server.workers.supervisor import KILL_GRACE_S

from tests.support.demo import ROOT
from tests.support.sources import documentation_page

MANIFEST: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())
UNIT = (ROOT / "deploy/systemd/polyhead.service").read_text()
OPERATING = documentation_page("TimeoutStopSec=", "terminationGracePeriodSeconds: ").read_text()
# Seconds that an idle server takes to exit, as the guide for operators states.
EXIT_S = 1.0


def seconds(name: str, text: str) -> float:
    found = re.search(rf"\b{name}(?:=|: )(\d+)\b", text)
    assert found, name
    return float(found[1])


def test_stop_timeout_is_the_same_everywhere_and_long_enough_to_kill_hung_workers() -> None:
    pod = MANIFEST["spec"]["template"]["spec"]
    variables = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    on_machines = (ROOT / "deploy/systemd/polyhead.env").read_text()
    drain_timeout_s = float(variables["POLYHEAD_DRAIN_TIMEOUT_S"])
    assert drain_timeout_s == seconds("POLYHEAD_DRAIN_TIMEOUT_S", on_machines)
    grace_s = float(pod["terminationGracePeriodSeconds"])
    assert grace_s > drain_timeout_s + KILL_GRACE_S + EXIT_S
    assert seconds("TimeoutStopSec", UNIT) == grace_s
    assert seconds("TimeoutStopSec", OPERATING) == seconds("terminationGracePeriodSeconds", OPERATING) == grace_s


def test_drain_delay_is_shorter_than_the_drain_timeout() -> None:
    env = MANIFEST["spec"]["template"]["spec"]["containers"][0]["env"]
    variables = {one["name"]: one["value"] for one in env}
    assert float(variables["POLYHEAD_DRAIN_DELAY_S"]) < float(variables["POLYHEAD_DRAIN_TIMEOUT_S"])
