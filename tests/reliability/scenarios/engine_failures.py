"""An engine with injected failures, in this process, because no bundle or flag makes a real engine fail like this."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import numpy as np
from grpc import aio
from numpy.typing import NDArray
from polyhead_client import AsyncClient
from polyhead_server.inference.model import Model, load_model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.settings import Settings

from tests.reliability.scenario import Context, Verdict, scenario

_SECRET = "the secret of the engine"  # noqa: S105 - must not reach a client
_HANG_S = 2.0
Outputs = list[NDArray[np.float32]]


class PanicError(BaseException):
    """Like a Rust panic in Python: not a subclass of Exception."""


class FaultyEngine:
    """A real engine whose outputs pass through an injected fault.

    Attributes:
        fault: Function from the real outputs to the faulty ones; None to return the real outputs.
        faulty_batches: Number of batches to which a fault was applied.
    """

    def __init__(self, model: Model) -> None:
        self._engine = model.engine
        self.runtime = self._engine.runtime
        self.fault: Callable[[Outputs], Outputs] | None = None
        self.faulty_batches = 0

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Outputs:
        """Runs a batch, and applies the fault if there is one."""
        outputs = self._engine.run(input_ids, attention_mask)
        if self.fault is None:
            return outputs
        self.faulty_batches += 1
        return self.fault(outputs)

    def close(self) -> None:
        """Releases the real engine."""
        self._engine.close()


def _raise(_: Outputs) -> Outputs:
    raise RuntimeError(_SECRET)


def _panic(_: Outputs) -> Outputs:
    raise PanicError(_SECRET)


def _exit(_: Outputs) -> Outputs:
    raise SystemExit(_SECRET)


def _nan(outputs: Outputs) -> Outputs:
    return [np.full_like(outputs[0], np.nan), *outputs[1:]]


def _infinite_logits(outputs: Outputs) -> Outputs:
    return [outputs[0], *(np.full_like(values, np.inf) for values in outputs[1:])]


def _lose_a_row(outputs: Outputs) -> Outputs:
    return [values[:-1] for values in outputs]


def _hang(outputs: Outputs) -> Outputs:
    time.sleep(_HANG_S)
    return outputs


# By name: the fault, and the expected outcome of the items in a faulty batch.
_FAULTS: Mapping[str, tuple[Callable[[Outputs], Outputs], str]] = {
    "raises": (_raise, "INTERNAL"),
    "panics": (_panic, "INTERNAL"),
    "exits": (_exit, "INTERNAL"),
    "returns NaN": (_nan, "INTERNAL"),
    "returns infinite logits": (_infinite_logits, "INTERNAL"),
    "loses a row": (_lose_a_row, "INTERNAL"),
    f"hangs for {_HANG_S:g} s": (_hang, "correct"),
}


@scenario(
    "engine failures",
    fault=f"The engine {', '.join(_FAULTS)}",
    expected="Items of an affected batch fail with INTERNAL and without details, or are late if the engine hangs; "
    "items before and after it are answered correctly",
)
async def engine_failures(context: Context) -> Verdict:
    """Everything but the fault is real: model, service, gRPC and client. The control is an engine that raises."""
    counts: dict[str, Counter[str]] = {}
    leaked = False
    async with _in_process_server(context) as (engine, client):
        for name, (fault, _) in _FAULTS.items():
            for stage, present in (("before", None), ("during", fault), ("after", None)):
                engine.fault = present
                counts[f"{name}, {stage}"], secret = await _send(context, client)
                leaked = leaked or secret
        faulty_batches = engine.faulty_batches
    expected = {f"{name}, during": outcome for name, (_, outcome) in _FAULTS.items()}
    unexpected = [name for name, found in counts.items() if set(found) != {expected.get(name, "correct")}]
    items = sum(found.total() for found in counts.values())
    raised = counts["raises, during"]
    return Verdict(
        observed=f"{len(_FAULTS)} faults in {faulty_batches} batches, {items:,} items: "
        + (f"unexpected outcomes when the engine {'; '.join(unexpected)}" if unexpected else "all outcomes as expected")
        + f"; the error message of the engine reached the client: {'yes' if leaked else 'no'}",
        passed=not unexpected and not leaked and faulty_batches >= len(_FAULTS),
        control=f"with an engine that raises, {raised['correct']} of {raised.total()} items are correct",
        control_failed=not raised["correct"],
        figures={"faults": len(_FAULTS), "faulty_batches": faulty_batches, "items": items},
    )


async def _send(context: Context, client: AsyncClient) -> tuple[Counter[str], bool]:
    """Sends texts in calls and in a stream; returns their outcomes, and whether an error contained the secret."""
    texts = context.texts[: context.scaled(20, 5)]
    answers = [*zip(texts, await client.analyze(texts, deadline_s=60), strict=True)]
    answers += [*zip(texts, [one async for one in client.stream(texts)], strict=True)]
    counts = Counter(
        context.reference_answers.judge(text, one.result) if one.result else one.error.code if one.error else "UNKNOWN"
        for text, one in answers
    )
    return counts, any(_SECRET in str(one.error) for _, one in answers)


@contextlib.asynccontextmanager
async def _in_process_server(context: Context) -> AsyncIterator[tuple[FaultyEngine, AsyncClient]]:
    """Runs a server in this process; yields its engine and a client.

    This is the only place that assembles the server from its internal parts.
    """
    # The server logs each injected fault with a traceback.
    logging.getLogger("polyhead_server").setLevel(logging.CRITICAL)
    settings = Settings(bundle=context.bundle, device="cpu", max_batch_tokens=256)
    model = await asyncio.to_thread(load_model, settings)
    engine, metrics = FaultyEngine(model), Metrics()
    pipeline = Pipeline(dataclasses.replace(model, engine=engine), settings, metrics.observe_batches)
    service = InferenceService(settings, metrics)
    server = aio.server(interceptors=[ErrorInterceptor(service_names.INFERENCE)])
    server.add_generic_rpc_handlers((inference_handler(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipeline.start()
    service.serve(pipeline)
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield engine, client
    finally:
        engine.fault = None
        await server.stop(1)
        await pipeline.close()
