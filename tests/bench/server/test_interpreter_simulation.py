from __future__ import annotations

import pytest

from bench.server.interpreter_simulation import Costs, Server, simulate

FREE_PYTHON = Costs(message=0, item=0, batch=0, compute=1000, token=0)


def test_cores_limit_the_throughput_where_python_costs_nothing() -> None:
    # One text of 40 tokens per batch: a batch takes 1 ms on each of two cores.
    server = Server(FREE_PYTHON, cores=2, items=1, mean_tokens=40, max_batch_tokens=1, in_flight=128)
    assert server.items_per_s() == pytest.approx(2000, rel=0.01)


def test_python_limits_a_process_whatever_its_cores() -> None:
    costs = Costs(message=500, item=0, batch=0, compute=1, token=0)
    rates = [Server(costs, cores, 1, 40, 1, in_flight=64 * cores).items_per_s() for cores in (2, 16)]
    assert rates == pytest.approx([2000, 2000], rel=0.01)


def test_workers_remove_the_limit_of_python() -> None:
    costs = Costs(message=500, item=160, batch=300, compute=1000, token=95)
    rates = simulate(costs, {"unary": 1}, mean_tokens=39, max_batch_tokens=256)["unary"]["16"]
    assert set(rates) == {"1", "2", "4", "8", "16"}
    assert rates["4"] > 2 * rates["1"]


def test_fronts_multiply_the_throughput_up_to_the_limit_of_the_engine_process() -> None:
    costs = Costs(message=500, item=0, batch=0, compute=1, token=0, engine_message=100)
    rates = [Server(costs, 4, 1, 40, 1, in_flight=256, fronts=fronts).items_per_s() for fronts in (1, 2, 4, 8, 16)]
    assert rates == pytest.approx([2000, 4000, 8000, 10_000, 10_000], rel=0.05)
