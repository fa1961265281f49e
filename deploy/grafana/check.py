"""Lists the queries of the dashboard for which a Prometheus has no data, each with its panel.

    python deploy/grafana/check.py http://127.0.0.1:9090
    python deploy/grafana/check.py http://127.0.0.1:9090 --job polyhead --interval 1m

Features that a server does not use have none, such as a candidate or the metrics of a process of a server with workers.
Requires the standard library alone. Exit codes: 0 every query has data; 1 the listed ones have none.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).with_name("polyhead.json")
_TIMEOUT_S = 30
_LABEL_VALUES = re.compile(r"label_values\((?P<metric>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Query:
    """A query of a panel or of a variable.

    Attributes:
        name: Title of the panel, and the legend of the series.
        expression: PromQL with the variables of the dashboard.
    """

    name: str
    expression: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", metavar="URL", help="address of Prometheus, without /api")
    parser.add_argument("--job", default=".*", help="regular expression of the scrape jobs (default: all)")
    parser.add_argument("--interval", default="5m", help="interval of rates, four scrapes or more (default: 5m)")
    options = parser.parse_args(arguments)
    missing = [one for one in queries() if not values(options.prometheus, one, options.job, options.interval)]
    for one in missing:
        sys.stdout.write(f"{one.name}: {one.expression}\n")
    return int(bool(missing))


def queries() -> Iterator[Query]:
    """Yields the queries of the dashboard: those of the variables, then those of the panels in their order."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            if not found:
                raise ValueError(f"the query of the variable {variable['name']} is not label_values(METRIC, LABEL)")
            yield Query(f"${variable['name']}", f"count by ({found['label']}) ({found['metric']})")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{panel['title']}, {target['legendFormat']}", target["expr"])


def values(prometheus: str, query: Query, job: str, interval: str) -> list[float]:
    """Returns the current values of a query, without those that are not numbers.

    Args:
        prometheus: Address of Prometheus.
        query: The query.
        job: Value of the variable ``job``.
        interval: Value of the variable ``__rate_interval``.

    Raises:
        urllib.error.URLError: Prometheus does not answer, or rejects the query.
    """
    variables = {"$__rate_interval": interval, "$instance": ".*", "$job": job}
    expression = re.sub("|".join(map(re.escape, variables)), lambda name: variables[name[0]], query.expression)
    url = f"{prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310, the caller gives the address
        series: list[dict[str, Any]] = json.load(response)["data"]["result"]
    # Without any observation, the quantile of a histogram and the quotient of two rates are NaN.
    return [float(value) for value in (one["value"][1] for one in series) if value != "NaN"]


if __name__ == "__main__":
    sys.exit(main())
