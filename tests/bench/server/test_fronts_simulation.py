from __future__ import annotations

from argparse import Namespace

import pytest

from bench.server.fronts_simulation import on_cpu, on_gpu, python_costs


def load(front: float, engine_loop: float) -> dict[str, list[float]]:
    return {"fronts_us": [front], "engine_loop_us": [engine_loop]}


# One process: 800 us a message and 100 us a text; a front 600 and 80, the engine process 310 and 40.
MEASURED = {
    "loads": {
        "unary, 1 item": {"0": load(1500, 900), "1": load(680, 350)},
        "stream, 32 items": {"0": load(300, 125), "1": load(98.75, 49.6875)},
    }
}
ARGUMENTS = Namespace(
    batch_us=300,
    compute_us=1000,
    token_us=95,
    max_batch_tokens=256,
    gpu_compute_us=300,
    gpu_token_us=0.27,
    gpu_batch_tokens=8192,
    mean_tokens=39,
)


def test_costs_of_a_message_and_of_a_text_are_told_apart() -> None:
    assert python_costs(MEASURED, one_process=True) == pytest.approx(
        {"message": 800, "item": 100, "engine_message": 0, "engine_item": 0}
    )
    assert python_costs(MEASURED, one_process=False) == pytest.approx(
        {"message": 600, "item": 80, "engine_message": 310, "engine_item": 40}
    )


def test_fronts_pay_on_many_cores_and_not_on_two() -> None:
    unary = on_cpu(MEASURED, ARGUMENTS)["unary, 1 item"]
    assert set(unary["2"]) == {"0", "1"}
    assert unary["2"]["1"] < unary["2"]["0"]
    assert unary["64"]["4"] > 2 * unary["64"]["0"]
    # 310 + 40 us of the engine process and its share of a batch bound what any number of fronts can do.
    assert unary["64"]["16"] < 1e6 / 350


def test_interpreter_is_the_limit_of_a_gpu() -> None:
    rates = on_gpu(MEASURED, ARGUMENTS)
    assert rates["unary, 1 item"]["4"] > 2 * rates["unary, 1 item"]["0"]
    assert rates["stream, 32 items"]["4"] > rates["stream, 32 items"]["0"]
