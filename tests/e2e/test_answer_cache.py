"""The answer cache of a real server: the same bits, metrics, timings, and an empty cache after a reload."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest
from polyhead_client import Client, Result
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port
from tests.support.polling import wait_until

from .conftest import Server, Start

pytestmark = pytest.mark.model

TEXTS = [
    "I was charged twice this month",
    "the app crashes when I open it",
    "",
    "thank you so much! 😀",
    "a long story " * 200,
    *(f"order {number} has not arrived after {number * 3} days" for number in range(20)),
]


def answers(server: Server) -> list[Result]:
    """Sends each text alone, so that its batch is the same for every server."""
    with Client(server.target) as client:
        return [client.analyze([text], include_timings=True)[0].unwrap() for text in TEXTS]


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if "cache" in sample.name or sample.name in {"polyhead_items_total", "polyhead_shared_items_total"}
    }


def bits(result: Result) -> tuple[bytes, str]:
    assert result.embedding is not None
    return result.embedding.tobytes(), f"{result.classification} {result.sentiment} {result.truncation}"


def test_cached_answers_have_the_bits_of_computed_ones_until_a_reload(start: Start, demo_bundle: Path) -> None:
    port = free_port()
    # One thread: the engine on several cores may round differently.
    flags = ("--device", "cpu", "--threads", "1")
    plain = start(demo_bundle, *flags)
    caching = start(demo_bundle, *flags, "--answer-cache-mb", "4", "--metrics-listen", f"127.0.0.1:{port}")
    for server in (plain, caching):
        server.wait_until_serving()
    uncached, first, second = answers(plain), answers(caching), answers(caching)
    assert [bits(one) for one in uncached] == [bits(one) for one in first] == [bits(one) for one in second]
    assert all(one.timings and one.timings.batch_items == 1 for one in (*uncached, *first))
    assert all(one.timings and one.timings.batch_items == 0 == one.timings.compute_s for one in second)
    count = len(TEXTS)
    wait_until(lambda: scrape(port)["polyhead_answer_cache_bytes"] > 1536 * count, "the whole cache is sampled")
    values = scrape(port)
    assert values["polyhead_answer_cache_hits_total"] == values["polyhead_answer_cache_misses_total"] == count
    assert values["polyhead_items_total"] == count
    # A reload empties the cache.
    caching.process.send_signal(signal.SIGHUP)
    wait_until(lambda: scrape(port)["polyhead_answer_cache_bytes"] == 0, "the cache is empty")
    assert all(one.timings and one.timings.batch_items for one in answers(caching))
    assert scrape(port)["polyhead_answer_cache_hits_total"] == count
